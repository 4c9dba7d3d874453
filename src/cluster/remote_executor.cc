#include "cluster/remote_executor.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "cluster/poll_loop.h"
#include "cluster/stage.h"
#include "cluster/step_codec.h"
#include "model/split_batch.h"
#include "net/deadline.h"
#include "net/event.h"
#include "quant/data_type.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// A step that waits for its results.
struct PendingStep {
  explicit PendingStep(const asio::any_io_executor& executor) : finished(executor) {}
  std::uint64_t number = 0;
  std::vector<model::MicroBatch> micro_batches;
  std::size_t n_received = 0;
  std::size_t n_done = 0;  // Of those, without a failure.
  model::StepResult result;
  std::optional<Error> error;  // The first micro-batch that failed; the rest are still awaited.
  bool done = false;
  net::Event finished;
};

/// Outputs whose candidates fit a result's descriptor (docs/protocol.md, "Step descriptor").
std::uint32_t outputs_per_message(const model::StepBatch& batch) {
  std::uint64_t n_top = 0;
  for (const model::OutputRequest& request : batch.outputs) {
    n_top = std::max<std::uint64_t>(n_top, request.n_top);
  }
  return static_cast<std::uint32_t>(
      std::max<std::uint64_t>(1, (kDescriptorBytesMax - 4) / (20 + 8 * n_top)));
}

/// A micro-batch that waits for a credit, or for its bytes to leave.
struct OutMessage {
  rpc::TensorHeader header;
  ByteWriter descriptor;
};

}  // namespace

struct RemoteExecutor::State : std::enable_shared_from_this<RemoteExecutor::State> {
  explicit State(Parts parts_in)
      : parts(std::move(parts_in)),
        wake(parts.env.executor),
        settled(parts.env.executor),
        budget(parts.env.spin) {}

  asio::awaitable<void> pump();
  Result<bool> poll();
  Result<void> take(const rpc::Incoming& incoming);
  void fail(const Error& why);
  /// A channel that it is not decided yet what carries its messages.
  [[nodiscard]] const rpc::ChannelSender* unsettled() const {
    const auto found = std::find_if(parts.firsts.begin(), parts.firsts.end(),
                                    [](const auto& first) { return !first->settled(); });
    return found == parts.firsts.end() ? nullptr : found->get();
  }

  Parts parts;
  net::Event wake;
  net::Event settled;  // All channels are, or never will be.
  net::SpinBudget budget;
  std::deque<std::shared_ptr<PendingStep>> pending;  // In the order of their results.
  std::deque<OutMessage> queue;                      // Not handed to the channel yet.
  std::deque<OutMessage> sending;                    // Handed over; their bytes may still be read.
  std::uint64_t n_steps = 0;
  bool finished_some = false;  // A step's coroutine should get its turn.
  std::optional<Error> failure;
  bool closed = false;
};

RemoteExecutor::RemoteExecutor(Parts parts) : state_(std::make_shared<State>(std::move(parts))) {
  const std::shared_ptr<State> state = state_;
  asio::co_spawn(state->parts.env.executor, state->pump(), asio::detached);
}

RemoteExecutor::~RemoteExecutor() {
  state_->fail(Error{ErrorCode::kCancelled, "the executor was closed"});
  state_->closed = true;
  state_->wake.notify_all();
}

const model::ExecutorInfo& RemoteExecutor::info() const { return state_->parts.info; }
std::size_t RemoteExecutor::n_firsts() const { return state_->parts.firsts.size(); }
const rpc::ChannelSender& RemoteExecutor::first(std::size_t rank) const {
  return *state_->parts.firsts[rank];
}
const rpc::ChannelReceiver& RemoteExecutor::last() const { return *state_->parts.last; }

void RemoteExecutor::fail(const Error& error) { state_->fail(error); }

std::function<void(const Error&)> RemoteExecutor::failer() const {
  return [weak = std::weak_ptr<State>(state_)](const Error& error) {
    if (const auto state = weak.lock()) state->fail(error);
  };
}

void RemoteExecutor::State::fail(const Error& why) {
  if (!failure.has_value()) failure = why;
  queue.clear();
  for (const auto& step : pending) {
    step->error = *failure;
    step->done = true;
    step->finished.notify_all();
  }
  pending.clear();
  wake.notify_all();
  settled.notify_all();
}

asio::awaitable<Result<void>> RemoteExecutor::wait_until_settled(net::Duration timeout) {
  const std::shared_ptr<State> state = state_;
  const net::Env& env = state->parts.env;
  bool expired = false;
  const auto timer = env.clock->start_timer(env.executor, env.clock->now() + timeout,
                                            [&expired, raw = state.get()] {
                                              expired = true;
                                              raw->settled.notify_all();
                                            });
  while (state->unsettled() != nullptr && !state->failure.has_value()) {
    if (expired) {
      co_return Error{ErrorCode::kTimeout,
                      fmt::format("{} did not settle on a transport within {}",
                                  state->unsettled()->peer(), net::to_string(timeout))};
    }
    co_await state->settled.wait();
  }
  if (state->failure.has_value()) co_return *state->failure;
  co_return ok();
}

asio::awaitable<Result<model::StepResult>> RemoteExecutor::step(model::StepBatch batch) {
  const std::shared_ptr<State> state = state_;
  if (state->failure.has_value()) co_return *state->failure;
  const bool wants_logits = std::any_of(
      batch.outputs.begin(), batch.outputs.end(),
      [](const model::OutputRequest& r) { return r.kind == model::OutputRequest::Kind::kLogits; });
  const model::ExecutorInfo& info = state->parts.info;
  const auto step = std::make_shared<PendingStep>(state->parts.env.executor);
  step->number = state->n_steps++;
  const std::uint32_t n_outputs = std::min(
      outputs_per_message(batch), wants_logits ? state->parts.n_logit_rows : info.n_ubatch);
  step->micro_batches = model::split_batch(batch, info.n_ubatch, n_outputs, info.page_tokens);
  std::vector<OutMessage> messages(step->micro_batches.size());
  for (std::size_t i = 0; i < messages.size(); ++i) {
    encode_batch(step->micro_batches[i].batch, messages[i].descriptor);
    messages[i].header = {
        .kind = rpc::MessageKind::kStep,
        .data_type = static_cast<std::uint16_t>(quant::DataType::kF32),
        .session = state->parts.id.session,
        .epoch = state->parts.id.epoch,
        .micro_batch = static_cast<std::uint32_t>(i),
        .step = step->number,
        .descriptor_bytes = static_cast<std::uint32_t>(messages[i].descriptor.size()),
        .last = i + 1 == messages.size()};
    if (messages[i].descriptor.size() > kDescriptorBytesMax) {
      co_return Error{ErrorCode::kInvalidArgument,
                      fmt::format("a step's description has {} bytes, more than the {} that fit a "
                                  "message; use fewer logit biases or sequences at once",
                                  messages[i].descriptor.size(), kDescriptorBytesMax)};
    }
  }
  if (messages.empty()) co_return model::StepResult{};
  for (OutMessage& message : messages) state->queue.push_back(std::move(message));
  state->pending.push_back(step);
  state->wake.notify_all();
  // Off it goes before the pump gets its turn.
  if (const Result<bool> moved = state->poll(); !moved.ok()) state->fail(moved.error());
  while (!step->done) co_await step->finished.wait();
  if (step->error.has_value()) co_return *step->error;
  co_return std::move(step->result);
}

Result<bool> RemoteExecutor::State::poll() {
  bool moved = false;
  std::uint64_t n_unfinished = 0;  // Messages that some rank's channel still reads.
  for (const auto& first : parts.firsts) {
    RECUA_ASSIGN_OR_RETURN(const bool moved_first, first->poll());
    moved = moved || moved_first;
    n_unfinished = std::max(n_unfinished, first->n_sent() - first->n_completed());
  }
  while (sending.size() > n_unfinished) sending.pop_front();
  const auto has_credit = [](const auto& first) { return first->credits() > 0; };
  while (!queue.empty() && std::all_of(parts.firsts.begin(), parts.firsts.end(), has_credit)) {
    sending.push_back(std::move(queue.front()));
    queue.pop_front();
    const OutMessage& message = sending.back();
    const rpc::Outgoing outgoing{
        .header = message.header, .rows = {}, .descriptor = message.descriptor.bytes()};
    for (const auto& first : parts.firsts) {
      RECUA_ASSIGN_OR_RETURN(const bool sent, first->try_send(outgoing));
      RECUA_CHECK(sent);  // There was a credit, and nobody else sends here.
    }
    moved = true;
  }
  RECUA_ASSIGN_OR_RETURN(const rpc::Incoming* const incoming, parts.last->poll());
  if (incoming != nullptr) {
    RECUA_RETURN_IF_ERROR(take(*incoming));
    moved = true;
  }
  return moved;
}

Result<void> RemoteExecutor::State::take(const rpc::Incoming& incoming) {
  const rpc::TensorHeader& header = incoming.header;
  if (pending.empty() || pending.front()->number != header.step ||
      pending.front()->n_received != header.micro_batch) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{}: a result came for step {}, micro-batch {}, which is not awaited",
                             parts.last->peer(), header.step, header.micro_batch)};
  }
  PendingStep& step = *pending.front();
  const model::MicroBatch& micro_batch = step.micro_batches[step.n_received];
  if (header.kind == rpc::MessageKind::kFailure) {
    // The worker's sentence says which of them it was.
    if (!step.error.has_value()) step.error = decode_failure(incoming.descriptor).within("worker");
  } else if (header.kind == rpc::MessageKind::kResult) {
    Result<model::StepResult> decoded =
        decode_result(incoming.descriptor, incoming.rows, parts.info.vocab_size);
    if (!decoded.ok()) return std::move(decoded).error().within(parts.last->peer());
    model::StepResult part = std::move(*decoded);
    ++step.n_done;
    if (part.outputs.size() != micro_batch.batch.outputs.size()) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: {} outputs came for {} asked for", parts.last->peer(),
                               part.outputs.size(), micro_batch.batch.outputs.size())};
    }
    model::merge_result(micro_batch, std::move(part), step.result);
  } else {
    return Error{ErrorCode::kProtocol, parts.last->peer() + ": a result was expected"};
  }
  RECUA_RETURN_IF_ERROR(parts.last->release(incoming.slot));
  if (++step.n_received == step.micro_batches.size()) {
    if (step.error.has_value() && step.error->code == ErrorCode::kInvalidArgument &&
        step.n_done > 0) {
      // kInvalidArgument promises that nothing was changed, but other pieces of the step were done.
      step.error->code = ErrorCode::kUnsupported;
    }
    step.done = true;
    step.finished.notify_all();
    pending.pop_front();
    finished_some = true;
  }
  return ok();
}

asio::awaitable<void> RemoteExecutor::State::pump() {
  const auto self = shared_from_this();
  std::function<Result<bool>()> poll_fn = [this] { return poll(); };
  const net::ReadyCallback ready = [weak = weak_from_this()] {
    if (const auto alive = weak.lock()) alive->wake.notify_all();
  };
  std::function<void()> arm_fn = [weak = weak_from_this(), ready] {
    const auto state = weak.lock();
    for (const auto& first : state->parts.firsts) first->arm(ready, /*for_completions=*/false);
    state->parts.last->arm(ready);
  };
  while (!closed && !failure.has_value()) {
    // Spin only while somebody waits, and let a finished step's coroutine run before the next spin.
    // Without anything to wait for the channels are still listened to: a link mends itself, and a
    // lost one is not found out by the next request.
    const bool idle = pending.empty() && unsettled() == nullptr;
    net::SpinBudget no_spin(net::Duration::zero());
    std::function<bool()> turn_over = [this, idle] {
      return closed || finished_some || failure.has_value() ||
             idle != (pending.empty() && unsettled() == nullptr);
    };
    const Result<void> polled =
        co_await poll_until(parts.env, wake, poll_fn, arm_fn, turn_over, idle ? &no_spin : &budget);
    if (!polled.ok()) fail(polled.error());
    if (unsettled() == nullptr) settled.notify_all();
    if (std::exchange(finished_some, false)) {
      co_await asio::post(parts.env.executor, asio::use_awaitable);
    }
  }
}

}  // namespace recua::cluster
