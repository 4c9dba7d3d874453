#include "cluster/stage.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "cluster/poll_loop.h"
#include "cluster/step_codec.h"

namespace recua::cluster {
namespace {

/// Messages that may be computed ahead of what the channel has taken.
constexpr std::size_t kOutBuffers = 3;

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

Result<std::unique_ptr<Stage>> Stage::create(Parts parts) {
  const model::SliceRunner& runner = *parts.runner;
  auto stage = std::unique_ptr<Stage>(new Stage(std::move(parts)));
  stage->buffers_.resize(kOutBuffers);
  if (!runner.slice().is_last()) {
    const std::size_t rows = runner.options().n_ubatch;
    const std::size_t cols = runner.hidden_size();
    RECUA_ASSIGN_OR_RETURN(
        stage->memory_, stage->parts_.device->allocate(kOutBuffers * rows * cols * sizeof(float)));
    for (std::size_t i = 0; i < kOutBuffers; ++i) {
      stage->buffers_[i].rows = {stage->memory_.get(), i * rows * cols, rows, cols, cols};
    }
  }
  return stage;
}

Result<bool> Stage::poll() {
  RECUA_ASSIGN_OR_RETURN(bool moved, parts_.out->poll());
  if (!incoming_.has_value()) {
    RECUA_ASSIGN_OR_RETURN(incoming_, parts_.in->poll());
    moved = moved || incoming_.has_value();
  }
  const bool buffer_free = parts_.out->n_sent() - parts_.out->n_completed() < buffers_.size();
  if (incoming_.has_value() && buffer_free && parts_.out->credits() > 0) {
    RECUA_RETURN_IF_ERROR(work());
    moved = true;
  }
  return moved;
}

Result<void> Stage::work() {
  const rpc::Incoming incoming = *std::exchange(incoming_, std::nullopt);
  OutBuffer& buffer = buffers_[parts_.out->n_sent() % buffers_.size()];
  buffer.descriptor.clear();
  rpc::TensorHeader header = incoming.header;
  header.n_rows = 0;
  header.row_bytes = 0;

  if (incoming.header.kind == rpc::MessageKind::kFailure) {
    buffer.descriptor.write_bytes(incoming.descriptor);
    RECUA_RETURN_IF_ERROR(parts_.in->release(incoming.slot));
    return send(buffer, header, {});
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
    done = parts_.runner->run(
        batch, input, slice.is_last() || !fits ? buffer.rows : buffer.rows.slice_rows(0, n_rows),
        result_);
  }

  std::span<const std::byte> rows;
  if (!done.ok()) {
    header.kind = rpc::MessageKind::kFailure;
    encode_failure(std::move(done).error().within(parts_.name), buffer.descriptor);
  } else if (slice.is_last()) {
    header.kind = rpc::MessageKind::kResult;
    encode_result(result_, buffer.descriptor);
    buffer.logits.clear();
    for (const model::StepOutput& output : result_.outputs) {
      buffer.logits.insert(buffer.logits.end(), output.logits.begin(), output.logits.end());
    }
    header.n_rows = static_cast<std::uint32_t>(buffer.logits.size() / parts_.vocab_size);
    header.row_bytes =
        header.n_rows == 0 ? 0 : static_cast<std::uint32_t>(parts_.vocab_size * sizeof(float));
    rows = std::as_bytes(std::span(buffer.logits));
    if (rpc::kTensorHeaderBytes + rows.size() + buffer.descriptor.size() >
        parts_.out->ring().slot_bytes) {
      header.kind = rpc::MessageKind::kFailure;
      header.n_rows = 0;
      header.row_bytes = 0;
      rows = {};
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
    rows = std::span(buffer.rows.buffer->host() + buffer.rows.offset * sizeof(float),
                     n_rows * hidden * sizeof(float));
  }
  RECUA_RETURN_IF_ERROR(parts_.in->release(incoming.slot));
  return send(buffer, header, rows);
}

Result<void> Stage::send(OutBuffer& buffer, rpc::TensorHeader header,
                         std::span<const std::byte> rows) {
  header.session = parts_.id.session;
  header.epoch = parts_.id.epoch;
  header.data_type = static_cast<std::uint16_t>(quant::DataType::kF32);
  header.descriptor_bytes = static_cast<std::uint32_t>(buffer.descriptor.size());
  const rpc::Outgoing message{
      .header = header, .rows = rows, .descriptor = buffer.descriptor.bytes()};
  RECUA_ASSIGN_OR_RETURN(const bool sent, parts_.out->try_send(message));
  RECUA_CHECK(sent);  // poll() looked for a credit, and nobody else sends here.
  return ok();
}

boost::asio::awaitable<Result<void>> Stage::drive(net::Env env) {
  wake_ = std::make_shared<net::Event>(env.executor);
  std::function<Result<bool>()> poll_fn = [this] { return poll(); };
  std::function<void()> arm_fn = [this] {
    // With a message in hand, only the next stage can get us on: more input would wake us in vain.
    if (!incoming_.has_value()) parts_.in->arm([wake = wake_] { wake->notify_all(); });
    parts_.out->arm([wake = wake_] { wake->notify_all(); });
  };
  std::function<bool()> done_fn = [this] { return stop_requested_.load(); };
  const std::shared_ptr<net::Event> wake = wake_;
  Result<void> ended = co_await poll_until(env, *wake, poll_fn, arm_fn, done_fn);
  // Here, on their own loop, where a handler of theirs may still be due.
  parts_.in.reset();
  parts_.out.reset();
  co_return ended;
}

void Stage::wake() {
  if (wake_ != nullptr) wake_->notify_all();
}

}  // namespace recua::cluster
