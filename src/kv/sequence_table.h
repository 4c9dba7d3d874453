#pragma once
/// Which sequences exist, the tokens in each, and the pages of the cache that hold them.
///
/// Page ids come from outside (the engine hands them out, perhaps by way of a network), so every
/// change is checked against this table: a page in use is given to nobody else, unless a fork
/// shares it; a shared page is never written.
///
/// Changes come in groups that take effect as a whole: begin(), any of free(), truncate(), fork(),
/// append(), then commit() or rollback(). Within a group each change sees the ones before it. After
/// an error the group must be rolled back.
///
/// Invariant: a sequence of n tokens has exactly ceil(n / page_tokens) pages.
/// Errors: kInvalidArgument (names sequence and value, and what would be right) and
///   kResourceExhausted (more sequences or tokens than the table may hold).
/// Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace recua::kv {

struct TableLimits {
  std::uint32_t n_pages = 0;
  std::uint32_t page_tokens = 0;
  std::uint32_t n_ctx = 0;              // Longest sequence.
  std::uint32_t n_sequences = 1 << 16;  // Forks may share all pages, so pages alone bound nothing.
};

/// The first n_tokens of page `from` belong into page `to` as well.
struct PageCopy {
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  std::uint32_t n_tokens = 0;

  friend bool operator==(const PageCopy&, const PageCopy&) = default;
};

class SequenceTable {
 public:
  struct Sequence {
    std::vector<std::int32_t> tokens = {};
    std::vector<std::uint32_t> pages = {};
    std::uint64_t appended_in = 0;  // The group that last appended to it.
  };

  explicit SequenceTable(const TableLimits& limits);

  void begin();
  Result<void> free(std::uint32_t seq);
  Result<void> truncate(std::uint32_t seq, std::uint32_t n_tokens);
  /// seq becomes a copy of the first n_tokens of source: whole pages are shared, the tokens of a
  /// partly filled last one go to `page`, which is ignored when there is none.
  Result<void> fork(std::uint32_t seq, std::uint32_t source, std::uint32_t n_tokens,
                    std::uint32_t page);
  /// At most once per sequence and group. position is the sequence's length; 0 makes a new one.
  /// The token ids are not looked at.
  Result<void> append(std::uint32_t seq, std::uint32_t position,
                      std::span<const std::int32_t> tokens,
                      std::span<const std::uint32_t> new_pages);
  void commit();
  void rollback();

  /// What forks of the group since begin() ask to be copied, in this order, before anything else is
  /// written to the cache.
  [[nodiscard]] std::span<const PageCopy> copies() const { return copies_; }

  /// nullptr: no such sequence. Valid until the next change.
  [[nodiscard]] const Sequence* find(std::uint32_t seq) const;
  [[nodiscard]] std::size_t n_sequences() const { return sequences_.size(); }
  [[nodiscard]] std::size_t n_pages_used() const { return n_pages_used_; }
  /// How many sequences use a page.
  [[nodiscard]] std::uint32_t n_users(std::uint32_t page) const { return n_users_.at(page); }
  [[nodiscard]] const TableLimits& limits() const { return limits_; }

  /// Forgets everything. Not within a group.
  void clear();

 private:
  // How to take one change back.
  struct Undo {
    enum class Kind : std::uint8_t { kRestore, kExtend, kRemove, kShorten } kind;
    std::uint32_t seq = 0;
    Sequence lost = {};        // kRestore: the sequence. kExtend: what was cut off its end.
    std::size_t n_tokens = 0;  // kShorten: the lengths before.
    std::size_t n_pages = 0;
    std::uint64_t appended_in = 0;
  };

  Result<void> check_new_page(std::uint32_t seq, std::uint32_t page) const;
  Result<void> check_room(std::uint32_t seq, std::size_t n_more_tokens) const;
  void use_page(std::uint32_t page);
  void drop_page(std::uint32_t page);
  void undo(Undo& change);

  TableLimits limits_;
  std::unordered_map<std::uint32_t, Sequence> sequences_;
  std::vector<std::uint32_t> n_users_;  // By page.
  std::size_t n_pages_used_ = 0;
  std::size_t n_tokens_ = 0;  // In all sequences together.
  std::size_t n_tokens_max_ = 0;
  std::uint64_t group_ = 0;
  bool in_group_ = false;
  std::vector<Undo> journal_;
  std::vector<PageCopy> copies_;
};

}  // namespace recua::kv
