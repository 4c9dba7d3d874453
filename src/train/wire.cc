#include "train/wire.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

#include "base/bytes.h"
#include "cluster/plan.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"

namespace recua::train {
namespace {

constexpr std::uint32_t kBatchMax = 65536;
constexpr std::uint32_t kCtxMax = 65536;
constexpr std::uint64_t kRowsMax = std::uint64_t{1} << 24;
/// Floats of parameters, and of activations, beyond which nothing needs to be computed exactly to
/// know that no machine has the memory.
constexpr double kFloatsMax = static_cast<double>(std::uint64_t{1} << 42);

Error broken(std::string_view field, const std::string& what) {
  return {ErrorCode::kProtocol, fmt::format("open_training.{} is {}", field, what)};
}

/// In doubles: hyperparameters within their bounds may multiply to more than 64 bits hold.
Result<void> check_size(const model::HyperParams& hp, std::uint64_t n_rows) {
  const double heads = 2.0 * (double{1} * hp.n_heads + hp.n_kv_heads) * hp.head_dim;
  const double wide = heads + 3.0 * hp.ffn_size + 4.0 * hp.hidden_size;
  const double params = 2.0 * hp.vocab_size * hp.hidden_size + wide * hp.hidden_size * hp.n_layers;
  const double activations = wide * (hp.n_layers + 2.0) * static_cast<double>(n_rows);
  if (params <= kFloatsMax && activations <= kFloatsMax) return ok();
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("about {:.3g} parameters and {:.3g} activations are more than any "
                           "machine has memory for",
                           params, activations)};
}

Result<AdamOptions> adam_from_wire(const wire::OpenTraining& message) {
  const AdamOptions adam{.beta1 = message.beta1(),
                         .beta2 = message.beta2(),
                         .eps = message.eps(),
                         .weight_decay = message.weight_decay(),
                         .clip_norm = message.clip_norm()};
  const auto is_share = [](double beta) { return beta >= 0.0 && beta < 1.0; };
  if (!is_share(adam.beta1)) return broken("beta1", fmt::format("{}, need [0, 1)", adam.beta1));
  if (!is_share(adam.beta2)) return broken("beta2", fmt::format("{}, need [0, 1)", adam.beta2));
  for (const double value : {adam.eps, adam.weight_decay, adam.clip_norm}) {
    if (!std::isfinite(value) || value < 0.0)
      return broken("eps, weight_decay or clip_norm", fmt::format("{}, need 0 or more", value));
  }
  return adam;
}

}  // namespace

void to_wire(const RankTask& task, std::span<const std::byte> hyperparams,
             wire::OpenTraining& out) {
  out.set_hyperparams_gguf(std::string(as_text(hyperparams)));
  out.set_qkv_bias(task.shape.qkv_bias);
  out.set_qk_norm(task.shape.qk_norm);
  out.set_tied(task.shape.tied);
  for (const float divisor : task.shape.rope_divisors) out.add_rope_divisors(divisor);
  out.set_rank(task.options.rank);
  out.set_n_ranks(task.options.n_ranks);
  out.set_batch(static_cast<std::uint32_t>(task.options.batch));
  out.set_n_ctx(static_cast<std::uint32_t>(task.options.n_ctx));
  out.set_recompute(task.options.recompute);
  out.set_beta1(task.options.adam.beta1);
  out.set_beta2(task.options.adam.beta2);
  out.set_eps(task.options.adam.eps);
  out.set_weight_decay(task.options.adam.weight_decay);
  out.set_clip_norm(task.options.adam.clip_norm);
}

Result<RankTask> from_wire(const wire::OpenTraining& message) {
  RankTask task;
  ModelShape& shape = task.shape;
  const auto metadata =
      gguf::GgufFile::parse(as_bytes(message.hyperparams_gguf()), "open_training.hyperparams_gguf");
  if (!metadata.ok()) return Error(metadata.error());
  RECUA_ASSIGN_OR_RETURN(shape.hp, model::read_hyperparams(*metadata));
  shape.qkv_bias = message.qkv_bias();
  shape.qk_norm = message.qk_norm();
  shape.tied = message.tied();
  RECUA_RETURN_IF_ERROR(check_trainable(shape));
  shape.rope_divisors.assign(message.rope_divisors().begin(), message.rope_divisors().end());
  if (!shape.rope_divisors.empty() && shape.rope_divisors.size() != shape.hp.rope_dim / 2) {
    return broken("rope_divisors", fmt::format("{} numbers, need none or {}",
                                               shape.rope_divisors.size(), shape.hp.rope_dim / 2));
  }
  for (const float divisor : shape.rope_divisors) {
    if (!(divisor > 0.0F)) return broken("rope_divisors", "not above 0 everywhere");
  }
  RankOptions& options = task.options;
  options.rank = message.rank();
  options.n_ranks = message.n_ranks();
  if (options.n_ranks == 0 || options.n_ranks > cluster::kRanksMax) {
    return broken("n_ranks", fmt::format("{}, need 1 to {}", options.n_ranks, cluster::kRanksMax));
  }
  if (options.rank >= options.n_ranks) {
    return broken("rank", fmt::format("{} of {}", options.rank, options.n_ranks));
  }
  if (message.batch() == 0 || message.batch() > kBatchMax) {
    return broken("batch", fmt::format("{}, need 1 to {}", message.batch(), kBatchMax));
  }
  if (message.n_ctx() == 0 || message.n_ctx() > kCtxMax) {
    return broken("n_ctx", fmt::format("{}, need 1 to {}", message.n_ctx(), kCtxMax));
  }
  options.batch = message.batch();
  options.n_ctx = message.n_ctx();
  const std::uint64_t n_rows = std::uint64_t{options.batch} * options.n_ctx;
  if (n_rows > kRowsMax) {
    return broken("batch", fmt::format("{} rows of a pass, at most {} may be", n_rows, kRowsMax));
  }
  options.recompute = message.recompute();
  RECUA_ASSIGN_OR_RETURN(options.adam, adam_from_wire(message));
  RECUA_RETURN_IF_ERROR(check_size(shape.hp, n_rows));
  return task;
}

void to_wire(const RankStep& step, wire::TrainStep& out) {
  out.set_step(step.step);
  out.set_lr(step.lr);
  out.set_scale(step.scale);
  for (const Example& example : step.examples) {
    wire::TrainExample& to = *out.add_examples();
    to.mutable_tokens()->Add(example.tokens.begin(), example.tokens.end());
    to.mutable_counts()->assign(example.counts.begin(), example.counts.end());
  }
}

Result<RankStep> from_wire(const wire::TrainStep& message, const RankTask& task) {
  RankStep step{.step = message.step(), .lr = message.lr(), .scale = message.scale()};
  if (message.examples().empty()) return Error{ErrorCode::kProtocol, "a step without examples"};
  if (static_cast<std::size_t>(message.examples_size()) > kStepExamplesMax) {
    return Error{ErrorCode::kProtocol, fmt::format("train_step has {} examples, need at most {}",
                                                   message.examples_size(), kStepExamplesMax)};
  }
  for (const wire::TrainExample& from : message.examples()) {
    const auto n_tokens = static_cast<std::size_t>(from.tokens_size());
    if (n_tokens < 2 || n_tokens > task.options.n_ctx + 1 || from.counts().size() != n_tokens - 1) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("an example has {} tokens and {} counts, need 2 to {} and one less",
                               n_tokens, from.counts().size(), task.options.n_ctx + 1)};
    }
    Example example;
    for (const std::int32_t token : from.tokens()) {
      if (token < 0 || static_cast<std::uint32_t>(token) >= task.shape.hp.vocab_size) {
        return Error{ErrorCode::kProtocol,
                     fmt::format("token {} is not below {}", token, task.shape.hp.vocab_size)};
      }
      example.tokens.push_back(token);
    }
    for (const char count : from.counts()) example.counts.push_back(count != 0 ? 1 : 0);
    step.examples.push_back(std::move(example));
  }
  return step;
}

std::size_t step_bytes_max(std::size_t n_examples, std::size_t n_ctx) {
  // A token's varint takes up to 4 bytes (ids are below 2^24), its count one; and some headers.
  return 256 + n_examples * (32 + 5 * (n_ctx + 1));
}

void floats_to_wire(std::span<const float> values, std::string& out) {
  out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

Result<std::size_t> check_piece(const std::string& data, std::string_view what) {
  const std::size_t n = data.size() / sizeof(float);
  if (n > 0 && n <= kPieceFloats && data.size() % sizeof(float) == 0) return n;
  return Error{ErrorCode::kProtocol,
               fmt::format("{} has {} bytes, need whole numbers of 4, 1 to {} of them", what,
                           data.size(), kPieceFloats)};
}

void floats_from_wire(const std::string& data, std::size_t begin, std::span<float> out) {
  std::memcpy(out.data(), data.data() + begin * sizeof(float), out.size_bytes());
}

}  // namespace recua::train
