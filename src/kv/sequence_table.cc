#include "kv/sequence_table.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"

// Every change checks all it needs first, then acts and writes down how to take itself back. A
// group is undone by walking that journal from its end, so a step with one more token costs no
// copy.

namespace recua::kv {
namespace {

// Forks copy their tokens' ids (four bytes each), though not their pages; this many times as many
// tokens as the pages hold bounds what a broken or hostile peer can make us keep.
constexpr std::size_t kSharingMax = 64;

template <class... Args>
Error wrong(fmt::format_string<Args...> format, Args&&... args) {
  return Error{ErrorCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}

std::size_t pages_for(std::size_t n_tokens, std::size_t page_tokens) {
  return (n_tokens + page_tokens - 1) / page_tokens;
}

}  // namespace

SequenceTable::SequenceTable(const TableLimits& limits)
    : limits_(limits), n_users_(limits.n_pages) {
  RECUA_CHECK(limits.page_tokens > 0);
  n_tokens_max_ = kSharingMax * limits.n_pages * limits.page_tokens;
}

const SequenceTable::Sequence* SequenceTable::find(std::uint32_t seq) const {
  const auto it = sequences_.find(seq);
  return it == sequences_.end() ? nullptr : &it->second;
}

void SequenceTable::begin() {
  RECUA_CHECK(!in_group_);
  in_group_ = true;
  ++group_;
  copies_.clear();
}

void SequenceTable::commit() {
  RECUA_CHECK(in_group_);
  in_group_ = false;
  journal_.clear();
}

void SequenceTable::rollback() {
  RECUA_CHECK(in_group_);
  in_group_ = false;
  copies_.clear();
  while (!journal_.empty()) {
    undo(journal_.back());
    journal_.pop_back();
  }
}

void SequenceTable::clear() {
  RECUA_CHECK(!in_group_);
  sequences_.clear();
  std::fill(n_users_.begin(), n_users_.end(), 0U);
  n_pages_used_ = 0;
  n_tokens_ = 0;
  copies_.clear();
}

void SequenceTable::use_page(std::uint32_t page) {
  if (n_users_[page]++ == 0) ++n_pages_used_;
}

void SequenceTable::drop_page(std::uint32_t page) {
  if (--n_users_[page] == 0) --n_pages_used_;
}

Result<void> SequenceTable::check_new_page(std::uint32_t seq, std::uint32_t page) const {
  if (page >= limits_.n_pages) {
    return wrong("sequence {} is given page {}; expected a page from 0 to {}", seq, page,
                 std::int64_t{limits_.n_pages} - 1);
  }
  if (n_users_[page] != 0) {
    return wrong("sequence {} is given page {}, which is in use; expected a free page", seq, page);
  }
  return ok();
}

Result<void> SequenceTable::check_room(std::uint32_t seq, std::size_t n_more_tokens) const {
  if (n_tokens_ + n_more_tokens <= n_tokens_max_) return ok();
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("sequence {}: {} tokens more than the {} in all sequences would pass "
                           "the limit of {}; free some first",
                           seq, n_more_tokens, n_tokens_, n_tokens_max_)};
}

Result<void> SequenceTable::free(std::uint32_t seq) {
  RECUA_CHECK(in_group_);
  const auto it = sequences_.find(seq);
  if (it == sequences_.end()) return wrong("sequence {} cannot be freed: it does not exist", seq);
  for (const std::uint32_t page : it->second.pages) drop_page(page);
  n_tokens_ -= it->second.tokens.size();
  journal_.push_back({.kind = Undo::Kind::kRestore, .seq = seq, .lost = std::move(it->second)});
  sequences_.erase(it);
  return ok();
}

Result<void> SequenceTable::truncate(std::uint32_t seq, std::uint32_t n_tokens) {
  RECUA_CHECK(in_group_);
  const auto it = sequences_.find(seq);
  if (it == sequences_.end()) {
    return wrong("sequence {} cannot be truncated: it does not exist", seq);
  }
  Sequence& sequence = it->second;
  if (n_tokens > sequence.tokens.size()) {
    return wrong("sequence {} cannot be truncated to {} tokens; it has {}", seq, n_tokens,
                 sequence.tokens.size());
  }
  const auto tokens_end = sequence.tokens.begin() + n_tokens;
  const auto pages_end = sequence.pages.begin() +
                         static_cast<std::ptrdiff_t>(pages_for(n_tokens, limits_.page_tokens));
  Undo change{.kind = Undo::Kind::kExtend, .seq = seq};
  change.lost.tokens.assign(tokens_end, sequence.tokens.end());
  change.lost.pages.assign(pages_end, sequence.pages.end());
  for (const std::uint32_t page : change.lost.pages) drop_page(page);
  n_tokens_ -= change.lost.tokens.size();
  sequence.tokens.erase(tokens_end, sequence.tokens.end());
  sequence.pages.erase(pages_end, sequence.pages.end());
  journal_.push_back(std::move(change));
  return ok();
}

Result<void> SequenceTable::fork(std::uint32_t seq, std::uint32_t source, std::uint32_t n_tokens,
                                 std::uint32_t page) {
  RECUA_CHECK(in_group_);
  if (sequences_.contains(seq)) {
    return wrong("sequence {} cannot become a fork of {}: it exists already", seq, source);
  }
  const auto it = sequences_.find(source);
  if (it == sequences_.end()) {
    return wrong("sequence {} cannot be forked to {}: it does not exist", source, seq);
  }
  const Sequence& from = it->second;
  if (n_tokens > from.tokens.size()) {
    return wrong("sequence {} cannot become a fork of {} tokens of {}, which has {}", seq, n_tokens,
                 source, from.tokens.size());
  }
  if (sequences_.size() >= limits_.n_sequences) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("no more than {} sequences fit; free some first", sequences_.size())};
  }
  RECUA_RETURN_IF_ERROR(check_room(seq, n_tokens));
  const std::uint32_t n_whole = n_tokens / limits_.page_tokens;
  const std::uint32_t n_rest = n_tokens % limits_.page_tokens;
  if (n_rest > 0) RECUA_RETURN_IF_ERROR(check_new_page(seq, page));

  Sequence copy;
  copy.tokens.assign(from.tokens.begin(), from.tokens.begin() + n_tokens);
  copy.pages.assign(from.pages.begin(), from.pages.begin() + n_whole);
  if (n_rest > 0) {
    copies_.push_back({.from = from.pages[n_whole], .to = page, .n_tokens = n_rest});
    copy.pages.push_back(page);
  }
  for (const std::uint32_t used : copy.pages) use_page(used);
  n_tokens_ += n_tokens;
  sequences_.emplace(seq, std::move(copy));
  journal_.push_back({.kind = Undo::Kind::kRemove, .seq = seq});
  return ok();
}

Result<void> SequenceTable::append(std::uint32_t seq, std::uint32_t position,
                                   std::span<const std::int32_t> tokens,
                                   std::span<const std::uint32_t> new_pages) {
  RECUA_CHECK(in_group_);
  auto it = sequences_.find(seq);
  const bool is_new = it == sequences_.end();
  const std::size_t n_before = is_new ? 0 : it->second.tokens.size();
  const std::size_t n_pages_before = is_new ? 0 : it->second.pages.size();
  if (tokens.empty()) return wrong("sequence {} is given no tokens; expected at least 1", seq);
  if (position != n_before) {
    return wrong("sequence {} is given tokens at position {}; expected {}, its length", seq,
                 position, n_before);
  }
  if (!is_new && it->second.appended_in == group_) {
    return wrong("sequence {} is given tokens twice in one step; expected once", seq);
  }
  if (tokens.size() > limits_.n_ctx || n_before > limits_.n_ctx - tokens.size()) {
    return wrong("sequence {} would have {} tokens; the context holds {}", seq,
                 n_before + tokens.size(), limits_.n_ctx);
  }
  if (is_new && sequences_.size() >= limits_.n_sequences) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("no more than {} sequences fit; free some first", sequences_.size())};
  }
  RECUA_RETURN_IF_ERROR(check_room(seq, tokens.size()));
  const std::size_t n_pages_needed =
      pages_for(n_before + tokens.size(), limits_.page_tokens) - n_pages_before;
  if (new_pages.size() != n_pages_needed) {
    return wrong("sequence {} is given {} new pages for {} tokens at position {}; expected {}", seq,
                 new_pages.size(), tokens.size(), position, n_pages_needed);
  }
  if (n_before % limits_.page_tokens != 0) {
    const std::uint32_t last = it->second.pages.back();
    if (n_users_[last] != 1) {
      return wrong(
          "sequence {} would write position {} into page {}, which it shares; expected a "
          "fork that copies this page first",
          seq, position, last);
    }
  }
  for (std::size_t i = 0; i < new_pages.size(); ++i) {
    Result<void> usable = check_new_page(seq, new_pages[i]);
    if (!usable.ok()) {
      for (std::size_t j = 0; j < i; ++j) drop_page(new_pages[j]);
      return usable;
    }
    use_page(new_pages[i]);  // At once, so that a page given twice is seen.
  }

  if (is_new) it = sequences_.emplace(seq, Sequence{}).first;
  Sequence& sequence = it->second;
  if (is_new) {
    journal_.push_back({.kind = Undo::Kind::kRemove, .seq = seq});
  } else {
    journal_.push_back({.kind = Undo::Kind::kShorten,
                        .seq = seq,
                        .n_tokens = n_before,
                        .n_pages = n_pages_before,
                        .appended_in = sequence.appended_in});
  }
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
  sequence.pages.insert(sequence.pages.end(), new_pages.begin(), new_pages.end());
  sequence.appended_in = group_;
  n_tokens_ += tokens.size();
  return ok();
}

void SequenceTable::undo(Undo& change) {
  switch (change.kind) {
    case Undo::Kind::kRestore: {
      for (const std::uint32_t page : change.lost.pages) use_page(page);
      n_tokens_ += change.lost.tokens.size();
      sequences_.emplace(change.seq, std::move(change.lost));
      return;
    }
    case Undo::Kind::kExtend: {
      Sequence& sequence = sequences_.at(change.seq);
      for (const std::uint32_t page : change.lost.pages) use_page(page);
      n_tokens_ += change.lost.tokens.size();
      sequence.tokens.insert(sequence.tokens.end(), change.lost.tokens.begin(),
                             change.lost.tokens.end());
      sequence.pages.insert(sequence.pages.end(), change.lost.pages.begin(),
                            change.lost.pages.end());
      return;
    }
    case Undo::Kind::kRemove: {
      const auto it = sequences_.find(change.seq);
      for (const std::uint32_t page : it->second.pages) drop_page(page);
      n_tokens_ -= it->second.tokens.size();
      sequences_.erase(it);
      return;
    }
    case Undo::Kind::kShorten: {
      Sequence& sequence = sequences_.at(change.seq);
      for (std::size_t i = change.n_pages; i < sequence.pages.size(); ++i) {
        drop_page(sequence.pages[i]);
      }
      n_tokens_ -= sequence.tokens.size() - change.n_tokens;
      sequence.tokens.resize(change.n_tokens);
      sequence.pages.resize(change.n_pages);
      sequence.appended_in = change.appended_in;
      return;
    }
  }
}

}  // namespace recua::kv
