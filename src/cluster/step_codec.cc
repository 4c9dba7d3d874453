#include "cluster/step_codec.h"

#include <bit>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

using model::OutputRequest;
using model::SequenceOp;
using model::SequencePart;
using model::StepBatch;
using model::StepOutput;
using model::StepResult;

constexpr std::size_t kFailureBytesMax = 2048;

Error bad_field(const char* field, const ByteReader& reader) {
  return Error{ErrorCode::kProtocol,
               fmt::format("step descriptor: bad {} at byte {}", field, reader.position())};
}

/// A count of items of at least item_bytes each, which must still be there.
std::optional<std::uint32_t> read_count(ByteReader& reader, std::size_t item_bytes) {
  const auto n = reader.read<std::uint32_t>();
  if (!n || *n > reader.remaining() / item_bytes) return std::nullopt;
  return n;
}

template <class T>
bool read_array(ByteReader& reader, std::uint32_t n, std::vector<T>& out) {
  const auto bytes = reader.take(std::uint64_t{n} * sizeof(T));
  if (!bytes) return false;
  out.resize(n);
  if (n != 0) std::memcpy(out.data(), bytes->data(), bytes->size());
  return true;
}

/// Reads the fields in order; false when the bytes end before.
template <class... T>
bool read_all(ByteReader& reader, T&... fields) {
  const auto read_one = [&reader](auto& field) {
    const auto value = reader.read<std::remove_reference_t<decltype(field)>>();
    if (value) field = *value;
    return value.has_value();
  };
  return (read_one(fields) && ...);
}

void encode_sampling(const sampling::SamplingParams& p, ByteWriter& out) {
  out.write(p.temperature);
  out.write(p.top_k);
  out.write(p.top_p);
  out.write(p.min_p);
  out.write(p.typical_p);
  out.write(p.repeat_penalty);
  out.write(p.frequency_penalty);
  out.write(p.presence_penalty);
  out.write(p.repeat_last_n);
  out.write(p.seed);
  out.write(p.choice);
  out.write(static_cast<std::uint32_t>(p.logit_bias.size()));
  for (const sampling::LogitBias& bias : p.logit_bias) {
    out.write(bias.id);
    out.write(bias.bias);
  }
}

bool decode_sampling(ByteReader& reader, sampling::SamplingParams& p) {
  if (!read_all(reader, p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p, p.repeat_penalty,
                p.frequency_penalty, p.presence_penalty, p.repeat_last_n, p.seed, p.choice)) {
    return false;
  }
  const auto n = read_count(reader, 8);
  if (!n) return false;
  p.logit_bias.resize(*n);
  for (sampling::LogitBias& bias : p.logit_bias) {
    if (!read_all(reader, bias.id, bias.bias)) return false;
  }
  return true;
}

bool decode_op(ByteReader& reader, SequenceOp& op) {
  std::uint32_t kind = 0;
  if (!read_all(reader, kind, op.seq, op.source, op.n_tokens, op.page)) return false;
  if (kind < 1 || kind > 3) return false;
  op.kind = static_cast<SequenceOp::Kind>(kind);
  return true;
}

bool decode_part(ByteReader& reader, SequencePart& part) {
  std::uint32_t n_tokens = 0;
  std::uint32_t n_pages = 0;
  return read_all(reader, part.seq, part.position, n_tokens, n_pages) &&
         read_array(reader, n_tokens, part.tokens) && read_array(reader, n_pages, part.new_pages);
}

bool decode_request(ByteReader& reader, OutputRequest& request) {
  std::uint32_t kind = 0;
  if (!read_all(reader, request.row, kind, request.target, request.n_top)) return false;
  if (kind < 1 || kind > 3) return false;
  request.kind = static_cast<OutputRequest::Kind>(kind);
  return request.kind != OutputRequest::Kind::kSample || decode_sampling(reader, request.sampling);
}

}  // namespace

void encode_batch(const StepBatch& batch, ByteWriter& out) {
  out.write(static_cast<std::uint32_t>(batch.ops.size()));
  for (const SequenceOp& op : batch.ops) {
    out.write(static_cast<std::uint32_t>(op.kind));
    out.write(op.seq);
    out.write(op.source);
    out.write(op.n_tokens);
    out.write(op.page);
  }
  out.write(static_cast<std::uint32_t>(batch.parts.size()));
  for (const SequencePart& part : batch.parts) {
    out.write(part.seq);
    out.write(part.position);
    out.write(static_cast<std::uint32_t>(part.tokens.size()));
    out.write(static_cast<std::uint32_t>(part.new_pages.size()));
    out.write_bytes(std::as_bytes(std::span(part.tokens)));
    out.write_bytes(std::as_bytes(std::span(part.new_pages)));
  }
  out.write(static_cast<std::uint32_t>(batch.outputs.size()));
  for (const OutputRequest& request : batch.outputs) {
    out.write(request.row);
    out.write(static_cast<std::uint32_t>(request.kind));
    out.write(request.target);
    out.write(request.n_top);
    if (request.kind == OutputRequest::Kind::kSample) encode_sampling(request.sampling, out);
  }
}

Result<StepBatch> decode_batch(std::span<const std::byte> descriptor) {
  ByteReader reader(descriptor);
  StepBatch batch;
  const auto n_ops = read_count(reader, 20);
  if (!n_ops) return bad_field("number of operations", reader);
  batch.ops.resize(*n_ops);
  for (SequenceOp& op : batch.ops) {
    if (!decode_op(reader, op)) return bad_field("operation", reader);
  }
  const auto n_parts = read_count(reader, 16);
  if (!n_parts) return bad_field("number of parts", reader);
  batch.parts.resize(*n_parts);
  for (SequencePart& part : batch.parts) {
    if (!decode_part(reader, part)) return bad_field("part", reader);
  }
  const auto n_outputs = read_count(reader, 16);
  if (!n_outputs) return bad_field("number of outputs", reader);
  batch.outputs.resize(*n_outputs);
  for (OutputRequest& request : batch.outputs) {
    if (!decode_request(reader, request)) return bad_field("output request", reader);
  }
  if (reader.remaining() != 0) return bad_field("end (bytes are left over)", reader);
  return batch;
}

void encode_result(const StepResult& result, ByteWriter& out) {
  out.write(static_cast<std::uint32_t>(result.outputs.size()));
  for (const StepOutput& output : result.outputs) {
    out.write(output.row);
    out.write(output.id);
    out.write(output.logprob);
    out.write(std::uint32_t{output.logits.empty() ? 0U : 1U});
    out.write(static_cast<std::uint32_t>(output.top.size()));
    for (const model::TokenProbability& candidate : output.top) {
      out.write(candidate.id);
      out.write(candidate.logprob);
    }
  }
}

Result<StepResult> decode_result(std::span<const std::byte> descriptor,
                                 std::span<const std::byte> logits, std::size_t vocab_size) {
  ByteReader reader(descriptor);
  ByteReader logit_reader(logits);
  StepResult result;
  const auto n_outputs = read_count(reader, 20);
  if (!n_outputs) return bad_field("number of outputs", reader);
  result.outputs.resize(*n_outputs);
  for (StepOutput& output : result.outputs) {
    std::uint32_t has_logits = 0;
    if (!read_all(reader, output.row, output.id, output.logprob, has_logits) || has_logits > 1) {
      return bad_field("output", reader);
    }
    const auto n_top = read_count(reader, 8);
    if (!n_top) return bad_field("number of candidates", reader);
    output.top.resize(*n_top);
    for (model::TokenProbability& candidate : output.top) {
      if (!read_all(reader, candidate.id, candidate.logprob)) return bad_field("candidate", reader);
    }
    if (has_logits == 1 &&
        !read_array(logit_reader, static_cast<std::uint32_t>(vocab_size), output.logits)) {
      return bad_field("output (its logits are missing)", reader);
    }
  }
  if (reader.remaining() != 0 || logit_reader.remaining() != 0) {
    return bad_field("end (bytes are left over)", reader);
  }
  return result;
}

void encode_failure(const Error& error, ByteWriter& out) {
  out.write(static_cast<std::uint32_t>(error.code));
  out.write_bytes(as_bytes(std::string_view(error.message).substr(0, kFailureBytesMax)));
}

Error decode_failure(std::span<const std::byte> descriptor) {
  ByteReader reader(descriptor);
  const auto code = reader.read<std::uint32_t>();
  if (!code || *code > static_cast<std::uint32_t>(ErrorCode::kCancelled)) {
    return Error{ErrorCode::kProtocol, "step descriptor: a failure without a known error code"};
  }
  return Error{static_cast<ErrorCode>(*code),
               rpc::wire_text(as_text(*reader.take(reader.remaining())), kFailureBytesMax)};
}

}  // namespace recua::cluster
