// What a coordinator believes of workers' reports about their links.
#include "cluster/link_book.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cluster/link_wire.h"
#include "cluster/rank_group.h"
#include "cluster/weights_channel.h"

namespace recua::cluster {
namespace {

LinkBook book_of_two() {
  LinkBook book;
  book.set_workers({{.name = "a:1"}, {.name = "b:2"}});
  return book;
}

SessionLink end_of(std::uint32_t number, bool sends) {
  SessionLink link;
  link.number = number;
  link.stats = {.from = "0.0.0.0:1", .to = "x", .transport = "tcp", .sends = sends};
  // Each counter another number, so that none can stand in another's place.
  std::uint64_t value = 100 * (number % 100);
  for (const rpc::CounterField& field : rpc::counter_fields()) {
    link.stats.counters.*field.value = ++value;
  }
  return link;
}

wire::SessionClosed closed(const std::vector<SessionLink>& links) {
  wire::SessionClosed out;
  for (const SessionLink& link : links) *out.add_links() = to_wire(link);
  return out;
}

TEST(LinkBook, NamesLinksAsItsUserDoesAndSortsThem) {
  LinkBook book = book_of_two();
  book.add(1, closed({end_of(1, false), end_of(2, true), end_of(kWeightsChannel, false)}));
  book.add(0, closed({end_of(0, false), end_of(1, true), end_of(kWeightsChannel, false)}));
  book.add_weights(1, end_of(kWeightsChannel, true).stats);
  book.add_own(2, false, "tcp", {});
  book.add_own(0, true, "shared memory", {.messages = 7});
  std::vector<std::string> lines;
  for (const rpc::LinkStats& link : book.stats()) {
    lines.push_back(link.from + "->" + link.to + " " + link.carries +
                    (link.sends ? " sender" : " receiver"));
  }
  EXPECT_EQ(lines,
            (std::vector<std::string>{
                "coordinator->a:1 steps sender", "coordinator->a:1 steps receiver",
                "a:1->b:2 steps sender", "a:1->b:2 steps receiver", "b:2->coordinator steps sender",
                "b:2->coordinator steps receiver", "coordinator->a:1 weights receiver",
                "coordinator->b:2 weights sender", "coordinator->b:2 weights receiver"}));
  EXPECT_EQ(book.stats()[0].transport, "shared memory");
  EXPECT_EQ(book.stats()[0].counters.messages, 7u);
}

TEST(LinkBook, KeepsEveryCounterOverTheWire) {
  LinkBook book = book_of_two();
  book.add(0, closed({end_of(1, true)}));
  ASSERT_EQ(book.stats().size(), 1u);
  const SessionLink sent = end_of(1, true);
  for (const rpc::CounterField& field : rpc::counter_fields()) {
    EXPECT_EQ(book.stats()[0].counters.*field.value, sent.stats.counters.*field.value)
        << field.name;
  }
}

TEST(LinkBook, IgnoresEndsThatAWorkerDoesNotHave) {
  LinkBook book = book_of_two();
  book.add(0, closed({end_of(1, false), end_of(0, true), end_of(2, true), end_of(77, true),
                      end_of(kWeightsChannel, true)}));
  EXPECT_TRUE(book.stats().empty());
  wire::LinkReport report;
  report.set_number(4000);  // Neither a crash nor a name out of nowhere.
  report.set_text("link ...");
  book.report(0, report);
}

TEST(LinkBook, BelievesAFewEndsOfAWorkerOnly) {
  LinkBook book = book_of_two();
  book.add(0, closed(std::vector<SessionLink>(1000, end_of(1, true))));
  EXPECT_EQ(book.stats().size(), 8u);
}

TEST(LinkBook, TellsTheLinksBetweenRanksOfEachGroupApart) {
  LinkBook book;
  book.set_workers({{.name = "a:1"}, {.name = "b:2"}, {.name = "c:3"}, {.name = "d:4"}}, 2);
  const std::uint32_t there = group_channel_number({.from = 0, .to = 1});
  const std::uint32_t back = group_channel_number({.from = 1, .to = 0});
  for (const std::size_t group : {2U, 0U}) {
    book.add(group, closed({end_of(there, true), end_of(back, false)}));
    book.add(group + 1, closed({end_of(there, false), end_of(back, true)}));
  }
  book.add(3, closed({end_of(there, true), end_of(group_channel_number({.from = 2, .to = 1}), true),
                      end_of(group_report_number(1), true)}));
  std::vector<std::string> lines;
  for (const rpc::LinkStats& link : book.stats()) {
    EXPECT_EQ(link.carries, "exchanges");
    lines.push_back(link.from + "->" + link.to + (link.sends ? " sender" : " receiver"));
  }
  EXPECT_EQ(lines,
            (std::vector<std::string>{"a:1->b:2 sender", "a:1->b:2 receiver", "c:3->d:4 sender",
                                      "c:3->d:4 receiver", "b:2->a:1 sender", "b:2->a:1 receiver",
                                      "d:4->c:3 sender", "d:4->c:3 receiver"}));
}

TEST(LinkBook, BelievesTwoMoreEndsForEachOtherRank) {
  LinkBook book;
  book.set_workers({{.name = "a:1"}, {.name = "b:2"}, {.name = "c:3"}}, 3);
  book.add(0, closed(std::vector<SessionLink>(
                  1000, end_of(group_channel_number({.from = 0, .to = 1}), true))));
  EXPECT_EQ(book.stats().size(), 12u);
}

TEST(LinkBook, CutsAndCleansWhatWorkersSay) {
  SessionLink link = end_of(1, true);
  link.stats.transport = "\x1b[31m" + std::string(5000, 'x');
  LinkBook book = book_of_two();
  wire::SessionClosed message = closed({link});
  message.mutable_links(0)->set_transport("\x1b[31m" + std::string(5000, 'x'));
  book.add(0, message);
  ASSERT_EQ(book.stats().size(), 1u);
  EXPECT_EQ(book.stats()[0].transport.size(), 1024u);
  EXPECT_TRUE(book.stats()[0].transport.starts_with("?[31mx"));
}

}  // namespace
}  // namespace recua::cluster
