// Ping-pong between two processes of this host: messages by the shared-memory path (rpc/shm_path.h)
// against the least that could do it, a flag in shared memory that both spin on and one memcpy. The
// two take turns within one run, so that whatever else the machine does hits both; each turn gives
// a median, and the ratio is the median of the ratios of neighbouring turns.
//
//   shm_bench [turns [rounds]]      default: 41 turns of 500 round trips for each size
//
// Both ends answer from where the message lies, so each hop reads what the other one wrote. Needs
// two processors that nothing else keeps busy: look at the quietest turns (min) when it is not so.
#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <fmt/format.h>

#include "net/shm/shared_memory.h"
#include "rpc/shm_path.h"
#include "rpc/tensor_header.h"

namespace recua {
namespace {

using net::shm::SharedMemory;
using SteadyClock = std::chrono::steady_clock;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

constexpr std::uint32_t kSlots = 4;
constexpr std::size_t kFlagBytes = 4096;

/// The yardstick: one buffer and one counter per direction.
struct RawEnd {
  RawEnd(const SharedMemory& send_memory, const SharedMemory& receive_memory)
      : to(send_memory.bytes().data()), from(receive_memory.bytes().data()) {}

  static std::atomic_ref<std::uint64_t> flag(std::byte* memory) {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory));
  }
  void send(std::span<const std::byte> message) {
    std::memcpy(to + kFlagBytes, message.data(), message.size());
    flag(to).store(++n_sent, std::memory_order_release);
  }
  std::byte* receive() {
    ++n_received;
    while (flag(from).load(std::memory_order_acquire) != n_received) pause_briefly();
    return from + kFlagBytes;
  }

  std::byte* to;
  std::byte* from;
  std::uint64_t n_sent = 0;
  std::uint64_t n_received = 0;
};

/// One end of two paths, used as a link uses them.
struct PathEnd {
  void send(std::span<const std::byte> message) {
    // As a link: the header is encoded apart, the rows lie in a buffer.
    while (n_sent - sender->n_released() >= kSlots) sender->poll();
    const bool sent = *sender->post({.sequence = n_sent,
                                     .head = message.first(rpc::kTensorHeaderBytes),
                                     .rows = message.subspan(rpc::kTensorHeaderBytes),
                                     .descriptor = {}});
    RECUA_CHECK(sent);
    ++n_sent;
  }
  std::byte* receive() {
    arrivals.clear();
    while (!*receiver->poll(n_received, arrivals)) pause_briefly();
    RECUA_CHECK(arrivals.size() == 1 && arrivals.front().sequence == n_received);
    return ring_memory + n_received++ % kSlots * ring.slot_bytes;
  }
  void release() { receiver->tell_released(n_received, false); }

  rpc::RingShape ring;
  std::byte* ring_memory = nullptr;
  std::unique_ptr<rpc::FastSender> sender;
  std::unique_ptr<rpc::FastReceiver> receiver;
  std::vector<rpc::Arrival> arrivals;
  std::uint64_t n_sent = 0;
  std::uint64_t n_received = 0;
};

template <class Send, class Receive>
double median_one_way_ns(std::size_t n_rounds, Send send, Receive receive) {
  std::vector<double> times(n_rounds);
  for (double& time : times) {
    const auto start = SteadyClock::now();
    send();
    receive();
    time = std::chrono::duration<double, std::nano>(SteadyClock::now() - start).count() / 2;
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(n_rounds / 2),
                   times.end());
  return times[n_rounds / 2];
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct World {
  World(std::size_t message_bytes, std::size_t n_rounds)
      : bytes(message_bytes),
        rounds(n_rounds),
        ring{.n_slots = kSlots, .slot_bytes = (message_bytes + 63) / 64 * 64},
        raw_there(*SharedMemory::create(kFlagBytes + message_bytes)),
        raw_back(*SharedMemory::create(kFlagBytes + message_bytes)),
        ring_there(*SharedMemory::create(kSlots * ring.slot_bytes)),
        ring_back(*SharedMemory::create(kSlots * ring.slot_bytes)),
        addresses(*SharedMemory::create(sizeof(Mail))) {}

  // How the two processes meet: a connection does this for a link.
  struct Mail {
    std::uint32_t n_ready;
    rpc::ShmAddress address[2];
  };

  PathEnd path_end(int self) {
    Mail& mail = *reinterpret_cast<Mail*>(addresses.bytes().data());
    PathEnd end{.ring = ring,
                .ring_memory = (self == 0 ? ring_back : ring_there).bytes().data(),
                .sender = nullptr,
                .receiver = nullptr,
                .arrivals = {}};
    end.receiver = *rpc::make_shm_receiver(ring, (self == 0 ? ring_back : ring_there).fd(),
                                           mail.address[self]);
    const std::atomic_ref<std::uint32_t> ready(mail.n_ready);
    ready.fetch_add(1);
    while (ready.load() < 2) pause_briefly();
    end.sender = *rpc::make_shm_sender(ring, mail.address[1 - self]);
    ready.fetch_add(1);
    while (ready.load() < 4) pause_briefly();
    return end;
  }

  std::size_t bytes;
  std::size_t rounds;
  rpc::RingShape ring;
  SharedMemory raw_there;
  SharedMemory raw_back;
  SharedMemory ring_there;
  SharedMemory ring_back;
  SharedMemory addresses;
};

void echo(World& world, std::size_t n_turns) {
  RawEnd raw(world.raw_back, world.raw_there);
  PathEnd path = world.path_end(1);
  for (std::size_t turn = 0; turn < n_turns; ++turn) {
    for (std::size_t i = 0; i < world.rounds; ++i) raw.send({raw.receive(), world.bytes});
    for (std::size_t i = 0; i < world.rounds; ++i) {
      path.send({path.receive(), world.bytes});
      path.release();
    }
  }
}

void run(std::size_t bytes, std::size_t n_turns, std::size_t n_rounds) {
  World world(bytes, n_rounds);
  const pid_t child = ::fork();
  RECUA_CHECK(child >= 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    echo(world, n_turns);
    ::_exit(0);
  }
  RawEnd raw(world.raw_there, world.raw_back);
  PathEnd path = world.path_end(0);
  std::vector<double> raw_ns;
  std::vector<double> path_ns;
  std::vector<double> ratios;
  std::vector<std::byte> message(bytes, std::byte{1});
  for (std::size_t turn = 0; turn < n_turns; ++turn) {
    std::byte* last = message.data();
    raw_ns.push_back(median_one_way_ns(
        n_rounds, [&] { raw.send({last, bytes}); }, [&] { last = raw.receive(); }));
    last = message.data();
    path_ns.push_back(median_one_way_ns(
        n_rounds, [&] { path.send({last, bytes}); },
        [&] {
          // The slot is given back one message later: until then the next one is copied from it.
          path.release();
          last = path.receive();
        }));
    ratios.push_back(path_ns.back() / raw_ns.back());
  }
  int status = -1;
  RECUA_CHECK(::waitpid(child, &status, 0) == child && status == 0);
  const double raw_min = *std::min_element(raw_ns.begin(), raw_ns.end());
  const double path_min = *std::min_element(path_ns.begin(), path_ns.end());
  fmt::print("{:>9} {:>12.0f} {:>12.0f} {:>8.2f} {:>12.0f} {:>12.0f} {:>8.2f}\n", bytes,
             median(raw_ns), median(path_ns), median(ratios), raw_min, path_min,
             path_min / raw_min);
  std::fflush(stdout);
}

std::size_t number(std::string_view text, std::size_t fallback) {
  std::size_t out = fallback;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return std::max<std::size_t>(out, 1);
}

}  // namespace
}  // namespace recua

int main(int argc, char** argv) {
  using recua::number;
  const std::size_t n_turns = number(argc > 1 ? argv[1] : "", 41);
  const std::size_t n_rounds = number(argc > 2 ? argv[2] : "", 500);
  fmt::print("one way, ns; medians of {} turns of {} round trips, then the quietest turn\n",
             n_turns, n_rounds);
  fmt::print("{:>9} {:>12} {:>12} {:>8} {:>12} {:>12} {:>8}\n", "bytes", "bare", "path", "ratio",
             "bare min", "path min", "ratio");
  for (const std::size_t bytes :
       {std::size_t{64}, std::size_t{512}, std::size_t{4} << 10U, std::size_t{8} << 10U,
        std::size_t{16} << 10U, std::size_t{64} << 10U, std::size_t{256} << 10U,
        std::size_t{1} << 20U}) {
    recua::run(bytes, n_turns, n_rounds);
  }
  return 0;
}
