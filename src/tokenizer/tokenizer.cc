// Cuts a text at its special tokens and gives what lies between to the vocabulary's own algorithm.
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "tokenizer/byte_level_bpe.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/special_tokens.h"
#include "tokenizer/vocabulary.h"

namespace recua::tokenizer {
namespace {

bool is_parsed(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUserDefined ||
         type == TokenType::kUnknown;
}

std::optional<TokenId> present(TokenId id) {
  return id == kNoToken ? std::nullopt : std::optional<TokenId>(id);
}

}  // namespace

struct Tokenizer::State {
  explicit State(Vocabulary checked) : vocabulary(std::move(checked)) {}

  void encode_plain(std::string_view text, bool normalize, bool from_start,
                    std::vector<TokenId>& out) const {
    if (text.empty()) return;
    if (const auto* bpe = std::get_if<ByteLevelBpe>(&algorithm)) {
      return bpe->encode(text, normalize, out);
    }
    std::get<SentencePiece>(algorithm).encode(text, space_prefix && from_start, out);
  }

  Vocabulary vocabulary;
  std::variant<std::monostate, SentencePiece, ByteLevelBpe> algorithm;  // Borrows vocabulary.
  SpecialTokens specials;        // Control, user-defined and unknown tokens.
  SpecialTokens user_defined;    // Those alone.
  std::vector<TokenId> end_ids;  // Sorted.
  bool add_bos = false;
  bool add_eos = false;
  bool space_prefix = false;
};

Tokenizer::Tokenizer(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::create(VocabData data) {
  RECUA_ASSIGN_OR_RETURN(Vocabulary checked, Vocabulary::create(data));
  auto state = std::make_unique<State>(std::move(checked));
  const Vocabulary& vocabulary = state->vocabulary;
  const bool sentence_piece = vocabulary.kind() == VocabKind::kSentencePiece;
  bool usually_adds_bos = sentence_piece;
  if (sentence_piece) {
    state->algorithm.emplace<SentencePiece>(vocabulary);
  } else {
    RECUA_ASSIGN_OR_RETURN(ByteLevelBpe bpe, ByteLevelBpe::create(data, vocabulary));
    usually_adds_bos = bpe.traits().add_bos;
    state->algorithm.emplace<ByteLevelBpe>(std::move(bpe));
  }
  state->add_bos = data.add_bos.value_or(usually_adds_bos) && vocabulary.bos != kNoToken;
  state->add_eos = data.add_eos.value_or(false) && vocabulary.eos != kNoToken;
  state->space_prefix = sentence_piece && data.add_space_prefix.value_or(true);

  for (std::size_t i = 0; i < vocabulary.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (!is_parsed(vocabulary.type(id)) || vocabulary.piece(id).empty()) continue;
    state->specials.add(vocabulary.piece(id), id);
    if (vocabulary.type(id) == TokenType::kUserDefined) {
      state->user_defined.add(vocabulary.piece(id), id);
    }
    if (is_end_name(vocabulary.piece(id))) state->end_ids.push_back(id);
  }
  for (const TokenId id : {vocabulary.eos, vocabulary.eot, vocabulary.eom}) {
    if (id != kNoToken) state->end_ids.push_back(id);
  }
  std::ranges::sort(state->end_ids);
  return Tokenizer(std::unique_ptr<const State>(std::move(state)));
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<TokenId> ids;
  if (options.add_bos && state_->add_bos) ids.push_back(state_->vocabulary.bos);
  const SpecialTokens& specials = options.parse_special ? state_->specials : state_->user_defined;
  std::size_t at = 0;
  bool from_start = options.from_start;
  while (at < text.size()) {
    const auto special = specials.find(text, at);
    if (!special) break;
    state_->encode_plain(text.substr(at, special->offset - at), options.normalize, from_start, ids);
    ids.push_back(special->id);
    at = special->offset + special->n_bytes;
    from_start = true;  // Behind a special token a text begins again.
  }
  state_->encode_plain(text.substr(at), options.normalize, from_start, ids);
  if (options.add_bos && state_->add_eos) ids.push_back(state_->vocabulary.eos);
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
  PieceReader reader(*this, options);
  std::string out;
  for (const TokenId id : ids) out += reader.next(id);
  return out;
}

std::string_view Tokenizer::piece(TokenId id, bool special_text) const {
  const Vocabulary& vocabulary = state_->vocabulary;
  if (!vocabulary.contains(id) || (!special_text && vocabulary.is_special(id))) return {};
  return vocabulary.piece(id);
}

std::optional<TokenId> Tokenizer::piece_to_id(std::string_view bytes) const {
  const Vocabulary& vocabulary = state_->vocabulary;
  TokenId id = vocabulary.find_normal(bytes);
  if (id == kNoToken) id = vocabulary.find_special(bytes);
  if (id == kNoToken && bytes.size() == 1) {
    id = vocabulary.byte_token(static_cast<unsigned char>(bytes.front()));
  }
  return present(id);
}

bool Tokenizer::is_end_of_generation(TokenId id) const {
  return std::ranges::binary_search(state_->end_ids, id);
}
bool Tokenizer::special(TokenId id) const {
  return state_->vocabulary.contains(id) && state_->vocabulary.is_special(id);
}
TokenType Tokenizer::type(TokenId id) const {
  return state_->vocabulary.contains(id) ? state_->vocabulary.type(id) : TokenType::kUnused;
}
std::size_t Tokenizer::size() const { return state_->vocabulary.size(); }
std::optional<TokenId> Tokenizer::bos() const { return present(state_->vocabulary.bos); }
std::optional<TokenId> Tokenizer::eos() const { return present(state_->vocabulary.eos); }
std::optional<TokenId> Tokenizer::eot() const { return present(state_->vocabulary.eot); }
bool Tokenizer::adds_bos() const { return state_->add_bos; }
bool Tokenizer::adds_eos() const { return state_->add_eos; }
bool Tokenizer::adds_space_prefix() const { return state_->space_prefix; }

PieceReader::PieceReader(const Tokenizer& tokenizer, const DecodeOptions& options)
    : tokenizer_(&tokenizer),
      special_text_(options.special_text),
      drop_space_(options.from_start && tokenizer.adds_space_prefix()) {}

std::string_view PieceReader::next(TokenId id) {
  std::string_view piece = tokenizer_->piece(id, special_text_);
  if (is_parsed(tokenizer_->type(id))) {
    drop_space_ = tokenizer_->adds_space_prefix();
    return piece;
  }
  if (drop_space_ && piece.starts_with(' ')) piece.remove_prefix(1);
  drop_space_ = false;
  return piece;
}

}  // namespace recua::tokenizer
