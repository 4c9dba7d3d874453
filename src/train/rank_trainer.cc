#include "train/rank_trainer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "train/row_ops.h"

namespace recua::train {
namespace {

/// Two doubles as four floats of the same bits: F32 travels as it is.
constexpr std::size_t kSumFloats = sizeof(RankSums) / sizeof(float);
using SumFloats = std::array<float, kSumFloats>;

NetworkLimits limits_of(const RankOptions& options) {
  return {.rows_max = options.batch * options.n_ctx,
          .sequence_max = options.n_ctx,
          .recompute = options.recompute};
}

}  // namespace

double gradient_norm(std::span<const RankSums> ranks) {
  double sum = 0.0;
  for (const RankSums& rank : ranks) sum += rank.sum_squares;
  return std::sqrt(sum);
}

std::uint64_t rank_bytes(const ModelShape& shape, const RankOptions& options,
                         std::size_t n_threads) {
  const ParameterLayout layout(shape);
  const Shards shards(layout, options.n_ranks, options.bucket_floats_min);
  return 8 * std::uint64_t{layout.n_params()} + 12 * std::uint64_t{shards.size(options.rank)} +
         network_bytes(shape, limits_of(options), n_threads) +
         batch_bytes(options.batch, options.n_ctx);
}

RankTrainer::RankTrainer(Team& team, const RankOptions& options, Network network)
    : team_(&team),
      options_(options),
      network_(std::move(network)),
      shards_(network_.layout(), options.n_ranks, options.bucket_floats_min),
      floats_(kSumFloats * options.n_ranks),
      counts_(options.n_ranks, kSumFloats),
      sums_(options.n_ranks) {}

Result<std::unique_ptr<RankTrainer>> RankTrainer::create(Team& team, const ModelShape& shape,
                                                         const RankOptions& options) {
  RECUA_CHECK(options.rank < options.n_ranks && options.batch > 0 && options.n_ctx > 0);
  RECUA_ASSIGN_OR_RETURN(Network network, Network::create(team, shape, limits_of(options)));
  std::unique_ptr<RankTrainer> trainer(new RankTrainer(team, options, std::move(network)));
  RECUA_RETURN_IF_ERROR(trainer->allocate());
  return trainer;
}

Result<void> RankTrainer::allocate() {
  const std::size_t n_own = shards_.size(options_.rank);
  RECUA_ASSIGN_OR_RETURN(params_, FloatBuffer::allocate(layout().n_params()));
  RECUA_ASSIGN_OR_RETURN(gradients_, FloatBuffer::allocate(layout().n_params()));
  RECUA_ASSIGN_OR_RETURN(m_, FloatBuffer::allocate(n_own));
  RECUA_ASSIGN_OR_RETURN(v_, FloatBuffer::allocate(n_own));
  RECUA_ASSIGN_OR_RETURN(shard_gradient_, FloatBuffer::allocate(n_own));
  pass_.reserve(options_.batch, options_.n_ctx);
  return ok();
}

Result<void> RankTrainer::step(const RankStep& step, collective::ChannelCommunicator* communicator,
                               const std::function<void(const RankSums&)>& reduced) {
  RECUA_CHECK((communicator == nullptr) == (options_.n_ranks == 1) && !step.examples.empty());
  if (communicator != nullptr && reducer_ == nullptr) {
    reducer_ = std::make_unique<BucketReducer>(shards_, *communicator, options_.overlaps);
  }
  RankSums own;
  RECUA_ASSIGN_OR_RETURN(own.loss, run_passes(step, reducer_.get()));
  if (reducer_ != nullptr) RECUA_RETURN_IF_ERROR(reducer_->finish());
  shards_.for_range(options_.rank, 0, shard_gradient_.size(),
                    [&](std::size_t at, std::size_t in_shard, std::size_t n) {
                      std::copy_n(gradients_.data() + at, n, shard_gradient_.data() + in_shard);
                    });
  // The only rank adds in the order of the parameters, as a Trainer does, to have its bits.
  const std::span<const float> squared =
      communicator == nullptr ? gradients_.span() : shard_gradient_.span();
  own.sum_squares = sum_of_squares(*team_, squared.size(), squared.data());
  reduced(own);
  RECUA_ASSIGN_OR_RETURN(const double norm, share_norm(own, communicator));
  update(step, norm);
  if (communicator == nullptr) return ok();
  for (std::size_t b = 0; b < shards_.buckets().size(); ++b) {
    const sys::Partition part = shards_.part(b, options_.rank);
    const Shards::Bucket& bucket = shards_.buckets()[b];
    RECUA_RETURN_IF_ERROR(
        communicator->all_gather(params_.span().subspan(part.begin, part.size()), shards_.counts(b),
                                 params_.span().subspan(bucket.begin, bucket.size())));
  }
  return ok();
}

Result<double> RankTrainer::run_passes(const RankStep& step, BucketReducer* reducer) {
  std::ranges::fill(gradients_.span(), 0.0F);
  if (reducer != nullptr) reducer->begin(gradients_.span());
  double loss = 0.0;
  const std::size_t n = step.examples.size();
  for (std::size_t begin = 0; begin < n; begin += options_.batch) {
    if (stop_) return Error{ErrorCode::kCancelled, "the step was ended"};
    pass_.clear();
    const std::size_t end = std::min(n, begin + options_.batch);
    for (std::size_t i = begin; i < end; ++i) pass_.add(step.examples[i]);
    // Only the last pass leaves final gradients.
    GradientHook hook;
    if (reducer != nullptr && end == n) {
      hook = [reducer](std::size_t n_open) { reducer->final_from(n_open); };
    }
    loss += network_.loss_and_gradient(pass_, params_.span(), step.scale, gradients_.span(), hook);
  }
  return loss;
}

Result<double> RankTrainer::share_norm(const RankSums& own,
                                       collective::ChannelCommunicator* communicator) {
  if (communicator == nullptr) return gradient_norm(std::span(&own, 1));
  const auto mine = std::bit_cast<SumFloats>(own);
  RECUA_RETURN_IF_ERROR(communicator->all_gather(mine, counts_, floats_));
  for (std::uint32_t r = 0; r < options_.n_ranks; ++r) {
    SumFloats of_rank{};
    std::copy_n(floats_.data() + r * kSumFloats, kSumFloats, of_rank.begin());
    sums_[r] = std::bit_cast<RankSums>(of_rank);
  }
  return gradient_norm(sums_);
}

void RankTrainer::update(const RankStep& step, double norm) {
  const AdamStep adam(options_.adam, step.lr, step.step, clip_factor(options_.adam, norm));
  const auto pieces = [&](std::size_t at, std::size_t in_shard, std::size_t n) {
    for (const TensorSpec& tensor : layout().tensors()) {
      const std::size_t begin = std::max(at, tensor.offset);
      const std::size_t end = std::min(at + n, tensor.offset + tensor.size());
      if (begin >= end) continue;
      const std::size_t own = in_shard + (begin - at);
      adam.apply(*team_, tensor.is_matrix, end - begin,
                 {.gradients = shard_gradient_.data() + own,
                  .params = params_.data() + begin,
                  .m = m_.data() + own,
                  .v = v_.data() + own});
    }
  };
  shards_.for_range(options_.rank, 0, shard_gradient_.size(), pieces);
}

}  // namespace recua::train
