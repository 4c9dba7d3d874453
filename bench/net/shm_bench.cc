// Ping-pong between two processes of this host: messages by the shared-memory path (rpc/shm_path.h)
// against the least that could do it, a flag in shared memory that both spin on and one memcpy:
// "bare" with as many buffers in turn as the path's ring has slots, "bare1" with the same single
// buffer each time, which stays in the nearest cache as no ring of messages does. The three take
// turns within one run, so that whatever else the machine does hits all; each turn gives a median,
// and a ratio is the median of the ratios of neighbouring turns.
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
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
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

/// The yardstick: a counter and n_buffers buffers per direction.
struct RawEnd {
  RawEnd(const SharedMemory& send_memory, const SharedMemory& receive_memory, std::uint64_t buffers,
         std::uint64_t bytes_each)
      : to(send_memory.bytes().data()),
        from(receive_memory.bytes().data()),
        n_buffers(buffers),
        buffer_bytes(bytes_each) {}

  static std::atomic_ref<std::uint64_t> flag(std::byte* memory) {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory));
  }
  void send(std::span<const std::byte> message) {
    std::memcpy(to + kFlagBytes + n_sent % n_buffers * buffer_bytes, message.data(),
                message.size());
    flag(to).store(++n_sent, std::memory_order_release);
  }
  std::byte* receive() {
    while (flag(from).load(std::memory_order_acquire) != n_received + 1) pause_briefly();
    return from + kFlagBytes + n_received++ % n_buffers * buffer_bytes;
  }

  std::byte* to;
  std::byte* from;
  std::uint64_t n_buffers;
  std::uint64_t buffer_bytes;
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
        ring{.n_slots = kSlots, .slot_bytes = (message_bytes + 63) / 64 * 64} {}

  static SharedMemory memory(std::size_t n) { return *SharedMemory::create(n); }

  // How the two processes meet: a connection does this for a link.
  struct Mail {
    std::uint32_t n_ready;
    rpc::ShmAddress address[2];
  };

  RawEnd raw_end(int self, std::size_t which) const {
    const auto& pair = which == 0 ? raw : raw1;
    return {pair[static_cast<std::size_t>(self)], pair[static_cast<std::size_t>(1 - self)],
            which == 0 ? kSlots : 1U, ring.slot_bytes};
  }
  PathEnd path_end(int self) {
    const SharedMemory& own = rings[static_cast<std::size_t>(self)];
    Mail& mail = *reinterpret_cast<Mail*>(addresses.bytes().data());
    PathEnd end{.ring = ring,
                .ring_memory = own.bytes().data(),
                .sender = nullptr,
                .receiver = nullptr,
                .arrivals = {}};
    end.receiver = *rpc::make_shm_receiver(ring, own.fd(), mail.address[self]);
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
  std::array<SharedMemory, 2> raw{memory(kFlagBytes + kSlots * ring.slot_bytes),
                                  memory(kFlagBytes + kSlots * ring.slot_bytes)};
  std::array<SharedMemory, 2> raw1{memory(kFlagBytes + ring.slot_bytes),
                                   memory(kFlagBytes + ring.slot_bytes)};
  std::array<SharedMemory, 2> rings{memory(kSlots * ring.slot_bytes),
                                    memory(kSlots* ring.slot_bytes)};
  SharedMemory addresses = memory(sizeof(Mail));
};

void echo(World& world, std::size_t n_turns) {
  RawEnd raw = world.raw_end(1, 0);
  RawEnd raw1 = world.raw_end(1, 1);
  PathEnd path = world.path_end(1);
  for (std::size_t turn = 0; turn < n_turns; ++turn) {
    for (RawEnd* end : {&raw, &raw1}) {
      for (std::size_t i = 0; i < world.rounds; ++i) end->send({end->receive(), world.bytes});
    }
    for (std::size_t i = 0; i < world.rounds; ++i) {
      path.send({path.receive(), world.bytes});
      path.release();
    }
  }
}

/// What one way of sending took, turn by turn.
struct Series {
  std::vector<double> medians_ns;
  [[nodiscard]] double median_ns() const { return median(medians_ns); }
  [[nodiscard]] double min_ns() const {
    return *std::min_element(medians_ns.begin(), medians_ns.end());
  }
  [[nodiscard]] double ratio_to(const Series& other) const {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < medians_ns.size(); ++i) {
      ratios.push_back(medians_ns[i] / other.medians_ns[i]);
    }
    return median(ratios);
  }
};

void run(std::size_t bytes, std::size_t n_turns, std::size_t n_rounds) {
  World world(bytes, n_rounds);
  const pid_t child = ::fork();
  RECUA_CHECK(child >= 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    echo(world, n_turns);
    ::_exit(0);
  }
  RawEnd raw = world.raw_end(0, 0);
  RawEnd raw1 = world.raw_end(0, 1);
  PathEnd path = world.path_end(0);
  Series bare;
  Series bare1;
  Series ours;
  std::vector<std::byte> message(bytes, std::byte{1});
  for (std::size_t turn = 0; turn < n_turns; ++turn) {
    std::byte* last = message.data();
    const auto time_raw = [&](RawEnd& end) {
      last = message.data();
      return median_one_way_ns(
          n_rounds, [&] { end.send({last, bytes}); }, [&] { last = end.receive(); });
    };
    bare.medians_ns.push_back(time_raw(raw));
    bare1.medians_ns.push_back(time_raw(raw1));
    last = message.data();
    ours.medians_ns.push_back(median_one_way_ns(
        n_rounds, [&] { path.send({last, bytes}); },
        [&] {
          // The slot is given back one message later: until then the next one is copied from it.
          path.release();
          last = path.receive();
        }));
  }
  int status = -1;
  RECUA_CHECK(::waitpid(child, &status, 0) == child && status == 0);
  fmt::print(
      "{:>9} {:>10.0f} {:>10.0f} {:>10.0f} {:>8.2f} {:>8.2f} {:>10.0f} {:>10.0f} {:>10.0f}\n",
      bytes, bare.median_ns(), bare1.median_ns(), ours.median_ns(), ours.ratio_to(bare),
      ours.ratio_to(bare1), bare.min_ns(), bare1.min_ns(), ours.min_ns());
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
  fmt::print("{:>9} {:>10} {:>10} {:>10} {:>8} {:>8} {:>10} {:>10} {:>10}\n", "bytes", "bare",
             "bare1", "path", "to bare", "to bare1", "bare", "bare1", "path");
  for (const std::size_t bytes :
       {std::size_t{64}, std::size_t{512}, std::size_t{4} << 10U, std::size_t{8} << 10U,
        std::size_t{16} << 10U, std::size_t{64} << 10U, std::size_t{256} << 10U,
        std::size_t{1} << 20U}) {
    recua::run(bytes, n_turns, n_rounds);
  }
  return 0;
}
