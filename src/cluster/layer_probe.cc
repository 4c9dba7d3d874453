#include "cluster/layer_probe.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/random.h"
#include "cluster/step_model.h"
#include "model/local_weight_source.h"
#include "model/slice_runner.h"

namespace recua::cluster {
namespace {

// Tokens before the one that is timed: as many as a short prompt has.
constexpr std::uint32_t kContext = 128;
constexpr std::uint32_t kPageTokens = 32;

// Halves and wholes take turns, since what else goes on comes and goes. The best median counts.
constexpr int kTurns = 4;
constexpr std::uint32_t kTokensPerTurn = 12;
// Where so many take longer than kTurnSeconds, a turn has fewer.
constexpr double kTurnSeconds = 0.1;
constexpr std::uint32_t kTokensPerTurnMin = 4;
constexpr std::uint32_t kFirstTokens = 2;
constexpr std::uint32_t kPositionsMax = kFirstTokens + kContext + (kTurns + 1) * kTokensPerTurn;

/// Where one token takes longer, all of them would take minutes.
constexpr double kTokenSecondsMax = 0.25;

/// What fits a layer's times may differ from what was measured apart by so much.
constexpr double kScaleMin = 0.5;
constexpr double kScaleMax = 4.0;

/// Rank 0 of two whose other one takes no time.
class AbsentRank final : public model::Communicator {
 public:
  [[nodiscard]] std::uint32_t rank() const override { return 0; }
  [[nodiscard]] std::uint32_t n_ranks() const override { return 2; }
  Result<void> all_reduce(std::span<float>) override { return ok(); }
  Result<void> all_gather(std::span<const float>, std::span<const std::size_t>,
                          std::span<float>) override {
    return ok();
  }
  Result<void> broadcast(std::span<float>, std::uint32_t) override { return ok(); }
  Result<void> barrier() override { return ok(); }
};

using Clock = std::chrono::steady_clock;

/// Layers, and a sequence that grows in them.
class TimedLayers {
 public:
  static Result<TimedLayers> create(compute::Device& device, const model::HyperParams& hp,
                                    const model::WeightSource& weights, const model::Slice& slice,
                                    const LayerProbeOptions& options,
                                    model::Communicator& communicator) {
    model::SliceOptions slice_options;
    slice_options.n_ctx = kPositionsMax;
    slice_options.page_tokens = kPageTokens;
    slice_options.n_ubatch = kContext;
    slice_options.n_logit_rows = 1;
    slice_options.k_type = options.k_type;
    slice_options.v_type = options.v_type;
    TimedLayers out;
    RECUA_ASSIGN_OR_RETURN(out.runner_, model::SliceRunner::create(device, hp, weights, slice,
                                                                   slice_options, communicator));
    const std::size_t n_floats = kContext * out.runner_->hidden_size();
    RECUA_ASSIGN_OR_RETURN(out.input_, device.allocate(n_floats * sizeof(float)));
    RECUA_ASSIGN_OR_RETURN(out.output_, device.allocate(n_floats * sizeof(float)));
    if (out.input_->host() == nullptr) {
      return Error{ErrorCode::kUnsupported, "this device's memory cannot be filled from here"};
    }
    Rng rng(3);
    for (std::size_t i = 0; i < n_floats; ++i) {
      const auto value = static_cast<float>(rng.normal());
      std::memcpy(out.input_->host() + i * sizeof(float), &value, sizeof(float));
    }
    for (std::uint32_t i = 0; i < kFirstTokens; ++i) {
      const auto before = Clock::now();
      RECUA_RETURN_IF_ERROR(out.append(device, 1));
      out.token_seconds_ = std::chrono::duration<double>(Clock::now() - before).count();
    }
    return out;
  }
  /// Of a first token, with nothing before it.
  [[nodiscard]] double token_seconds() const { return token_seconds_; }

  /// Caches, page tables and scratch memory.
  Result<void> warm_up(compute::Device& device, std::uint32_t n_tokens) {
    RECUA_RETURN_IF_ERROR(append(device, kContext));
    RECUA_RETURN_IF_ERROR(turn(device, n_tokens));
    return ok();
  }

  /// The median of some more tokens, kTokensPerTurn at most, in seconds.
  Result<double> turn(compute::Device& device, std::uint32_t n_tokens) {
    std::array<double, kTokensPerTurn> all{};
    const std::span<double> times = std::span(all).first(n_tokens);
    for (double& seconds : times) {
      const auto before = Clock::now();
      RECUA_RETURN_IF_ERROR(append(device, 1));
      seconds = std::chrono::duration<double>(Clock::now() - before).count();
    }
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
  }

 private:
  Result<void> append(compute::Device& device, std::uint32_t n) {
    model::StepBatch batch;
    model::SequencePart part = {.seq = 0, .position = length_};
    part.tokens.assign(n, 0);
    const auto n_pages = [](std::uint32_t n_tokens) {
      return (n_tokens + kPageTokens - 1) / kPageTokens;
    };
    for (std::uint32_t page = n_pages(length_); page < n_pages(length_ + n); ++page) {
      part.new_pages.push_back(page);
    }
    batch.parts.push_back(std::move(part));
    length_ += n;
    const std::size_t width = runner_->hidden_size();
    model::StepResult result;
    // Other rows for other tokens: experts are chosen by them.
    const compute::Rows input = compute::dense_rows(*input_, kContext, width);
    RECUA_RETURN_IF_ERROR(runner_->run(batch, input.slice_rows(n == 1 ? length_ % kContext : 0, n),
                                       compute::dense_rows(*output_, n, width), result));
    device.sync();
    return ok();
  }

  std::unique_ptr<model::SliceRunner> runner_;
  std::unique_ptr<compute::Buffer> input_;
  std::unique_ptr<compute::Buffer> output_;
  std::uint32_t length_ = 0;
  double token_seconds_ = 0.0;
};

/// Layers from the second one on, without the last: those embed and sample, too. As many as are
/// wanted and as memory holds, whole and half.
IndexRange timed_range(const ModelShape& model, const LayerProbeOptions& options) {
  if (model.n_layers() < 3) return {};
  IndexRange out = {.begin = 1, .end = 1};
  std::uint64_t bytes = 0;
  while (bytes < options.weight_bytes && out.end + 1 < model.n_layers()) {
    bytes += model.layers[out.end].bytes();
    if (2 * bytes > options.memory_bytes_max) break;
    ++out.end;
  }
  return out;
}

std::uint32_t tokens_per_turn(double token_seconds) {
  return static_cast<std::uint32_t>(
      std::clamp<double>(kTurnSeconds / token_seconds, kTokensPerTurnMin, kTokensPerTurn));
}

IndexRange range_of(model::Range range) { return {.begin = range.begin, .end = range.end}; }

}  // namespace

Result<std::optional<LayerTimes>> time_layers(compute::Device& device,
                                              std::shared_ptr<const gguf::GgufFile> file,
                                              const model::HyperParams& hyperparams,
                                              const LayerProbeOptions& options) {
  const ModelShape shape = model_shape(*file, hyperparams, options.k_type, options.v_type);
  const IndexRange layers = timed_range(shape, options);
  const std::array<double, 2> equal = {1.0, 1.0};
  auto shares = model::divide(hyperparams, equal);
  if (layers.size() == 0 || !shares.ok()) return std::optional<LayerTimes>();
  const model::LocalWeightSource weights(std::move(file));
  model::Slice slice = {
      .layer_begin = layers.begin, .layer_end = layers.end, .n_layers = hyperparams.n_layers};
  model::SingleRank alone;
  AbsentRank first_of_two;
  RECUA_ASSIGN_OR_RETURN(TimedLayers whole,
                         TimedLayers::create(device, hyperparams, weights, slice, options, alone));
  if (whole.token_seconds() > kTokenSecondsMax) return std::optional<LayerTimes>();
  const std::uint32_t n_tokens = tokens_per_turn(whole.token_seconds());
  RECUA_RETURN_IF_ERROR(whole.warm_up(device, n_tokens));
  slice.n_ranks = 2;
  slice.shares = *shares;
  RECUA_ASSIGN_OR_RETURN(TimedLayers half, TimedLayers::create(device, hyperparams, weights, slice,
                                                               options, first_of_two));
  RECUA_RETURN_IF_ERROR(half.warm_up(device, n_tokens));
  // On average over the turns, the first of which was for warming up.
  const double context = kFirstTokens + kContext + n_tokens + kTurns * n_tokens / 2.0;
  LayerTimes out = {.layers = layers, .context = context};
  out.share = {.machine = 0,
               .heads = range_of(slice.shares[0].heads),
               .ffn = range_of(slice.shares[0].ffn),
               .vocab = range_of(slice.shares[0].vocab)};
  for (int i = 0; i < kTurns; ++i) {
    RECUA_ASSIGN_OR_RETURN(const double of_whole, whole.turn(device, n_tokens));
    RECUA_ASSIGN_OR_RETURN(const double of_half, half.turn(device, n_tokens));
    out.whole = i == 0 ? of_whole : std::min(out.whole, of_whole);
    out.half = i == 0 ? of_half : std::min(out.half, of_half);
  }
  return std::optional(out);
}

MachineSpeed fit_to_layers(MachineSpeed speed, const ModelShape& model, const LayerTimes& times) {
  // Without its operators' fixed cost, what a step takes is proportional to the slowness of memory
  // and of one token's products: seconds = fixed + scale * proportional, for the whole and a half.
  MachineSpeed bare = speed;
  bare.operator_seconds = 0.0;
  const ClusterShape cluster = cluster_of({{.name = "here", .speed = bare}},
                                          {.latency_seconds = 0.0, .bytes_per_second = 1e30});
  StepModel step_model(model, cluster);
  const StepWork work = {.n_rows = 1, .context = times.context, .n_sequences = 1, .n_outputs = 0};
  const auto proportional = [&](const RankShare& share) {
    return step_model.stage({.layers = times.layers, .ranks = {share}}, work).compute;
  };
  const double of_whole = proportional({.machine = 0,
                                        .heads = {0, model.n_heads},
                                        .ffn = {0, model.ffn_size},
                                        .vocab = {0, model.vocab_size}});
  const double of_half = proportional(times.share);
  double scale = (times.whole - times.half) / (of_whole - of_half);
  // No cost is negative: then all of it is proportional.
  scale = std::clamp(std::min(scale, times.whole / of_whole), kScaleMin, kScaleMax);
  const double fixed = std::max(times.whole - scale * of_whole, 0.0);
  speed.bytes_per_second /= scale;
  for (TypeSpeed& type : speed.by_type) type.decode_macs_per_second /= scale;
  speed.operator_seconds = fixed / (times.layers.size() * operators_per_layer(model));
  return speed;
}

MachineSpeed corrected_alike(MachineSpeed speed, const MachineSpeed& products,
                             const MachineSpeed& layers) {
  const double scale = products.bytes_per_second / layers.bytes_per_second;
  speed.bytes_per_second /= scale;
  for (TypeSpeed& type : speed.by_type) type.decode_macs_per_second /= scale;
  if (products.operator_seconds > 0.0) {
    speed.operator_seconds *= layers.operator_seconds / products.operator_seconds;
  }
  return speed;
}

}  // namespace recua::cluster
