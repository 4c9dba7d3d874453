#include "cluster/wire.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/bytes.h"
#include "cluster/plan.h"
#include "kernels/attention.h"

namespace recua::cluster {
namespace {

constexpr std::uint32_t kLayersMax = 10'000;
constexpr std::uint32_t kContextMax = 1U << 24;
constexpr std::uint32_t kPagesMax = 1U << 26;
constexpr std::uint32_t kPageTokensMax = 4096;
constexpr std::uint32_t kMicroBatchMax = 1U << 16;
constexpr std::uint32_t kPortMax = 65535;
constexpr std::size_t kHostBytesMax = 255;

Error bad_field(std::string_view field, std::uint64_t value, std::uint64_t low,
                std::uint64_t high) {
  return Error{ErrorCode::kProtocol,
               fmt::format("{} is {}, must be from {} to {}", field, value, low, high)};
}

Result<void> check_range(std::string_view field, std::uint64_t value, std::uint64_t low,
                         std::uint64_t high) {
  if (value < low || value > high) return bad_field(field, value, low, high);
  return ok();
}

Result<quant::DataType> data_type(std::string_view field, std::uint32_t number) {
  if (const auto type = quant::data_type_from_number(number)) return *type;
  return Error{ErrorCode::kUnsupported, fmt::format("{}: unknown data type {}", field, number)};
}

Result<quant::DataType> cache_type(std::string_view field, std::uint32_t number) {
  RECUA_ASSIGN_OR_RETURN(const quant::DataType type, data_type(field, number));
  if (!kernels::is_cache_type(type)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: {} cannot hold a cache, use F16, F32, Q8_0 or Q4_0", field,
                             quant::traits(type).name)};
  }
  return type;
}

}  // namespace

void to_wire(const TensorSpec& spec, wire::Tensor& out) {
  out.set_name(spec.name);
  out.set_type(static_cast<std::uint32_t>(spec.type));
  out.add_dims(spec.n_in);
  out.add_dims(spec.n_out);
  out.add_dims(spec.n_experts);
  out.set_bytes(spec.bytes);
  out.set_offset(spec.offset);
  out.set_shard(spec.file);
  for (const Digest& digest : spec.chunks) out.add_chunk_sha256(std::string(as_text(digest)));
}

Result<TensorSpec> from_wire(const wire::Tensor& tensor) {
  TensorSpec spec;
  spec.name = tensor.name();
  RECUA_ASSIGN_OR_RETURN(spec.type, data_type("tensor " + tensor.name(), tensor.type()));
  if (tensor.dims_size() < 1 || tensor.dims_size() > 3) {
    return bad_field("tensor " + tensor.name() + ": dimensions",
                     static_cast<std::uint64_t>(tensor.dims_size()), 1, 3);
  }
  spec.n_in = tensor.dims(0);
  spec.n_out = tensor.dims_size() > 1 ? tensor.dims(1) : 1;
  spec.n_experts = tensor.dims_size() > 2 ? tensor.dims(2) : 1;
  spec.bytes = tensor.bytes();
  spec.offset = tensor.offset();
  spec.file = tensor.shard();
  for (const std::string& hash : tensor.chunk_sha256()) {
    RECUA_RETURN_IF_ERROR(check_range("tensor " + tensor.name() + ": hash bytes", hash.size(),
                                      sizeof(Digest), sizeof(Digest)));
    Digest digest{};
    std::memcpy(digest.data(), hash.data(), digest.size());
    spec.chunks.push_back(digest);
  }
  RECUA_RETURN_IF_ERROR(check_spec(spec));
  return spec;
}

void to_wire(const model::Slice& slice, wire::Slice& out) {
  out.set_layer_begin(slice.layer_begin);
  out.set_layer_end(slice.layer_end);
  out.set_n_layers(slice.n_layers);
  out.set_rank(slice.rank);
  out.set_n_ranks(slice.n_ranks);
  for (const model::Share& share : slice.shares) {
    wire::Share& entry = *out.add_shares();
    entry.set_heads_begin(share.heads.begin);
    entry.set_heads_end(share.heads.end);
    entry.set_kv_heads_begin(share.kv_heads.begin);
    entry.set_kv_heads_end(share.kv_heads.end);
    entry.set_ffn_begin(share.ffn.begin);
    entry.set_ffn_end(share.ffn.end);
    entry.set_vocab_begin(share.vocab.begin);
    entry.set_vocab_end(share.vocab.end);
  }
}

Result<model::Slice> from_wire(const wire::Slice& slice) {
  RECUA_RETURN_IF_ERROR(check_range("slice.n_layers", slice.n_layers(), 1, kLayersMax));
  RECUA_RETURN_IF_ERROR(check_range("slice.layer_end", slice.layer_end(), 1, slice.n_layers()));
  RECUA_RETURN_IF_ERROR(
      check_range("slice.layer_begin", slice.layer_begin(), 0, slice.layer_end() - 1));
  RECUA_RETURN_IF_ERROR(check_range("slice.n_ranks", slice.n_ranks(), 1, kRanksMax));
  RECUA_RETURN_IF_ERROR(check_range("slice.rank", slice.rank(), 0, slice.n_ranks() - 1));
  const std::uint32_t n_shares = slice.n_ranks() == 1 ? 0 : slice.n_ranks();
  RECUA_RETURN_IF_ERROR(check_range("slice.shares", static_cast<std::uint64_t>(slice.shares_size()),
                                    n_shares, n_shares));
  model::Slice out{.layer_begin = slice.layer_begin(),
                   .layer_end = slice.layer_end(),
                   .n_layers = slice.n_layers(),
                   .rank = slice.rank(),
                   .n_ranks = slice.n_ranks()};
  for (const wire::Share& share : slice.shares()) {
    out.shares.push_back({.heads = {share.heads_begin(), share.heads_end()},
                          .kv_heads = {share.kv_heads_begin(), share.kv_heads_end()},
                          .ffn = {share.ffn_begin(), share.ffn_end()},
                          .vocab = {share.vocab_begin(), share.vocab_end()}});
  }
  return out;
}

void to_wire(const model::SliceOptions& options, wire::SliceOptions& out) {
  out.set_n_ctx(options.n_ctx);
  out.set_n_pages(options.n_pages);
  out.set_page_tokens(options.page_tokens);
  out.set_n_ubatch(options.n_ubatch);
  out.set_n_logit_rows(options.n_logit_rows);
  out.set_k_type(static_cast<std::uint32_t>(options.k_type));
  out.set_v_type(static_cast<std::uint32_t>(options.v_type));
}

Result<model::SliceOptions> from_wire(const wire::SliceOptions& options) {
  RECUA_RETURN_IF_ERROR(check_range("options.n_ctx", options.n_ctx(), 1, kContextMax));
  RECUA_RETURN_IF_ERROR(check_range("options.n_pages", options.n_pages(), 1, kPagesMax));
  RECUA_RETURN_IF_ERROR(
      check_range("options.page_tokens", options.page_tokens(), 1, kPageTokensMax));
  RECUA_RETURN_IF_ERROR(check_range("options.n_ubatch", options.n_ubatch(), 1, kMicroBatchMax));
  RECUA_RETURN_IF_ERROR(
      check_range("options.n_logit_rows", options.n_logit_rows(), 1, kMicroBatchMax));
  model::SliceOptions out{.n_ctx = options.n_ctx(),
                          .n_pages = options.n_pages(),
                          .page_tokens = options.page_tokens(),
                          .n_ubatch = options.n_ubatch(),
                          .n_logit_rows = options.n_logit_rows()};
  RECUA_ASSIGN_OR_RETURN(out.k_type, cache_type("options.k_type", options.k_type()));
  RECUA_ASSIGN_OR_RETURN(out.v_type, cache_type("options.v_type", options.v_type()));
  return out;
}

std::string secret_to_wire(const rpc::Secret& secret) { return std::string(as_text(secret)); }

Result<rpc::Secret> secret_from_wire(const std::string& bytes) {
  rpc::Secret secret{};
  RECUA_RETURN_IF_ERROR(check_range("secret bytes", bytes.size(), secret.size(), secret.size()));
  std::memcpy(secret.data(), bytes.data(), secret.size());
  return secret;
}

Result<net::Endpoint> endpoint_from_wire(std::string_view message, const std::string& host,
                                         std::uint32_t port) {
  if (port == 0 || port > kPortMax || host.empty() || host.size() > kHostBytesMax) {
    return Error{ErrorCode::kProtocol, fmt::format("{}: host or port is out of range", message)};
  }
  return net::Endpoint{.host = host, .port = static_cast<std::uint16_t>(port)};
}

}  // namespace recua::cluster
