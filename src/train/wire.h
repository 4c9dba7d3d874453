#pragma once
/// Training's own types and the messages of rpc/recua.proto (docs/protocol.md, "Training").
///
/// From the wire: every count is checked and every length bounded, so that what is made of a
/// message can be allocated; errors name the field.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "rpc/recua.pb.h"
#include "train/rank_trainer.h"

namespace recua::train {

/// Numbers travel in pieces of at most so many.
inline constexpr std::size_t kPieceFloats = std::size_t{1} << 20;

/// Examples of a step at most.
inline constexpr std::size_t kStepExamplesMax = 65536;

/// What a rank is to train, and how.
struct RankTask {
  ModelShape shape;
  RankOptions options;
};

/// hyperparams: as shape_gguf() makes it.
void to_wire(const RankTask& task, std::span<const std::byte> hyperparams, wire::OpenTraining& out);
/// kProtocol, kCorrupt, kUnsupported, kResourceExhausted (more than any machine has).
Result<RankTask> from_wire(const wire::OpenTraining& message);

void to_wire(const RankStep& step, wire::TrainStep& out);
/// kProtocol: also what does not fit the task.
Result<RankStep> from_wire(const wire::TrainStep& message, const RankTask& task);
/// What a step of so many examples takes at most.
std::size_t step_bytes_max(std::size_t n_examples, std::size_t n_ctx);

void floats_to_wire(std::span<const float> values, std::string& out);
/// How many numbers a piece holds. kProtocol: none, too many, or not whole ones; what names it.
Result<std::size_t> check_piece(const std::string& data, std::string_view what);
/// A piece's numbers from `begin` on.
void floats_from_wire(const std::string& data, std::size_t begin, std::span<float> out);

}  // namespace recua::train
