#pragma once
/// A text file as examples to train on: token sequences, and which of their tokens enter the loss.
///
/// Plain text: the whole file is tokenized and cut into windows, each with n_ctx tokens to predict
/// (the last one with what is left). A vocabulary that puts BOS in front of a text gets it in front
/// of every window; otherwise a window begins with the last token of the one before. So each token
/// of the text is predicted once, the very first without BOS excepted.
/// JSONL: one object a line with the texts "prompt" and "reply"; other fields are ignored. An
/// example is [BOS] prompt reply end-of-text; the reply and its end enter the loss. Both texts are
/// tokenized apart from each other, since that is how a prompt reaches a model that then answers.
/// Text that spells a control token is text in both.
///
/// The last validation_share of the examples is for validation and is never trained on.
/// Memory: four bytes per token of the file, twice that and little more while it is read. Threads:
/// never changes after open(); any number of threads may read.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/tokenizer.h"
#include "train/text_file.h"

namespace recua::train {

/// Inputs are tokens[0 .. n - 1), targets are tokens[1 .. n); n is at least 2.
struct Example {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> counts;  // [n - 1]: 1 if target i, tokens[i + 1], enters the loss.
};

struct DatasetOptions {
  std::size_t n_ctx = 256;         // Inputs in an example at most. At least 1.
  double validation_share = 0.05;  // From 0 up to, not including, 1.
  DataFormat format = DataFormat::kByName;
};

class Dataset {
 public:
  /// kInvalidArgument: options out of range. kUnsupported: JSONL with a vocabulary that has no
  /// end-of-text token. kResourceExhausted: a line with more tokens than n_ctx has place for. And
  /// what TextFile says. All name the file and, where there is one, the line. The tokenizer is not
  /// kept.
  static Result<Dataset> open(const std::filesystem::path& path,
                              const tokenizer::Tokenizer& tokenizer, const DatasetOptions& options);

  /// Training examples come first, then those for validation.
  [[nodiscard]] std::size_t n_examples() const { return ranges_.size(); }
  [[nodiscard]] std::size_t n_train() const { return n_train_; }  // At least 1.
  /// May be 0: a share of 0, or a single example.
  [[nodiscard]] std::size_t n_validation() const { return n_examples() - n_train_; }

  /// index < n_examples(); training is [0, n_train()), validation is [n_train(), n_examples()).
  [[nodiscard]] Example example(std::size_t index) const;
  /// example(index) without a copy of its tokens: how many inputs it has.
  [[nodiscard]] std::size_t n_inputs(std::size_t index) const;

  /// Targets that enter the loss, over the training examples.
  [[nodiscard]] std::size_t n_targets_train() const { return n_targets_train_; }
  /// The same for equal examples, so that a resumed run can tell that its data has changed.
  [[nodiscard]] std::uint64_t fingerprint() const { return fingerprint_; }

 private:
  struct Range {  // Of tokens_. Windows of a text without BOS share a token.
    std::size_t begin = 0;
    std::size_t n_tokens = 0;  // At least 2.
    std::size_t n_given = 0;   // Leading tokens that are not learned. At least 1, below n_tokens.
  };

  Dataset() = default;
  Result<void> add_windows(std::string_view text, const tokenizer::Tokenizer& tokenizer,
                           std::size_t n_ctx);
  Result<void> add_line(const TextFile::Line& line, const tokenizer::Tokenizer& tokenizer,
                        std::size_t n_ctx);
  void divide(double validation_share);

  std::vector<std::int32_t> tokens_;
  std::vector<Range> ranges_;
  std::size_t n_train_ = 0;
  std::size_t n_targets_train_ = 0;
  std::uint64_t fingerprint_ = 0;
};

/// The order in which examples are visited: each of n once per epoch, in another order every epoch.
///
/// Depends on nothing but (seed, n), neither on the library nor on what was asked for before, so a
/// resumed run and every rank of a group agree. Memory: none. Threads: any.
/// Method: a Feistel network over the least even number of bits that holds n; values that are not
/// below n go through again (Black and Rogaway 2002, "cycle walking").
class Shuffle {
 public:
  /// n >= 1.
  Shuffle(std::uint64_t seed, std::size_t n);

  /// The example at a position: position / n is the epoch, from 0. Less than n.
  [[nodiscard]] std::size_t at(std::uint64_t position) const;

 private:
  std::uint64_t seed_;
  std::uint64_t n_;
  int half_bits_;
};

}  // namespace recua::train
