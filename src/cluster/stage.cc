#include "cluster/stage.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "cluster/poll_loop.h"
#include "cluster/step_codec.h"

namespace recua::cluster {
namespace {

/// Messages that may be computed ahead of what the channel has taken.
constexpr std::size_t kOutBuffers = 3;
constexpr std::uint64_t kLogitBytesPerMessage = std::uint64_t{16} << 20;

Error no_such_kind(const rpc::ChannelReceiver& in, const rpc::TensorHeader& header) {
  return Error{ErrorCode::kProtocol,
               fmt::format("{}: message kind {} does not belong between stages", in.peer(),
                           static_cast<int>(header.kind))};
}

}  // namespace

rpc::RingShape ring_shape(std::uint64_t n_rows, std::uint64_t row_bytes) {
  return {.n_slots = kSlotsPerHop,
          .slot_bytes = align_up<std::uint64_t>(
              rpc::kTensorHeaderBytes + n_rows * row_bytes + kDescriptorBytesMax, 64)};
}

rpc::RingShape result_ring_shape(std::uint32_t n_logit_rows, std::uint32_t vocab_size) {
  return ring_shape(n_logit_rows, std::uint64_t{vocab_size} * sizeof(float));
}

std::uint32_t logit_rows_per_message(std::uint32_t vocab_size, std::uint32_t n_ubatch) {
  const std::uint64_t rows = kLogitBytesPerMessage / (std::uint64_t{vocab_size} * sizeof(float));
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(rows, 1, n_ubatch));
}

Result<StageBuffers> StageBuffers::allocate(compute::Device& device,
                                            const model::SliceRunner& runner,
                                            std::size_t vocab_size,
                                            const rpc::RingShape& out_ring) {
  std::size_t rows = runner.options().n_ubatch;
  std::size_t cols = runner.hidden_size();
  if (runner.slice().is_last()) {
    // The peer says how large its slots are; that bounds us only downwards.
    cols = vocab_size;
    const std::uint64_t fit =
        (out_ring.slot_bytes - rpc::kTensorHeaderBytes) / (vocab_size * sizeof(float));
    const auto vocab = static_cast<std::uint32_t>(vocab_size);
    rows = std::min<std::uint64_t>(logit_rows_per_message(vocab, runner.options().n_ubatch), fit);
  }
  StageBuffers out;
  out.buffers_.resize(kOutBuffers);
  if (rows == 0) return out;
  RECUA_ASSIGN_OR_RETURN(out.memory_, device.allocate(kOutBuffers * rows * cols * sizeof(float)));
  for (std::size_t i = 0; i < kOutBuffers; ++i) {
    out.buffers_[i].rows = {out.memory_.get(), i * rows * cols, rows, cols, cols};
  }
  return out;
}

std::uint64_t StageBuffers::bytes(const model::Slice& slice, std::uint32_t n_ubatch,
                                  std::uint32_t hidden_size, std::uint32_t vocab_size) {
  const std::uint64_t cells =
      slice.is_last() ? std::uint64_t{logit_rows_per_message(vocab_size, n_ubatch)} * vocab_size
                      : std::uint64_t{n_ubatch} * hidden_size;
  return kOutBuffers * sizeof(float) * cells;
}

std::span<std::byte> StageBuffers::memory() const {
  if (memory_ == nullptr) return {};
  return {memory_->host(), memory_->bytes()};
}

Result<bool> Stage::poll() {
  bool moved = false;
  if (parts_.out != nullptr) {
    RECUA_ASSIGN_OR_RETURN(moved, parts_.out->poll());
  }
  if (incoming_ == nullptr) {
    RECUA_ASSIGN_OR_RETURN(incoming_, parts_.in->poll());
    moved = moved || incoming_ != nullptr;
  }
  if (incoming_ != nullptr && can_send()) {
    RECUA_RETURN_IF_ERROR(work());
    moved = true;
  }
  return moved;
}

bool Stage::can_send() const {
  const rpc::ChannelSender* const out = parts_.out.get();
  if (out == nullptr) return true;
  return out->credits() > 0 && out->n_sent() - out->n_completed() < parts_.buffers->size();
}

Result<void> Stage::work() {
  const rpc::Incoming incoming = *std::exchange(incoming_, nullptr);
  OutBuffer& buffer = parts_.buffers->at(parts_.out == nullptr ? 0 : parts_.out->n_sent());
  buffer.descriptor.clear();
  rpc::TensorHeader header = incoming.header;
  header.n_rows = 0;
  header.row_bytes = 0;

  if (incoming.header.kind == rpc::MessageKind::kFailure) {
    buffer.descriptor.write_bytes(incoming.descriptor);
    RECUA_RETURN_IF_ERROR(parts_.in->release(incoming.slot));
    return send(buffer, header);
  }
  if (incoming.header.kind != rpc::MessageKind::kStep) return no_such_kind(*parts_.in, header);

  Result<model::StepBatch> decoded = decode_batch(incoming.descriptor);
  if (!decoded.ok()) return std::move(decoded).error().within(parts_.in->peer());
  const model::StepBatch& batch = *decoded;
  const model::Slice& slice = parts_.runner->slice();
  const std::size_t hidden = parts_.runner->hidden_size();
  const std::size_t n_rows = batch.n_rows();
  compute::Rows input;
  if (!slice.is_first()) {
    if (incoming.header.n_rows != n_rows || incoming.header.row_bytes != hidden * sizeof(float) ||
        incoming.header.data_type != static_cast<std::uint16_t>(quant::DataType::kF32)) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: {} rows of {} bytes came for {} tokens of {} bytes",
                               parts_.in->peer(), incoming.header.n_rows, incoming.header.row_bytes,
                               n_rows, hidden * sizeof(float))};
    }
    const auto at = static_cast<std::size_t>(incoming.rows.data() - parts_.ring->host());
    input = {parts_.ring, at / sizeof(float), n_rows, hidden, hidden};
  }
  result_.outputs.clear();
  Result<void> done = ok();
  {
    std::unique_lock<std::mutex> lock;
    if (parts_.compute_mutex != nullptr) lock = std::unique_lock(*parts_.compute_mutex);
    const bool fits = n_rows <= parts_.runner->options().n_ubatch;
    compute::Rows output;  // The last slice gives logits by its result.
    if (!slice.is_last()) output = fits ? buffer.rows.slice_rows(0, n_rows) : buffer.rows;
    done = parts_.runner->run(batch, input, output, result_);
  }

  // A batch that is wrong is wrong on every rank. After anything else the ranks have parted.
  if (!done.ok() && slice.n_ranks > 1 && done.error().code != ErrorCode::kInvalidArgument &&
      done.error().code != ErrorCode::kResourceExhausted &&
      done.error().code != ErrorCode::kCorrupt) {
    return std::move(done).error().within(parts_.name);
  }
  if (!done.ok()) {
    header.kind = rpc::MessageKind::kFailure;
    encode_failure(std::move(done).error().within(parts_.name), buffer.descriptor);
  } else if (parts_.out == nullptr) {
    return parts_.in->release(incoming.slot);
  } else if (slice.is_last()) {
    header.kind = rpc::MessageKind::kResult;
    encode_result(result_, buffer.descriptor);
    if (!store_logits(buffer, header)) {
      header.kind = rpc::MessageKind::kFailure;
      buffer.descriptor.clear();
      encode_failure({ErrorCode::kUnsupported,
                      "the outputs of a micro-batch do not fit a message: ask for fewer candidates "
                      "or use a smaller -ub"},
                     buffer.descriptor);
    }
  } else {
    buffer.descriptor.write_bytes(incoming.descriptor);
    header.n_rows = static_cast<std::uint32_t>(n_rows);
    header.row_bytes = static_cast<std::uint32_t>(hidden * sizeof(float));
  }
  RECUA_RETURN_IF_ERROR(parts_.in->release(incoming.slot));
  return send(buffer, header);
}

bool Stage::store_logits(OutBuffer& buffer, rpc::TensorHeader& header) const {
  const std::size_t row_bytes = parts_.vocab_size * sizeof(float);
  const auto n_rows = static_cast<std::size_t>(
      std::count_if(result_.outputs.begin(), result_.outputs.end(),
                    [](const model::StepOutput& output) { return !output.logits.empty(); }));
  if (n_rows > buffer.rows.n_rows ||
      rpc::kTensorHeaderBytes + n_rows * row_bytes + buffer.descriptor.size() >
          parts_.out->ring().slot_bytes) {
    return false;
  }
  std::size_t row = 0;
  for (const model::StepOutput& output : result_.outputs) {
    if (output.logits.empty()) continue;
    RECUA_CHECK(output.logits.size() == parts_.vocab_size);
    std::memcpy(buffer.rows.row(row++), output.logits.data(), row_bytes);
  }
  header.n_rows = static_cast<std::uint32_t>(n_rows);
  header.row_bytes = n_rows == 0 ? 0 : static_cast<std::uint32_t>(row_bytes);
  return true;
}

Result<void> Stage::send(OutBuffer& buffer, rpc::TensorHeader header) {
  if (parts_.out == nullptr) return ok();
  header.session = parts_.id.session;
  header.epoch = parts_.id.epoch;
  header.data_type = static_cast<std::uint16_t>(quant::DataType::kF32);
  header.descriptor_bytes = static_cast<std::uint32_t>(buffer.descriptor.size());
  std::span<const std::byte> rows;
  if (header.n_rows > 0) {
    rows = {reinterpret_cast<const std::byte*>(buffer.rows.row(0)),
            std::size_t{header.n_rows} * header.row_bytes};
  }
  const rpc::Outgoing message{
      .header = header, .rows = rows, .descriptor = buffer.descriptor.bytes()};
  RECUA_ASSIGN_OR_RETURN(const bool sent, parts_.out->try_send(message));
  RECUA_CHECK(sent);  // poll() looked for a credit, and nobody else sends here.
  return ok();
}

/// What has to be done before somebody waits for a token.
Result<void> Stage::begin() {
  if (parts_.group == nullptr) return ok();
  const model::SliceRunner& runner = *parts_.runner;
  RECUA_ASSIGN_OR_RETURN(
      const std::string text,
      parts_.group->calibrate(std::size_t{runner.options().n_ubatch} * runner.hidden_size()));
  if (!text.empty() && parts_.report_group) parts_.report_group(text);
  return ok();
}

boost::asio::awaitable<Result<void>> Stage::drive(net::Env env) {
  wake_ = std::make_shared<net::Event>(env.executor);
  std::function<Result<bool>()> poll_fn = [this] { return poll(); };
  stats_.resize(parts_.out == nullptr ? 1 : 2);
  stats_[0].sends = false;
  const net::ReadyCallback ready = [wake = wake_] { wake->notify_all(); };
  std::function<void()> arm_fn = [this, ready] {
    // With a message in hand, only the next stage can get us on: more input would wake us in vain.
    if (incoming_ == nullptr) parts_.in->arm(ready);
    // A buffer is waited for only by what has come.
    if (parts_.out != nullptr) parts_.out->arm(ready, incoming_ != nullptr);
  };
  net::ArmIn arm_in = [this](const net::WaitSet& set) {
    if (!rpc::arm_or_leave(*parts_.in, set, incoming_ == nullptr)) return false;
    return parts_.out == nullptr || parts_.out->arm_in(set, incoming_ != nullptr);
  };
  std::function<bool()> done_fn = [this] { return stop_requested_.load(); };
  const std::shared_ptr<net::Event> wake = wake_;
  Result<void> ended = begin();
  if (ended.ok()) {
    ended = co_await poll_until(env, *wake, poll_fn, arm_fn, done_fn, nullptr, arm_in);
  }
  stats_[0].transport = parts_.in->transport();
  stats_[0].counters = parts_.in->counters();
  if (parts_.out != nullptr) {
    stats_[1].transport = parts_.out->transport();
    stats_[1].counters = parts_.out->counters();
  }
  // Here, on their own loop, where a handler of theirs may still be due.
  parts_.in.reset();
  parts_.out.reset();
  if (parts_.group != nullptr) parts_.group->disconnect();
  co_return ended;
}

void Stage::wake() {
  if (wake_ != nullptr) wake_->notify_all();
}

}  // namespace recua::cluster
