#include "kv/sequence_table.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::kv {
namespace {

using Tokens = std::vector<std::int32_t>;
using Pages = std::vector<std::uint32_t>;

constexpr TableLimits kLimits = {.n_pages = 16, .page_tokens = 4, .n_ctx = 24};

Tokens some_tokens(std::size_t n) {
  Tokens out(n);
  std::iota(out.begin(), out.end(), 1);
  return out;
}

void expect_error(const Result<void>& result, const std::string& words) {
  ASSERT_FALSE(result.ok()) << "expected: " << words;
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
}

// A table with sequence 1 of six tokens in pages 0 and 1.
SequenceTable table_of_one() {
  SequenceTable table(kLimits);
  table.begin();
  EXPECT_TRUE(table.append(1, 0, some_tokens(6), Pages{0, 1}).ok());
  table.commit();
  return table;
}

TEST(SequenceTable, GrowsIntoTheGivenPages) {
  SequenceTable table = table_of_one();
  table.begin();
  ASSERT_TRUE(table.append(1, 6, some_tokens(2), {}).ok());
  table.commit();
  table.begin();
  ASSERT_TRUE(table.append(1, 8, some_tokens(5), Pages{7, 3}).ok());
  table.commit();
  EXPECT_EQ(table.find(1)->pages, (Pages{0, 1, 7, 3}));
  EXPECT_EQ(table.find(1)->tokens.size(), 13U);
  EXPECT_EQ(table.n_pages_used(), 4U);
}

TEST(SequenceTable, RefusesWhatBreaksItsRules) {
  const auto refuse = [](const std::string& words, auto change) {
    SequenceTable table = table_of_one();
    table.begin();
    expect_error(change(table), words);
    table.rollback();
    EXPECT_EQ(table.n_pages_used(), 2U);
    EXPECT_EQ(table.n_sequences(), 1U);
    EXPECT_EQ(table.find(1)->tokens, some_tokens(6));
  };
  using Table = SequenceTable;
  refuse("sequence 2 cannot be freed", [](Table& t) { return t.free(2); });
  refuse("sequence 2 cannot be truncated", [](Table& t) { return t.truncate(2, 0); });
  refuse("it has 6", [](Table& t) { return t.truncate(1, 7); });
  refuse("exists already", [](Table& t) { return t.fork(1, 1, 0, 2); });
  refuse("does not exist", [](Table& t) { return t.fork(2, 3, 0, 2); });
  refuse("which has 6", [](Table& t) { return t.fork(2, 1, 7, 2); });
  refuse("page 1, which is in use", [](Table& t) { return t.fork(2, 1, 6, 1); });
  refuse("page 16; expected a page from 0 to 15", [](Table& t) { return t.fork(2, 1, 6, 16); });
  refuse("no tokens", [](Table& t) { return t.append(1, 6, {}, {}); });
  refuse("expected 6", [](Table& t) { return t.append(1, 5, some_tokens(1), {}); });
  refuse("expected 0, its length", [](Table& t) { return t.append(2, 1, some_tokens(1), {}); });
  refuse("the context holds 24",
         [](Table& t) { return t.append(1, 6, some_tokens(19), Pages{2, 3, 4, 5, 6}); });
  refuse("given 0 new pages", [](Table& t) { return t.append(1, 6, some_tokens(3), {}); });
  refuse("given 1 new pages", [](Table& t) { return t.append(1, 6, some_tokens(2), Pages{5}); });
  refuse("page 0, which is in use",
         [](Table& t) { return t.append(2, 0, some_tokens(1), Pages{0}); });
  refuse("page 5, which is in use",
         [](Table& t) { return t.append(2, 0, some_tokens(8), Pages{5, 5}); });
  refuse("page 4294967295",
         [](Table& t) { return t.append(2, 0, some_tokens(1), Pages{0xffffffffU}); });
  refuse("twice in one step", [](Table& t) {
    EXPECT_TRUE(t.append(1, 6, some_tokens(1), {}).ok());
    return t.append(1, 7, some_tokens(1), {});
  });
  // An early mistake in a group takes what was fine down with it.
  refuse("cannot be freed", [](Table& t) {
    EXPECT_TRUE(t.fork(2, 1, 5, 9).ok());
    EXPECT_TRUE(t.free(1).ok());
    EXPECT_TRUE(t.truncate(2, 1).ok());
    return t.free(1);
  });
}

TEST(SequenceTable, ForkSharesWholePagesAndCopiesTheRest) {
  SequenceTable table = table_of_one();
  table.begin();
  ASSERT_TRUE(table.fork(2, 1, 6, 9).ok());
  ASSERT_TRUE(table.fork(3, 1, 4, 0xffffffffU).ok());  // Nothing to copy: page is ignored.
  table.commit();
  ASSERT_EQ(table.copies().size(), 1U);
  EXPECT_EQ(table.copies()[0], (PageCopy{.from = 1, .to = 9, .n_tokens = 2}));
  EXPECT_EQ(table.find(2)->pages, (Pages{0, 9}));
  EXPECT_EQ(table.find(3)->pages, (Pages{0}));
  EXPECT_EQ(table.n_users(0), 3U);
  EXPECT_EQ(table.n_pages_used(), 3U);
}

TEST(SequenceTable, NeverWritesASharedPage) {
  SequenceTable table = table_of_one();
  table.begin();
  ASSERT_TRUE(table.fork(2, 1, 4, 0).ok());
  ASSERT_TRUE(table.truncate(1, 3).ok());
  expect_error(table.append(1, 3, some_tokens(1), {}), "page 0, which it shares");
  table.rollback();
  table.begin();
  ASSERT_TRUE(table.fork(2, 1, 4, 0).ok());
  ASSERT_TRUE(table.truncate(1, 3).ok());
  ASSERT_TRUE(table.free(2).ok());  // Now it is the only user again.
  ASSERT_TRUE(table.append(1, 3, some_tokens(1), {}).ok());
  table.commit();
}

TEST(SequenceTable, BoundsSequencesAndTokens) {
  SequenceTable table({.n_pages = 1, .page_tokens = 4, .n_ctx = 4, .n_sequences = 1000});
  table.begin();
  ASSERT_TRUE(table.append(0, 0, some_tokens(4), Pages{0}).ok());
  std::uint32_t n_forks = 0;
  Result<void> last;
  while (n_forks < 500 && (last = table.fork(1 + n_forks, 0, 4, 0)).ok()) ++n_forks;
  EXPECT_EQ(n_forks, 63U);
  EXPECT_EQ(last.error().code, ErrorCode::kResourceExhausted);
  table.rollback();
  EXPECT_EQ(table.n_sequences(), 0U);

  SequenceTable few({.n_pages = 4, .page_tokens = 4, .n_ctx = 4, .n_sequences = 1});
  few.begin();
  ASSERT_TRUE(few.append(0, 0, some_tokens(1), Pages{0}).ok());
  EXPECT_EQ(few.append(1, 0, some_tokens(1), Pages{1}).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(few.fork(1, 0, 0, 1).error().code, ErrorCode::kResourceExhausted);
}

// The obvious twin: whole states are copied, rules are looked up in the state itself.
struct NaiveTable {
  struct Sequence {
    Tokens tokens;
    Pages pages;
    bool appended = false;
  };
  std::map<std::uint32_t, Sequence> sequences;

  [[nodiscard]] std::uint32_t users(std::uint32_t page) const {
    std::uint32_t n = 0;
    for (const auto& [id, s] : sequences) {
      n += static_cast<std::uint32_t>(std::count(s.pages.begin(), s.pages.end(), page));
    }
    return n;
  }
  [[nodiscard]] bool fresh(std::uint32_t page) const {
    return page < kLimits.n_pages && users(page) == 0;
  }
  static std::size_t pages_for(std::size_t n) {
    std::size_t pages = 0;
    while (pages * kLimits.page_tokens < n) ++pages;
    return pages;
  }

  bool free(std::uint32_t seq) { return sequences.erase(seq) == 1; }
  bool truncate(std::uint32_t seq, std::uint32_t n) {
    if (!sequences.contains(seq) || sequences[seq].tokens.size() < n) return false;
    sequences[seq].tokens.resize(n);
    sequences[seq].pages.resize(pages_for(n));
    return true;
  }
  bool fork(std::uint32_t seq, std::uint32_t source, std::uint32_t n, std::uint32_t page) {
    if (sequences.contains(seq) || !sequences.contains(source)) return false;
    if (sequences[source].tokens.size() < n) return false;
    if (n % kLimits.page_tokens != 0 && !fresh(page)) return false;
    Sequence copy = sequences[source];
    copy.appended = false;
    copy.tokens.resize(n);
    copy.pages.resize(pages_for(n));
    if (n % kLimits.page_tokens != 0) copy.pages.back() = page;
    sequences[seq] = copy;
    return true;
  }
  bool append(std::uint32_t seq, std::uint32_t position, const Tokens& tokens, const Pages& pages) {
    Sequence s;
    if (sequences.contains(seq)) s = sequences[seq];
    if (tokens.empty() || position != s.tokens.size() || s.appended) return false;
    if (position + tokens.size() > kLimits.n_ctx) return false;
    if (s.pages.size() + pages.size() != pages_for(position + tokens.size())) return false;
    if (position % kLimits.page_tokens != 0 && users(s.pages.back()) > 1) return false;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      if (!fresh(pages[i]) || std::count(pages.begin(), pages.end(), pages[i]) > 1) return false;
    }
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
    s.pages.insert(s.pages.end(), pages.begin(), pages.end());
    s.appended = true;
    sequences[seq] = s;
    return true;
  }
};

void expect_same(const SequenceTable& table, const NaiveTable& naive) {
  ASSERT_EQ(table.n_sequences(), naive.sequences.size());
  for (const auto& [id, s] : naive.sequences) {
    ASSERT_NE(table.find(id), nullptr);
    ASSERT_EQ(table.find(id)->tokens, s.tokens);
    ASSERT_EQ(table.find(id)->pages, s.pages);
  }
  for (std::uint32_t page = 0; page < kLimits.n_pages; ++page) {
    ASSERT_EQ(table.n_users(page), naive.users(page));
  }
}

// Random groups, many of them wrong, against the naive twin; and a cache of plain token ids, which
// must hold each sequence's own tokens after every group: sharing never lets one spoil another.
TEST(SequenceTable, MatchesANaiveTableUnderRandomGroups) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    SequenceTable table(kLimits);
    NaiveTable naive;
    std::vector<Tokens> cache(kLimits.n_pages, Tokens(kLimits.page_tokens));
    int n_committed = 0;
    for (int round = 0; round < 200; ++round) {
      NaiveTable next = naive;
      for (auto& [id, s] : next.sequences) s.appended = false;
      table.begin();
      bool fine = true;
      std::vector<std::pair<std::uint32_t, std::uint32_t>> appended;  // Sequence, position.
      const std::uint64_t n_changes = 1 + rng.below(5);
      for (std::uint64_t i = 0; fine && i < n_changes; ++i) {
        const auto seq = static_cast<std::uint32_t>(rng.below(5));
        const auto other = static_cast<std::uint32_t>(rng.below(5));
        const auto* found = table.find(seq);
        const std::size_t length = found == nullptr ? 0 : found->tokens.size();
        const auto random_page = [&] {
          for (int tries = 0; tries < 8; ++tries) {
            const auto page = static_cast<std::uint32_t>(rng.below(kLimits.n_pages));
            if (next.fresh(page)) return page;
          }
          return static_cast<std::uint32_t>(rng.below(kLimits.n_pages + 1));
        };
        const auto n = static_cast<std::uint32_t>(rng.below(length + 2));
        bool expected = false;
        Result<void> got;
        const std::uint64_t kind = appended.empty() ? rng.below(8) : 7;  // Appends come last.
        if (kind == 0) {
          expected = next.free(seq);
          got = table.free(seq);
        } else if (kind <= 2) {
          expected = next.truncate(seq, n);
          got = table.truncate(seq, n);
        } else if (kind <= 4) {
          const std::uint32_t page = random_page();
          expected = next.fork(other, seq, n, page);
          got = table.fork(other, seq, n, page);
        } else {
          Tokens tokens(rng.below(7));
          for (auto& t : tokens) t = static_cast<std::int32_t>(rng.below(1000));
          const std::size_t held = found == nullptr ? 0 : found->pages.size();
          Pages pages(NaiveTable::pages_for(length + tokens.size()) - held);
          for (auto& page : pages) page = random_page();
          const auto position = static_cast<std::uint32_t>(length + (rng.below(20) == 0 ? 1 : 0));
          expected = next.append(seq, position, tokens, pages);
          got = table.append(seq, position, tokens, pages);
          appended.emplace_back(seq, position);
        }
        ASSERT_EQ(got.ok(), expected) << (got.ok() ? "" : got.error().message);
        fine = expected;
      }
      if (!fine || rng.below(10) == 0) {
        table.rollback();
      } else {
        for (const PageCopy& copy : table.copies()) {
          std::copy_n(cache[copy.from].begin(), copy.n_tokens, cache[copy.to].begin());
        }
        for (const auto& [seq, position] : appended) {
          const auto& s = *table.find(seq);
          for (std::size_t p = position; p < s.tokens.size(); ++p) {
            cache[s.pages[p / kLimits.page_tokens]][p % kLimits.page_tokens] = s.tokens[p];
          }
        }
        table.commit();
        naive = next;
        ++n_committed;
      }
      expect_same(table, naive);
      if (HasFatalFailure()) return;
      for (const auto& [id, s] : naive.sequences) {
        for (std::size_t p = 0; p < s.tokens.size(); ++p) {
          ASSERT_EQ(cache[s.pages[p / kLimits.page_tokens]][p % kLimits.page_tokens], s.tokens[p])
              << "sequence " << id << " position " << p;
        }
      }
    }
    EXPECT_GT(n_committed, 15);
  }
}

}  // namespace
}  // namespace recua::kv
