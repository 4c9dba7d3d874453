#include "collective/channel_communicator.h"

#include <algorithm>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "net/deadline.h"
#include "sys/pause.h"

namespace recua::collective {
namespace {

/// Until a switch has been measured: what one-shot sums are good for on most links.
constexpr std::size_t kOneShotValues = 16 * 1024;
/// Parts of a vector begin at multiples of this many values, whatever the number of ranks.
constexpr std::size_t kPartValues = 32;
/// The first looks that find nothing follow each other closely: over shared memory what is awaited
/// mostly comes within them (a microsecond or two). After that the processor is offered to others.
constexpr std::uint32_t kEagerLooks = 128;
/// Of so many one is a poll, the others look only at the counters that alone can change, where
/// there are such: they leave more of a core to the peer that has its other thread, and find its
/// message sooner.
constexpr std::uint32_t kLooksPerPoll = 9;

}  // namespace

Result<std::unique_ptr<ChannelCommunicator>> ChannelCommunicator::create(CommunicatorParts parts) {
  RECUA_CHECK(parts.clock != nullptr && parts.waiter != nullptr);
  RECUA_ASSIGN_OR_RETURN(
      std::unique_ptr<Exchange> exchange,
      Exchange::create(parts.id, parts.rank, std::move(parts.channels), std::move(parts.ring)));
  return std::unique_ptr<ChannelCommunicator>(
      new ChannelCommunicator(std::move(parts), std::move(exchange)));
}

ChannelCommunicator::ChannelCommunicator(CommunicatorParts parts,
                                         std::unique_ptr<Exchange> exchange)
    : exchange_(std::move(exchange)),
      clock_(parts.clock),
      waiter_(parts.waiter),
      options_(parts.options),
      one_shot_values_max_(parts.options.one_shot_values_max.value_or(kOneShotValues)),
      budget_(parts.options.spin),
      direct_([this](const net::WaitSet& set) { return exchange_->arm_in(set); }) {}

// ---- Calls ------------------------------------------------------------------------------------

Result<void> ChannelCommunicator::begin(Operation operation, std::uint64_t n_values) {
  if (failure_) return *failure_;
  RECUA_CHECK(!under_way_ && "one call at a time");
  CallId& call = exchange_->call();
  call.number = n_calls_++;
  call.operation = operation;
  call.format = WireFormat::kF32;
  call.root = 0;
  call.n_values = n_values;
  if (operation == Operation::kAllReduce || operation == Operation::kReduceScatter) {
    call.format = options_.sums;
  } else if (operation == Operation::kAllGather) {
    call.format = options_.gathers;
  }
  under_way_ = true;
  gather_follows_ = false;
  return ok();
}

void ChannelCommunicator::begin_exchange(Stage stage, Exchange::Mode mode, std::span<float> own) {
  exchange_->call().stage = stage;
  if (n_ranks() == 1) {
    under_way_ = gather_follows_ = false;
    return;
  }
  exchange_->begin(mode, own);
}

std::span<float> ChannelCommunicator::part_of(std::span<float> values, std::uint32_t rank) const {
  const std::size_t n_blocks = (values.size() + kPartValues - 1) / kPartValues;
  const auto begin_of = [&](std::size_t r) {
    return std::min(values.size(), n_blocks * r / n_ranks() * kPartValues);
  };
  return values.subspan(begin_of(rank), begin_of(rank + std::size_t{1}) - begin_of(rank));
}

Result<void> ChannelCommunicator::start_all_reduce(std::span<float> values) {
  RECUA_RETURN_IF_ERROR(begin(Operation::kAllReduce, values.size()));
  const bool one_shot = values.size() <= one_shot_values_max_;
  for (std::uint32_t r = 0; r < n_ranks(); ++r) {
    exchange_->part(r) = {
        .sends = true, .out = one_shot ? values : part_of(values, r), .receives = true};
  }
  gather_follows_ = !one_shot;
  values_ = values;
  begin_exchange(one_shot ? Stage::kWhole : Stage::kScatter, Exchange::Mode::kSum,
                 one_shot ? values : part_of(values, rank()));
  return ok();
}

/// The second half of a large all_reduce.
void ChannelCommunicator::begin_gather(std::span<float> values) {
  gather_follows_ = false;
  for (std::uint32_t r = 0; r < n_ranks(); ++r) {
    exchange_->part(r) = {
        .sends = true, .out = part_of(values, rank()), .receives = true, .in = part_of(values, r)};
  }
  begin_exchange(Stage::kGather, Exchange::Mode::kPlace, {});
}

Result<void> ChannelCommunicator::start_reduce_scatter(std::span<float> values,
                                                       std::span<const std::size_t> counts) {
  RECUA_CHECK(counts.size() == n_ranks());
  RECUA_RETURN_IF_ERROR(begin(Operation::kReduceScatter, values.size()));
  std::span<float> own;
  std::span<float> rest = values;
  for (std::uint32_t r = 0; r < n_ranks(); ++r) {
    RECUA_CHECK(counts[r] <= rest.size());
    exchange_->part(r) = {.sends = true, .out = rest.first(counts[r]), .receives = true};
    if (r == rank()) own = rest.first(counts[r]);
    rest = rest.subspan(counts[r]);
  }
  RECUA_CHECK(rest.empty());
  begin_exchange(Stage::kScatter, Exchange::Mode::kSum, own);
  return ok();
}

Result<void> ChannelCommunicator::start_all_gather(std::span<const float> mine,
                                                   std::span<const std::size_t> counts,
                                                   std::span<float> out) {
  RECUA_CHECK(counts.size() == n_ranks() && mine.size() == counts[rank()]);
  RECUA_RETURN_IF_ERROR(begin(Operation::kAllGather, out.size()));
  std::span<float> own;
  std::span<float> rest = out;
  for (std::uint32_t r = 0; r < n_ranks(); ++r) {
    RECUA_CHECK(counts[r] <= rest.size());
    exchange_->part(r) = {.sends = true, .receives = true, .in = rest.first(counts[r])};
    if (r == rank()) own = rest.first(counts[r]);
    rest = rest.subspan(counts[r]);
  }
  RECUA_CHECK(rest.empty());
  if (own.data() != mine.data()) std::copy(mine.begin(), mine.end(), own.begin());
  for (std::uint32_t r = 0; r < n_ranks(); ++r) exchange_->part(r).out = own;
  begin_exchange(Stage::kGather, Exchange::Mode::kPlace, {});
  return ok();
}

Result<void> ChannelCommunicator::start_broadcast(std::span<float> values, std::uint32_t root) {
  RECUA_CHECK(root < n_ranks());
  RECUA_RETURN_IF_ERROR(begin(Operation::kBroadcast, values.size()));
  exchange_->call().root = root;
  exchange_->clear_parts();
  if (rank() == root) {
    for (std::uint32_t r = 0; r < n_ranks(); ++r)
      exchange_->part(r) = {.sends = true, .out = values};
  } else {
    exchange_->part(root) = {.receives = true, .in = values};
  }
  begin_exchange(Stage::kWhole, Exchange::Mode::kPlace, {});
  return ok();
}

Result<void> ChannelCommunicator::start_barrier() {
  RECUA_RETURN_IF_ERROR(begin(Operation::kBarrier, 0));
  for (std::uint32_t r = 0; r < n_ranks(); ++r)
    exchange_->part(r) = {.sends = true, .receives = true};
  begin_exchange(Stage::kWhole, Exchange::Mode::kPlace, {});
  return ok();
}

Result<void> ChannelCommunicator::all_reduce(std::span<float> values) {
  return run(start_all_reduce(values));
}
Result<void> ChannelCommunicator::all_gather(std::span<const float> mine,
                                             std::span<const std::size_t> counts,
                                             std::span<float> out) {
  return run(start_all_gather(mine, counts, out));
}
Result<void> ChannelCommunicator::broadcast(std::span<float> values, std::uint32_t root) {
  return run(start_broadcast(values, root));
}
Result<void> ChannelCommunicator::barrier() { return run(start_barrier()); }
Result<void> ChannelCommunicator::reduce_scatter(std::span<float> values,
                                                 std::span<const std::size_t> counts) {
  return run(start_reduce_scatter(values, counts));
}

Result<void> ChannelCommunicator::begin_all_reduce(std::span<float> values) {
  RECUA_RETURN_IF_ERROR(start_all_reduce(values));
  return help_all_reduce();
}
Result<void> ChannelCommunicator::help_all_reduce() {
  while (true) {
    RECUA_ASSIGN_OR_RETURN(const Progress progress, poll());
    if (progress != Progress::kMoved) return ok();
  }
}
Result<void> ChannelCommunicator::finish_all_reduce() { return finish(); }

Result<void> ChannelCommunicator::run(Result<void> started) {
  if (!started.ok()) return started;
  return finish();
}

// ---- Getting on -------------------------------------------------------------------------------

Result<ChannelCommunicator::Progress> ChannelCommunicator::poll() {
  if (failure_) return *failure_;
  if (!under_way_) return Progress::kDone;
  Result<bool> moved = exchange_->poll();
  if (!moved.ok()) return fail(std::move(moved).error());
  if (gather_follows_ && exchange_->is_done()) {
    begin_gather(values_);
    return Progress::kMoved;
  }
  if (exchange_->is_drained()) {
    under_way_ = false;
    return Progress::kDone;
  }
  return *moved ? Progress::kMoved : Progress::kNothing;
}

Result<void> ChannelCommunicator::finish() {
  std::uint32_t n_looks = 0;                 // Eager ones that found nothing, one after another.
  std::optional<net::TimePoint> idle_since;  // Since the last of them.
  net::TimePoint polling_since;
  bool armed = false;
  while (true) {
    RECUA_ASSIGN_OR_RETURN(const Progress progress, poll());
    if (progress != Progress::kNothing) {
      if (idle_since) budget_.came_after(clock_->now() - *idle_since);
      if (progress == Progress::kDone) return ok();
      n_looks = 0;
      idle_since.reset();
      armed = false;
      if (!exchange_->is_quiet()) continue;
    }
    if (cancelled_.load(std::memory_order_relaxed)) {
      return fail(Error{ErrorCode::kCancelled, "this rank was told to stop"});
    }
    if (n_looks < kEagerLooks && options_.spin > net::Duration::zero()) {
      const std::uint32_t next_poll = n_looks + kLooksPerPoll;
      do {
        sys::pause_cpu();
      } while (++n_looks < next_poll && exchange_->is_quiet());
      continue;
    }
    const net::TimePoint now = clock_->now();
    if (!idle_since) idle_since = polling_since = now;
    if (now - *idle_since >= options_.timeout) {
      return fail(Error{ErrorCode::kTimeout, fmt::format("{} within {}", exchange_->missing(),
                                                         net::to_string(options_.timeout))});
    }
    if (now - polling_since < budget_.current()) {
      std::this_thread::yield();  // With more ranks than processors, the others must get on.
      continue;
    }
    if (!armed) {
      // What came between the last poll and arming must not be slept over: poll once more.
      *woken_ = false;
      if (!direct_.arm()) exchange_->arm([woken = woken_] { *woken = true; });
      armed = true;
      continue;
    }
    armed = false;
    if (direct_.is_armed()) {
      if (!direct_.sleep()) continue;
    } else {
      const net::TimePoint give_up = *idle_since + options_.timeout;
      while (!*woken_ && !cancelled_.load() && clock_->now() < give_up) {
        waiter_->sleep_until(give_up);
      }
    }
    polling_since = clock_->now();
  }
}

void ChannelCommunicator::cancel() {
  cancelled_ = true;
  waiter_->wake();
}

Error ChannelCommunicator::fail(Error error) {
  if (error.code != ErrorCode::kCancelled) error.message += exchange_->others_gone();
  failure_ = std::move(error).within(to_string(exchange_->call()));
  exchange_->give_up(*failure_);
  return *failure_;
}

std::string ChannelCommunicator::transport() const {
  std::string out;
  bool same = true;
  std::string first;
  for (std::uint32_t r = 0; r < n_ranks(); ++r) {
    if (r == rank()) continue;
    const std::string one = exchange_->channels(r).sender->transport();
    if (out.empty()) first = one;
    same = same && one == first;
    out += fmt::format("{}rank {}: {}", out.empty() ? "" : ", ", r, one);
  }
  return same ? first : out;
}

}  // namespace recua::collective
