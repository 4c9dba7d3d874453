#include "rpc/shm_path.h"

#include <atomic>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <optional>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/random.h"
#include "net/shm/shared_memory.h"
#include "rpc/shm_control.h"

namespace recua::rpc {
namespace {

using net::shm::SharedMemory;

constexpr RingShape kRing{.n_slots = 4, .slot_bytes = 256};

/// Both ends in one process, each with its own mapping, and a third one of the control page for a
/// peer that cheats.
struct Pair {
  explicit Pair(RingShape shape = kRing) : ring(shape) {
    memory = SharedMemory::create(shape.n_slots * shape.slot_bytes).value();
    receiver = make_shm_receiver(shape, memory.fd(), address).value();
    sender = make_shm_sender(shape, address).value();
    control_memory = SharedMemory::open(address.pid, address.control_fd, kShmControlBytes).value();
    control = reinterpret_cast<ShmControl*>(control_memory.bytes().data());
  }

  bool post(std::uint64_t sequence, std::string_view text = "rows") {
    return *sender->post({.sequence = sequence,
                          .head = as_bytes("head"),
                          .rows = as_bytes(text),
                          .descriptor = as_bytes("end")});
  }
  /// The sequences that came, or the error's message.
  std::string arrived(std::uint64_t n_expected) {
    std::vector<Arrival> arrivals;
    const auto moved = receiver->poll(n_expected, arrivals);
    if (!moved.ok()) {
      EXPECT_EQ(moved.error().code, ErrorCode::kProtocol);
      return moved.error().message;
    }
    EXPECT_EQ(*moved, !arrivals.empty());
    return text(arrivals);
  }
  static std::string text(const std::vector<Arrival>& arrivals) {
    std::string out;
    for (const Arrival& arrival : arrivals) {
      EXPECT_EQ(arrival.piece, 0);
      EXPECT_EQ(arrival.n_pieces, 1);
      EXPECT_FALSE(arrival.bytes.has_value());
      out += fmt::format("{} ", arrival.sequence);
    }
    return out;
  }
  std::string slot(std::uint64_t sequence, std::size_t n) const {
    return std::string(
        as_text(memory.bytes().subspan(sequence % ring.n_slots * ring.slot_bytes, n)));
  }
  void cheat(std::uint64_t n_published, std::uint64_t first = 0) const {
    shared(control->first).store(first);
    shared(control->n_published).store(n_published);
  }

  net::asio::io_context loop{1};  // First, as armed paths must not outlive it.
  RingShape ring;
  SharedMemory memory;
  ShmAddress address;
  std::unique_ptr<FastReceiver> receiver;
  std::unique_ptr<FastSender> sender;
  SharedMemory control_memory;
  ShmControl* control = nullptr;
};

TEST(ShmPath, CarriesMessagesIntoTheirSlots) {
  Pair pair;
  EXPECT_EQ(pair.arrived(0), "");
  EXPECT_TRUE(pair.receiver->is_quiet());
  EXPECT_FALSE(pair.sender->is_complete(0));
  EXPECT_TRUE(pair.post(0, "first"));
  EXPECT_FALSE(pair.receiver->is_quiet());
  EXPECT_TRUE(pair.post(1, "second"));
  EXPECT_TRUE(pair.sender->is_complete(1));
  EXPECT_FALSE(pair.sender->is_complete(2));
  EXPECT_EQ(pair.arrived(0), "0 1 ");
  EXPECT_EQ(pair.slot(0, 12), "headfirstend");
  EXPECT_EQ(pair.slot(1, 13), "headsecondend");
  EXPECT_TRUE(pair.receiver->is_quiet());
  EXPECT_EQ(pair.arrived(2), "");
}

TEST(ShmPath, ReturnsCredits) {
  Pair pair;
  for (std::uint64_t s = 0; s < 4; ++s) EXPECT_TRUE(pair.post(s));
  EXPECT_EQ(pair.arrived(0), "0 1 2 3 ");
  EXPECT_FALSE(pair.sender->poll());
  EXPECT_EQ(pair.sender->n_released(), 0U);
  pair.receiver->tell_released(3, false);
  EXPECT_TRUE(pair.sender->poll());
  EXPECT_EQ(pair.sender->n_released(), 3U);
  for (std::uint64_t s = 4; s < 7; ++s) EXPECT_TRUE(pair.post(s));
  EXPECT_EQ(pair.arrived(4), "4 5 6 ");
}

TEST(ShmPath, MayBeginInTheMiddleOfAChannelsLife) {
  Pair pair;
  EXPECT_FALSE(pair.sender->poll());
  // Message 99 is still on its way by another transport when 100 comes by this one.
  EXPECT_TRUE(pair.post(100));
  EXPECT_TRUE(pair.post(101));
  EXPECT_EQ(pair.arrived(99), "100 101 ");
  EXPECT_EQ(pair.slot(100, 4), "head");
  pair.receiver->tell_released(102, false);
  EXPECT_TRUE(pair.sender->poll());
  EXPECT_EQ(pair.sender->n_released(), 102U);
}

TEST(ShmPath, FillsASlotToItsLastByteAndNoFurther) {
  Pair pair;
  const std::string full(kRing.slot_bytes - 7, 'x');
  std::memset(pair.memory.bytes().data(), '.', pair.memory.bytes().size());
  EXPECT_TRUE(pair.post(1, full));
  EXPECT_EQ(pair.slot(1, 256), "head" + full + "end");
  EXPECT_EQ(pair.slot(0, 256), std::string(256, '.'));
  EXPECT_EQ(pair.slot(2, 256), std::string(256, '.'));
}

TEST(ShmPath, RefusesMoreThanTheRingHolds) {
  Pair pair;
  pair.cheat(5);
  EXPECT_EQ(pair.arrived(0),
            "shared memory: the peer has published 5 messages, may have at most 4");
  pair.cheat(4);
  EXPECT_EQ(pair.arrived(0), "0 1 2 3 ");
  // Complete is not released: what lies in slots that we still read must stay.
  pair.receiver->tell_released(1, false);
  pair.cheat(6);
  EXPECT_EQ(pair.arrived(4),
            "shared memory: the peer has published 6 messages, may have at most 5");
  pair.cheat(5);
  EXPECT_EQ(pair.arrived(4), "4 ");
}

TEST(ShmPath, RefusesCountersThatGoBackOrOverflow) {
  Pair pair;
  pair.cheat(3);
  EXPECT_EQ(pair.arrived(0), "0 1 2 ");
  pair.cheat(2);
  EXPECT_EQ(pair.arrived(3), "shared memory: the peer has published 2 messages, before that 3");
  pair.cheat(0);
  EXPECT_EQ(pair.arrived(3), "shared memory: the peer has published 0 messages, before that 3");
  pair.cheat(UINT64_MAX);
  EXPECT_EQ(pair.arrived(3),
            "shared memory: the peer has published 18446744073709551615 messages, may have at most "
            "7");
}

TEST(ShmPath, RefusesABeginningThatCannotBe) {
  Pair pair;
  pair.cheat(5, 5);
  EXPECT_EQ(pair.arrived(5),
            "shared memory: the peer has published 5 messages, the first of them being 5");
  pair.cheat(5, UINT64_MAX);
  EXPECT_EQ(pair.arrived(5),
            "shared memory: the peer has published 5 messages, the first of them being "
            "18446744073709551615");
  pair.cheat(100, 0);
  EXPECT_EQ(pair.arrived(99),
            "shared memory: the peer has published 100 messages, whose first must be at least 95");
}

TEST(ShmPath, FenceTakesInWhatCameAndEndsThePathOnBothSides) {
  Pair pair;
  EXPECT_TRUE(pair.post(0));
  std::vector<Arrival> arrivals;
  ASSERT_TRUE(pair.receiver->fence(1, 0, arrivals).ok());
  EXPECT_EQ(Pair::text(arrivals), "0 ");
  EXPECT_EQ(pair.receiver->lanes(), 0U);
  EXPECT_TRUE(pair.post(1));  // It could not know yet.
  EXPECT_EQ(pair.arrived(1), "");
  EXPECT_EQ(pair.sender->failed_lanes(), 0U);
  EXPECT_TRUE(pair.sender->poll());
  EXPECT_EQ(pair.sender->failed_lanes(), 1U);
  EXPECT_EQ(pair.sender->failure(), "the receiver has closed the shared memory");
  EXPECT_FALSE(pair.post(2));
  EXPECT_FALSE(pair.sender->poll());
  pair.sender->drop_lanes(1);
  EXPECT_EQ(pair.sender->failed_lanes(), 0U);
  EXPECT_EQ(pair.sender->lanes(), 0U);
}

TEST(ShmPath, FenceReportsAPeerThatCheated) {
  Pair pair;
  pair.cheat(50);
  std::vector<Arrival> arrivals;
  const auto result = pair.receiver->fence(1, 0, arrivals);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kProtocol);
  EXPECT_TRUE(arrivals.empty());
  EXPECT_EQ(pair.receiver->lanes(), 0U);
}

TEST(ShmPath, WakesAReceiverThatSleeps) {
  Pair pair;
  int n_calls = 0;
  pair.receiver->arm(pair.loop.get_executor(), [&] { ++n_calls; });
  EXPECT_EQ(pair.arrived(0), "");  // Looking once more does not disarm it.
  EXPECT_TRUE(pair.post(0));
  pair.loop.run();
  EXPECT_EQ(n_calls, 1);
  EXPECT_EQ(pair.arrived(0), "0 ");
}

TEST(ShmPath, WakesASenderThatSleepsByCreditsOrTheEnd) {
  Pair pair;
  int n_calls = 0;
  pair.sender->arm(pair.loop.get_executor(), [&] { ++n_calls; }, /*for_progress=*/true);
  EXPECT_FALSE(pair.sender->poll());
  pair.receiver->tell_released(1, true);
  pair.loop.run();
  EXPECT_EQ(n_calls, 1);
  EXPECT_TRUE(pair.sender->poll());
  pair.loop.restart();
  pair.sender->arm(pair.loop.get_executor(), [&] { ++n_calls; }, /*for_progress=*/true);
  std::vector<Arrival> arrivals;
  ASSERT_TRUE(pair.receiver->fence(1, 1, arrivals).ok());
  pair.loop.run();
  EXPECT_EQ(n_calls, 2);
  EXPECT_TRUE(pair.sender->poll());
}

TEST(ShmPath, DoesNotSleepOverWhatIsThereAlready) {
  Pair pair;
  int n_calls = 0;
  EXPECT_TRUE(pair.post(0));
  pair.receiver->tell_released(1, false);
  pair.receiver->arm(pair.loop.get_executor(), [&] { ++n_calls; });
  pair.sender->arm(pair.loop.get_executor(), [&] { ++n_calls; }, /*for_progress=*/true);
  pair.loop.run();
  EXPECT_EQ(n_calls, 2);
}

TEST(ShmPath, CountsWhatItDoes) {
  Pair pair;
  EXPECT_TRUE(pair.post(0));
  EXPECT_TRUE(pair.post(1));
  EXPECT_EQ(pair.arrived(0), "0 1 ");
  EXPECT_EQ(pair.arrived(2), "");
  pair.receiver->arm(pair.loop.get_executor(), [] {});
  pair.receiver->tell_released(1, false);
  EXPECT_TRUE(pair.sender->poll());
  ChannelCounters sent;
  pair.sender->add_to(sent);
  EXPECT_EQ(sent.posts, 2U);
  EXPECT_EQ(sent.requests, 2U);
  EXPECT_EQ(sent.polls, 1U);
  EXPECT_EQ(sent.completions, 1U);
  EXPECT_EQ(sent.payload_copies, 0U);
  ChannelCounters received;
  pair.receiver->add_to(received);
  EXPECT_EQ(received.polls, 2U);
  EXPECT_EQ(received.completions, 2U);
  EXPECT_EQ(received.sleeps, 1U);
}

TEST(ShmPath, RefusesARingThatIsNotShared) {
  ShmAddress address;
  const auto message = [&](RingShape ring, int fd) {
    const auto result = make_shm_receiver(ring, fd, address);
    if (result.ok()) return std::string("accepted");
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    return result.error().message;
  };
  EXPECT_EQ(message(kRing, -1),
            "the ring's descriptor -1: no shared memory of recua: Bad file descriptor");
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  EXPECT_EQ(
      message(kRing, null),
      fmt::format("the ring's descriptor {}: no shared memory of recua: it is no memfd", null));
  ::close(null);
  const SharedMemory memory = SharedMemory::create(1023).value();
  EXPECT_EQ(message(kRing, memory.fd()),
            "4 slots of 256 bytes do not lie in 1023 bytes of shared memory");
  EXPECT_EQ(message({.n_slots = 4, .slot_bytes = std::uint64_t{1} << 63U}, memory.fd()),
            "4 slots of 9223372036854775808 bytes do not lie in 1023 bytes of shared memory");
  EXPECT_EQ(message({.n_slots = 0, .slot_bytes = 256}, memory.fd()),
            "0 slots of 256 bytes do not lie in 1023 bytes of shared memory");
}

TEST(ShmPath, RefusesAnAddressThatIsNotAsThePeerSays) {
  const Pair pair;
  const Pair other;
  const auto message = [&](ShmAddress address, RingShape ring = kRing) {
    const auto result = make_shm_sender(ring, address);
    if (result.ok()) return std::string("accepted");
    EXPECT_EQ(result.error().code, ErrorCode::kProtocol) << result.error().message;
    return result.error().message;
  };
  EXPECT_EQ(message(pair.address), "the control page of shared memory has a sender already");
  ShmAddress address = pair.address;
  address.control_fd = other.address.control_fd;
  EXPECT_EQ(message(address), "the control page of shared memory is for another ring");
  EXPECT_EQ(message(pair.address, {.n_slots = 2, .slot_bytes = 512}),
            "the control page of shared memory is for 4 slots of 256 bytes, the channel has 2 of "
            "512");
  EXPECT_EQ(message(pair.address, {.n_slots = 5, .slot_bytes = 256}),
            "5 slots of 256 bytes do not lie in 1024 bytes of shared memory");
  EXPECT_EQ(message(pair.address, {.n_slots = 4, .slot_bytes = std::uint64_t{1} << 63U}),
            "4 slots of 9223372036854775808 bytes do not lie in 1024 bytes of shared memory");
  address = pair.address;
  const SharedMemory page = SharedMemory::create(kShmControlBytes).value();
  address.control_fd = page.fd();
  EXPECT_EQ(message(address),
            "the control page of shared memory begins with 0x0, not 0x314d485341554352");
  address = pair.address;
  address.ring_fd = pair.address.control_fd;  // A foreign number, and another size.
  EXPECT_TRUE(message(address).ends_with("has 4096 bytes of shared memory, the peer said 1024"))
      << message(address);
}

/// One end of a stream of numbered messages that sleeps whenever there is nothing to do.
struct Source {
  Source(FastSender& path, RingShape shape, std::uint64_t first, std::uint64_t end)
      : sender(path), ring(shape), next(first), last(end) {}
  void step() {
    while (true) {
      sender.poll();
      if (next == last && sender.n_released() == last) return;
      if (next < last && next - sender.n_released() < ring.n_slots) {
        const std::array<std::uint64_t, 2> row{next, next * next};
        RECUA_CHECK(*sender.post({.sequence = next,
                                  .head = std::as_bytes(std::span(row)),
                                  .rows = {},
                                  .descriptor = {}}));
        ++next;
        continue;
      }
      sender.arm(loop.get_executor(), [this] { step(); }, /*for_progress=*/true);
      return;
    }
  }
  void run() {
    step();
    loop.run();
  }

  net::asio::io_context loop{1};
  FastSender& sender;
  RingShape ring;
  std::uint64_t next;
  std::uint64_t last;
};

struct Sink {
  Sink(FastReceiver& path, const SharedMemory& shared_memory, RingShape shape, std::uint64_t first,
       std::uint64_t end)
      : receiver(path), memory(shared_memory), ring(shape), next(first), last(end) {
    receiver.tell_released(first, false);
  }
  void step() {
    while (next < last) {
      arrivals.clear();
      const auto moved = receiver.poll(next, arrivals);
      RECUA_CHECK(moved.ok());
      for (const Arrival& arrival : arrivals) {
        std::array<std::uint64_t, 2> row{};
        std::memcpy(row.data(),
                    memory.bytes().data() + arrival.sequence % ring.n_slots * ring.slot_bytes,
                    sizeof(row));
        n_wrong += arrival.sequence != next || row[0] != next || row[1] != next * next ? 1 : 0;
        ++next;
        receiver.tell_released(next, false);
      }
      if (*moved) continue;
      receiver.arm(loop.get_executor(), [this] { step(); });
      return;
    }
  }
  void run() {
    step();
    loop.run();
  }

  net::asio::io_context loop{1};
  FastReceiver& receiver;
  const SharedMemory& memory;
  RingShape ring;
  std::uint64_t next;
  std::uint64_t last;
  std::vector<Arrival> arrivals;
  std::uint64_t n_wrong = 0;
};

TEST(ShmPath, LosesNothingBetweenThreadsThatSleepAtOnce) {
  constexpr std::uint64_t kFirst = 77;
  constexpr std::uint64_t kEnd = kFirst + 20000;
  Pair pair;
  Source source(*pair.sender, kRing, kFirst, kEnd);
  Sink sink(*pair.receiver, pair.memory, kRing, kFirst, kEnd);
  std::jthread sending([&] { source.run(); });
  sink.run();
  EXPECT_EQ(sink.next, kEnd);
  EXPECT_EQ(sink.n_wrong, 0U);
  sending.join();
  EXPECT_EQ(source.next, kEnd);
}

TEST(ShmPath, LosesNothingBetweenProcessesThatSleepAtOnce) {
  constexpr std::uint64_t kEnd = 20000;
  const SharedMemory memory = SharedMemory::create(kRing.n_slots * kRing.slot_bytes).value();
  ShmAddress address;
  const auto receiver = make_shm_receiver(kRing, memory.fd(), address).value();
  const pid_t child = ::fork();
  if (child == 0) {
    auto sender = make_shm_sender(kRing, address);
    if (!sender.ok()) ::_exit(2);
    Source source(**sender, kRing, 0, kEnd);
    source.run();
    ::_exit(source.next == kEnd ? 0 : 1);
  }
  Sink sink(*receiver, memory, kRing, 0, kEnd);
  sink.run();
  EXPECT_EQ(sink.next, kEnd);
  EXPECT_EQ(sink.n_wrong, 0U);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace recua::rpc
