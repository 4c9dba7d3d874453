#pragma once
/// Step descriptors: how a micro-batch and its results travel in the descriptor of a tensor
/// message. The bytes are in docs/protocol.md, "Step descriptor".
///
/// Decoding bounds every count against the bytes that are there before it allocates; it does not
/// know the model, so ids, pages and rows are checked later by SliceRunner::run(). kProtocol: says
/// which field is wrong.

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "model/executor.h"

namespace recua::cluster {

void encode_batch(const model::StepBatch& batch, ByteWriter& out);
Result<model::StepBatch> decode_batch(std::span<const std::byte> descriptor);

/// Everything but the logits, which are the message's rows, one per kLogits output in order.
void encode_result(const model::StepResult& result, ByteWriter& out);
/// logits: the message's rows, each vocab_size floats.
Result<model::StepResult> decode_result(std::span<const std::byte> descriptor,
                                        std::span<const std::byte> logits, std::size_t vocab_size);

/// A failed micro-batch: error code and sentence.
void encode_failure(const Error& error, ByteWriter& out);
Error decode_failure(std::span<const std::byte> descriptor);

}  // namespace recua::cluster
