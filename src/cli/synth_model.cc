#include "cli/synth_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "base/random.h"
#include "gguf/gguf_writer.h"
#include "model/hyperparams.h"
#include "quant/quantize.h"

namespace recua::cli {
namespace {

using gguf::Value;
using quant::DataType;

constexpr std::size_t kPoolRows = 64;
constexpr std::size_t kChunkBytes = std::size_t{8} << 20;
constexpr std::uint32_t kDimMax = 1U << 20;

bool has_experts(const SynthSpec& spec) { return spec.n_experts > 0; }
std::uint32_t head_dim(const SynthSpec& spec) {
  return spec.head_dim != 0 ? spec.head_dim : spec.hidden_size / spec.n_heads;
}

struct SynthTensor {
  std::string name;
  std::vector<std::uint64_t> shape;  // Row length first.
  float mean = 0.0F;
  float deviation = 0.0F;
};

/// Matrices keep the size of what they multiply: deviation 1 / sqrt(row). Those that add to the
/// residual stream are smaller, by the square root of how many there are, so that it does not grow.
std::vector<SynthTensor> list_tensors(const SynthSpec& spec) {
  const std::uint64_t hidden = spec.hidden_size;
  const std::uint64_t q = std::uint64_t{spec.n_heads} * head_dim(spec);
  const std::uint64_t kv = std::uint64_t{spec.n_kv_heads} * head_dim(spec);
  const std::uint64_t ffn = spec.ffn_size;
  const float branch = 1.0F / std::sqrt(2.0F * static_cast<float>(spec.n_layers));
  std::vector<SynthTensor> out;
  const auto matrix = [&out](std::string name, std::vector<std::uint64_t> shape,
                             float gain = 1.0F) {
    const float deviation = gain / std::sqrt(static_cast<float>(shape[0]));
    out.push_back({.name = std::move(name), .shape = std::move(shape), .deviation = deviation});
  };
  const auto vector = [&out](std::string name, std::uint64_t n, float mean, float deviation) {
    out.push_back({.name = std::move(name), .shape = {n}, .mean = mean, .deviation = deviation});
  };
  matrix("token_embd.weight", {hidden, spec.vocab_size});
  for (std::uint32_t i = 0; i < spec.n_layers; ++i) {
    const std::string p = fmt::format("blk.{}.", i);
    vector(p + "attn_norm.weight", hidden, 1.0F, 0.05F);
    matrix(p + "attn_q.weight", {hidden, q});
    matrix(p + "attn_k.weight", {hidden, kv});
    matrix(p + "attn_v.weight", {hidden, kv});
    if (spec.arch == "qwen2") {
      vector(p + "attn_q.bias", q, 0.0F, 0.1F);
      vector(p + "attn_k.bias", kv, 0.0F, 0.1F);
      vector(p + "attn_v.bias", kv, 0.0F, 0.1F);
    }
    if (spec.arch == "qwen3" || spec.arch == "qwen3moe") {
      vector(p + "attn_q_norm.weight", head_dim(spec), 1.0F, 0.05F);
      vector(p + "attn_k_norm.weight", head_dim(spec), 1.0F, 0.05F);
    }
    matrix(p + "attn_output.weight", {q, hidden}, branch);
    vector(p + "ffn_norm.weight", hidden, 1.0F, 0.05F);
    if (has_experts(spec)) {
      matrix(p + "ffn_gate_inp.weight", {hidden, spec.n_experts});
      matrix(p + "ffn_gate_exps.weight", {hidden, ffn, spec.n_experts});
      matrix(p + "ffn_up_exps.weight", {hidden, ffn, spec.n_experts});
      matrix(p + "ffn_down_exps.weight", {ffn, hidden, spec.n_experts}, branch);
    } else {
      matrix(p + "ffn_gate.weight", {hidden, ffn});
      matrix(p + "ffn_up.weight", {hidden, ffn});
      matrix(p + "ffn_down.weight", {ffn, hidden}, branch);
    }
  }
  vector("output_norm.weight", hidden, 1.0F, 0.05F);
  if (!spec.tied) matrix("output.weight", {hidden, spec.vocab_size}, 2.0F);
  return out;
}

model::HyperParams hyperparams_of(const SynthSpec& spec) {
  model::HyperParams hp;
  hp.architecture = model::find_architecture(spec.arch);
  hp.name = "synthetic (random weights)";
  hp.vocab_size = spec.vocab_size;
  hp.n_ctx_train = spec.n_ctx;
  hp.n_layers = spec.n_layers;
  hp.hidden_size = spec.hidden_size;
  hp.n_heads = spec.n_heads;
  hp.n_kv_heads = spec.n_kv_heads;
  hp.head_dim = head_dim(spec);
  hp.rope_dim = hp.head_dim;
  hp.rope_theta = static_cast<float>(spec.rope_theta);
  hp.n_experts = spec.n_experts;
  hp.n_experts_used = spec.n_experts_used;
  (has_experts(spec) ? hp.expert_ffn_size : hp.ffn_size) = spec.ffn_size;
  return hp;
}

/// The i-th of a list of different words: syllables are the digits of i.
std::string filler_word(std::uint32_t i) {
  constexpr std::string_view kConsonants = "bcdfghjklmnprstvwxyz";
  constexpr std::string_view kVowels = "aeiou";
  std::string out;
  do {
    out += kConsonants[i % 20];
    out += kVowels[i / 20 % 5];
    i /= 100;
  } while (i > 0);
  return out;
}

void add_vocabulary(const SynthSpec& spec, gguf::GgufWriter& writer) {
  constexpr std::int32_t kNormal = 1;
  constexpr std::int32_t kUnknown = 2;
  constexpr std::int32_t kControl = 3;
  constexpr std::int32_t kByte = 6;
  const std::string mark = "\xe2\x96\x81";  // U+2581, which stands for a space.
  std::vector<std::string> words = {"<unk>", "<s>", "</s>"};
  std::vector<std::int32_t> types = {kUnknown, kControl, kControl};
  for (int byte = 0; byte < 256; ++byte) {
    words.push_back(fmt::format("<0x{:02X}>", byte));
    types.push_back(kByte);
  }
  words.push_back(mark);
  // A word is only found in a text if the pieces that make it up are tokens: these never are, so
  // they cost the tokenizer nothing.
  for (std::uint32_t i = 0; words.size() < spec.vocab_size; ++i)
    words.push_back(mark + filler_word(i));
  types.resize(words.size(), kNormal);
  std::vector<float> scores(words.size(), 0.0F);
  for (std::size_t i = kSynthVocabMin - 1; i < scores.size(); ++i)
    scores[i] = -static_cast<float>(i);
  const std::vector<std::string_view> views(words.begin(), words.end());
  writer.add(gguf::keys::kTokenizerModel, "llama");
  writer.add(gguf::keys::kTokens, views);
  writer.add(gguf::keys::kTokenScores, scores);
  writer.add(gguf::keys::kTokenTypes, types);
  writer.add(gguf::keys::kUnknownId, Value(std::uint32_t{0}));
  writer.add(gguf::keys::kBosId, Value(std::uint32_t{1}));
  writer.add(gguf::keys::kEosId, Value(std::uint32_t{2}));
  writer.add(gguf::keys::kAddBos, Value(true));
  writer.add(gguf::keys::kAddEos, Value(false));
}

/// Encoded random rows of one type, length and size.
struct Pool {
  std::size_t row_bytes = 0;
  std::size_t piece_bytes = 0;  // Whole blocks, and a divisor of row_bytes.
  std::vector<std::byte> bytes;
};

/// Elements of a piece: few, so that rows differ, but not so few that copying them takes long.
std::size_t piece_size(DataType type, std::size_t n) {
  for (const std::size_t size : {std::size_t{256}, std::size_t{32}}) {
    const bool too_few = size == 256 && n < 1024 && quant::traits(type).block_size < size;
    if (!too_few && n % size == 0 && size % quant::traits(type).block_size == 0) return size;
  }
  return quant::traits(type).block_size;
}

/// How many rows make a pool from which n_rows rows of n can be drawn that differ.
std::size_t pool_rows(DataType type, std::size_t n, std::uint64_t n_rows) {
  const std::size_t n_pieces = n / piece_size(type, n);
  if (n_pieces >= 4) return kPoolRows;
  const std::uint64_t rows_max = n_pieces == 1 ? 65536 : 4096;
  return static_cast<std::size_t>(std::clamp<std::uint64_t>(n_rows, kPoolRows, rows_max));
}

Pool make_pool(DataType type, std::size_t n, float mean, float deviation, std::size_t n_rows,
               Rng& rng) {
  Pool pool{.row_bytes = quant::row_bytes(type, n),
            .piece_bytes = quant::row_bytes(type, piece_size(type, n)),
            .bytes = {}};
  pool.bytes.resize(pool.row_bytes * n_rows);
  std::vector<float> row(n);
  for (std::size_t i = 0; i < n_rows; ++i) {
    for (float& v : row) v = mean + deviation * static_cast<float>(rng.normal());
    quant::quantize_row(type, row.data(), n, pool.bytes.data() + i * pool.row_bytes);
  }
  return pool;
}

/// Row i: its first piece is the i-th of the pool, the others are any. (Whole rows of the pool
/// would repeat in a large vocabulary, and equal rows of the output matrix are equal logits.)
void draw_row(const Pool& pool, std::uint64_t i, Rng& rng, std::byte* out) {
  const std::size_t n_pieces = pool.bytes.size() / pool.piece_bytes;
  std::size_t piece = i % n_pieces;
  for (std::size_t at = 0; at < pool.row_bytes; at += pool.piece_bytes) {
    std::memcpy(out + at, pool.bytes.data() + piece * pool.piece_bytes, pool.piece_bytes);
    piece = rng.below(n_pieces);
  }
}

/// Matrices of the same type, row length and size share a pool.
class PoolSet {
 public:
  explicit PoolSet(Rng& rng) : rng_(rng) {}
  const Pool& get(DataType type, std::size_t n, std::uint64_t n_rows, float deviation) {
    auto& pool = pools_[{type, n, deviation}];
    if (!pool) pool = make_pool(type, n, 0.0F, deviation, pool_rows(type, n, n_rows), rng_);
    return *pool;
  }

 private:
  Rng& rng_;
  std::map<std::tuple<DataType, std::size_t, float>, std::optional<Pool>> pools_;
};

Error bad_flag(std::string_view flag, std::uint64_t value, std::string_view right) {
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{} is {}, must be {}", flag, value, right)};
}

}  // namespace

Result<void> check_spec(const SynthSpec& spec) {
  constexpr std::array kArchs = {"llama", "qwen2", "qwen3", "qwen3moe"};
  if (std::ranges::find(kArchs, spec.arch) == kArchs.end()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--arch is {}, must be llama, qwen2, qwen3 or qwen3moe", spec.arch)};
  }
  const auto range = [](std::string_view flag, std::uint64_t value, std::uint64_t low,
                        std::uint64_t high) -> Result<void> {
    if (value >= low && value <= high) return ok();
    return bad_flag(flag, value, fmt::format("from {} to {}", low, high));
  };
  RECUA_RETURN_IF_ERROR(range("--layers", spec.n_layers, 1, 4096));
  RECUA_RETURN_IF_ERROR(range("--dim", spec.hidden_size, 2, kDimMax));
  RECUA_RETURN_IF_ERROR(range("--ffn", spec.ffn_size, 1, kDimMax));
  RECUA_RETURN_IF_ERROR(range("--heads", spec.n_heads, 1, 65536));
  RECUA_RETURN_IF_ERROR(range("--kv-heads", spec.n_kv_heads, 1, spec.n_heads));
  RECUA_RETURN_IF_ERROR(range("--vocab", spec.vocab_size, kSynthVocabMin, 4U << 20));
  RECUA_RETURN_IF_ERROR(range("--ctx", spec.n_ctx, 1, 1U << 30));
  RECUA_RETURN_IF_ERROR(range("--experts", spec.n_experts, 0, 1024));
  if (spec.n_heads % spec.n_kv_heads != 0) {
    return bad_flag("--kv-heads", spec.n_kv_heads,
                    fmt::format("a divisor of --heads ({})", spec.n_heads));
  }
  if (spec.head_dim == 0 && spec.hidden_size % spec.n_heads != 0) {
    return bad_flag("--heads", spec.n_heads,
                    fmt::format("a divisor of --dim ({}), or give --head-dim", spec.hidden_size));
  }
  RECUA_RETURN_IF_ERROR(range("--head-dim", head_dim(spec), 2, 65536));
  if (head_dim(spec) % 2 != 0)
    return bad_flag("--head-dim", head_dim(spec), "even: RoPE turns pairs");
  if (!(spec.rope_theta >= 1.0 && spec.rope_theta <= 1e12)) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--rope-theta is {}, must be from 1 to 1e12", spec.rope_theta)};
  }
  const bool takes_experts = spec.arch == "llama" || spec.arch == "qwen3moe";
  if (has_experts(spec) && !takes_experts) {
    return bad_flag("--experts", spec.n_experts, fmt::format("0 for --arch {}", spec.arch));
  }
  if (!has_experts(spec)) {
    if (spec.arch == "qwen3moe") return bad_flag("--experts", 0, "at least 1 for --arch qwen3moe");
    return ok();
  }
  return range("--experts-used", spec.n_experts_used, 1, spec.n_experts);
}

Result<SynthResult> write_synth_model(const SynthSpec& spec, const QuantizeMix& mix,
                                      const std::filesystem::path& path,
                                      const SynthProgress& progress) {
  gguf::GgufWriter writer;
  model::add_hyperparams(hyperparams_of(spec), writer);
  writer.add(gguf::keys::kFileType, Value(mix.file_type));
  writer.add(gguf::keys::kQuantizationVersion, Value(std::uint32_t{2}));
  add_vocabulary(spec, writer);
  const MixModel model{.n_layers = spec.n_layers,
                       .n_heads = spec.n_heads,
                       .n_kv_heads = spec.n_kv_heads,
                       .n_experts = spec.n_experts,
                       .tied = spec.tied};
  const std::vector<SynthTensor> tensors = list_tensors(spec);
  std::vector<DataType> types;
  SynthResult result;
  for (const SynthTensor& tensor : tensors) {
    const MixTensor input{
        .name = tensor.name, .n_dims = tensor.shape.size(), .row = tensor.shape[0]};
    types.push_back(mix_applies(input) ? mixed_type(mix, model, input, false) : DataType::kF32);
    writer.add_tensor(tensor.name, types.back(), tensor.shape);
    std::uint64_t n = 1;
    for (const std::uint64_t dim : tensor.shape) n *= dim;
    result.n_weights += n;
  }
  result.n_bytes = writer.file_bytes();
  RECUA_RETURN_IF_ERROR(writer.begin(path));

  Rng rng(spec.seed);
  PoolSet pools(rng);
  std::vector<std::byte> chunk;
  std::uint64_t done = 0;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const SynthTensor& tensor = tensors[t];
    const std::size_t n = tensor.shape[0];
    std::uint64_t n_rows = 1;
    for (std::size_t i = 1; i < tensor.shape.size(); ++i) n_rows *= tensor.shape[i];
    std::optional<Pool> own;  // Vectors are one row: drawn for themselves.
    if (tensor.shape.size() == 1)
      own = make_pool(types[t], n, tensor.mean, tensor.deviation, 1, rng);
    const Pool& pool = own ? *own : pools.get(types[t], n, n_rows, tensor.deviation);
    const std::uint64_t rows_max = std::max<std::uint64_t>(1, kChunkBytes / pool.row_bytes);
    for (std::uint64_t row = 0; row < n_rows; row += rows_max) {
      if (progress) progress(done, result.n_bytes, tensor.name);
      const auto n_now = static_cast<std::size_t>(std::min(rows_max, n_rows - row));
      chunk.resize(n_now * pool.row_bytes);
      for (std::size_t i = 0; i < n_now; ++i)
        draw_row(pool, row + i, rng, chunk.data() + i * pool.row_bytes);
      RECUA_RETURN_IF_ERROR(writer.write(chunk));
      done += chunk.size();
    }
  }
  if (progress) progress(result.n_bytes, result.n_bytes, "to the disk");
  RECUA_RETURN_IF_ERROR(writer.finish());
  return result;
}

}  // namespace recua::cli
