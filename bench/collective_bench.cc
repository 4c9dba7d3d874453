// All-reduce between two processes of this host, over shared memory and over TCP on loopback,
// against one raw one-way message of the same bytes: "bare", a flag and a memcpy in shared memory
// or plain send and polled recv on a socket, and "channel", the ping-pong of the same channels that
// the group uses; a round trip counts as two ways. "Bare both ways" is the least that an all-reduce
// of two does: both send at once, then both receive and add. All take turns within one run, so that
// whatever else the machine does hits all; a ratio is the median of the turns' ratios.
//
//   collective_bench [--json] [--turns N] [--rounds N]      default: 21 turns of 300 rounds
//
// Both processes poll: needs two processors that nothing else keeps busy.
#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <fmt/format.h>

#include "collective/channel_communicator.h"
#include "net/real_clock.h"
#include "net/shm/shared_memory.h"
#include "net/tcp/tcp_pair.h"
#include "rpc/link.h"
#include "sys/pause.h"

namespace recua {
namespace {

namespace asio = boost::asio;
using net::shm::SharedMemory;
using tcp = asio::ip::tcp;
using SteadyClock = std::chrono::steady_clock;
using ConnectionPtr = std::unique_ptr<net::Connection>;

constexpr std::uint32_t kSlots = 16;
constexpr std::size_t kFlagBytes = 4096;
constexpr rpc::ChannelId kId{.session = 1, .epoch = 1};

/// What both processes inherit.
struct World {
  World(bool with_shared_memory, std::size_t vector_bytes)
      : shared(with_shared_memory),
        bytes(vector_bytes),
        ring{.n_slots = kSlots, .slot_bytes = (vector_bytes + 128 + 63) / 64 * 64} {
    for (net::TcpPair& pair : channels) pair = net::connect_over_loopback(setup, network);
    tcp::acceptor acceptor(setup, tcp::endpoint(tcp::v4(), 0));
    plain[0].connect(
        tcp::endpoint(asio::ip::address_v4::loopback(), acceptor.local_endpoint().port()));
    plain[1] = acceptor.accept();
    for (tcp::socket& socket : plain) socket.set_option(tcp::no_delay(true));
    for (SharedMemory& memory : bare) {
      memory = *SharedMemory::create(kFlagBytes + kSlots * ring.slot_bytes);
    }
  }

  bool shared;
  std::size_t bytes;
  rpc::RingShape ring;
  asio::io_context setup{1};
  net::TcpNetwork network{setup.get_executor()};
  std::array<net::TcpPair, 2> channels;  // Of the group, of the ping-pong.
  std::array<tcp::socket, 2> plain{tcp::socket(setup), tcp::socket(setup)};
  std::array<SharedMemory, 2> bare;  // Written by rank 0, by rank 1.
};

/// One process.
class End {
 public:
  End(World& world, std::uint32_t rank)
      : world_(world), rank_(rank), message_(world.bytes), values_(world.bytes / sizeof(float)) {
    policy_.allow_shared_memory = world.shared;
    policy_.host_identity = "here";
    collective::SendRing send_ring = *collective::SendRing::create(world.ring, 2, 0);
    std::vector<collective::PeerChannels> channels(2);
    channels[1 - rank] = {.sender = sender(0, send_ring.memory()), .receiver = receiver(0)};
    ping_sender_ = sender(1, std::as_writable_bytes(std::span(message_)));
    ping_receiver_ = receiver(1);
    communicator_ = *collective::ChannelCommunicator::create(
        {.id = kId,
         .rank = rank,
         .ring = std::move(send_ring),
         .channels = std::move(channels),
         .clock = &clock_,
         .waiter = &waiter_,
         .options = {.spin = std::chrono::milliseconds(50),
                     .one_shot_values_max = std::size_t{1} << 30}});
  }

  void bare() {
    if (rank_ == 0) send_bare();
    receive_bare();
    if (rank_ == 1) send_bare();
  }
  /// Both ways at once, bare: the least that an all-reduce of two does.
  void exchange() {
    from_ = reinterpret_cast<const std::byte*>(values_.data());
    send_bare();
    receive_bare();
    if (!world_.shared) from_ = message_.data();
    const auto* const other = reinterpret_cast<const float*>(from_);
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] += other[i];
    from_ = message_.data();
  }
  void channel() {
    if (rank_ == 0) send();
    receive();
    if (rank_ == 1) send();
  }
  void all_reduce() { RECUA_CHECK(communicator_->all_reduce(values_).ok()); }
  void barrier() { RECUA_CHECK(communicator_->barrier().ok()); }
  void check_transport() const {
    RECUA_CHECK((communicator_->transport() == "shared memory") == world_.shared);
  }

 private:
  rpc::LinkContext context() {
    net::Env env{.executor = loop_.get_executor(),
                 .clock = &clock_,
                 .network = &world_.network,
                 .random = [this] { return ++n_random_; }};
    rpc::LinkContext out{.env = std::move(env), .policy = world_.shared ? &policy_ : nullptr};
    out.report = [](const std::string&) {};
    return out;
  }
  /// Both ways on one connection, as between ranks.
  std::shared_ptr<rpc::LinkStream> stream(std::size_t pair) {
    std::shared_ptr<rpc::LinkStream>& out = streams_[pair];
    net::TcpPair& ends = world_.channels[pair];
    ConnectionPtr& mine = rank_ == 0 ? ends.client : ends.server;
    if (out == nullptr) out = rpc::make_link_stream(*mine->move_to(loop_.get_executor()));
    return out;
  }
  std::unique_ptr<rpc::ChannelSender> sender(std::size_t pair, std::span<std::byte> source) {
    return rpc::make_link_sender(context(), stream(pair), world_.ring, {source},
                                 std::vector<std::uint32_t>{1, 2, 3});
  }
  std::unique_ptr<rpc::ChannelReceiver> receiver(std::size_t pair) {
    rings_.push_back(*SharedMemory::create(kSlots * world_.ring.slot_bytes));
    return *rpc::make_link_receiver(
        context(), stream(pair), kId, world_.ring,
        {.bytes = rings_.back().bytes(), .shared_fd = rings_.back().fd()});
  }

  void send() {
    rpc::TensorHeader header{.session = kId.session, .epoch = kId.epoch};
    header.n_rows = 1;
    header.row_bytes = static_cast<std::uint32_t>(world_.bytes);
    const std::span<const std::byte> rows =
        held_ ? held_->rows : std::as_bytes(std::span(message_));
    while (!*ping_sender_->try_send({.header = header, .rows = rows, .descriptor = {}})) {
      RECUA_CHECK(ping_sender_->poll().ok());
      if (!ping_sender_->settled()) RECUA_CHECK(ping_receiver_->poll().ok());
    }
    if (held_) RECUA_CHECK(ping_receiver_->release(held_->slot).ok());
    held_ = nullptr;
  }
  /// The next message is sent from where this one lies.
  void receive() {
    while (!held_) {
      held_ = *ping_receiver_->poll();
      if (held_) return;
      if (!ping_sender_->settled()) RECUA_CHECK(ping_sender_->poll().ok());
      sys::pause_cpu();
    }
  }

  static std::atomic_ref<std::uint64_t> flag(std::byte* memory) {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory));
  }
  void send_bare() {
    if (!world_.shared) {
      const ssize_t n =
          ::send(world_.plain[rank_].native_handle(), message_.data(), world_.bytes, MSG_NOSIGNAL);
      RECUA_CHECK(n == static_cast<ssize_t>(world_.bytes));
      return;
    }
    std::byte* const to = world_.bare[rank_].bytes().data();
    std::memcpy(to + kFlagBytes + n_sent_ % kSlots * world_.ring.slot_bytes, from_, world_.bytes);
    flag(to).store(++n_sent_, std::memory_order_release);
  }
  void receive_bare() {
    if (!world_.shared) {
      for (std::size_t done = 0; done < world_.bytes;) {
        const ssize_t n = ::recv(world_.plain[rank_].native_handle(), message_.data() + done,
                                 world_.bytes - done, MSG_DONTWAIT);
        if (n > 0) done += static_cast<std::size_t>(n);
      }
      return;
    }
    std::byte* const from = world_.bare[1 - rank_].bytes().data();
    // It may be one ahead: who has received sends the next at once.
    while (flag(from).load(std::memory_order_acquire) <= n_received_) sys::pause_cpu();
    from_ = from + kFlagBytes + n_received_++ % kSlots * world_.ring.slot_bytes;
  }

  World& world_;
  std::uint32_t rank_;
  std::vector<std::byte> message_;
  std::vector<float> values_;
  net::RealClock clock_;
  asio::io_context loop_{1};
  collective::LoopWaiter waiter_{loop_};
  rpc::LinkPolicy policy_;
  std::uint64_t n_random_ = 0;
  std::vector<SharedMemory> rings_;
  std::array<std::shared_ptr<rpc::LinkStream>, 2> streams_;
  std::unique_ptr<rpc::ChannelSender> ping_sender_;
  std::unique_ptr<rpc::ChannelReceiver> ping_receiver_;
  const rpc::Incoming* held_ = nullptr;
  std::unique_ptr<collective::ChannelCommunicator> communicator_;
  const std::byte* from_ = message_.data();  // Where the last bare message lies.
  std::uint64_t n_sent_ = 0;
  std::uint64_t n_received_ = 0;
};

double quantile(std::vector<double> values, double q) {
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

/// What one kind of exchange took: microseconds.
struct Series {
  std::vector<double> all;
  std::vector<double> medians;  // Of the turns.

  template <class Work>
  void take_turn(std::size_t n_rounds, double ways, Work work) {
    std::vector<double> times;
    for (std::size_t i = 0; i < n_rounds; ++i) {
      const auto start = SteadyClock::now();
      work();
      const std::chrono::duration<double, std::micro> took = SteadyClock::now() - start;
      times.push_back(took.count() / ways);
    }
    medians.push_back(quantile(times, 0.5));
    all.insert(all.end(), times.begin(), times.end());
  }
  [[nodiscard]] double ratio_to(const Series& other) const {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < medians.size(); ++i)
      ratios.push_back(medians[i] / other.medians[i]);
    return quantile(ratios, 0.5);
  }
};

struct Options {
  bool json = false;
  std::size_t turns = 21;
  std::size_t rounds = 300;
};

void run(bool shared, std::size_t bytes, const Options& options) {
  World world(shared, bytes);
  const pid_t child = ::fork();
  RECUA_CHECK(child >= 0);
  if (child == 0) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  {
    End end(world, child == 0 ? 1 : 0);
    Series bare;
    Series exchange;
    Series channel;
    Series all_reduce;
    for (int i = 0; i < 3; ++i) end.all_reduce();
    end.check_transport();
    for (std::size_t turn = 0; turn < options.turns; ++turn) {
      end.barrier();
      bare.take_turn(options.rounds, 2, [&] { end.bare(); });
      end.barrier();
      exchange.take_turn(options.rounds, 1, [&] { end.exchange(); });
      end.barrier();
      channel.take_turn(options.rounds, 2, [&] { end.channel(); });
      end.barrier();
      all_reduce.take_turn(options.rounds, 1, [&] { end.all_reduce(); });
    }
    end.barrier();
    if (child == 0) ::_exit(0);
    const auto us = [](const Series& series, double q) { return quantile(series.all, q); };
    const double ratios[] = {all_reduce.ratio_to(bare), all_reduce.ratio_to(channel),
                             all_reduce.ratio_to(exchange), exchange.ratio_to(bare)};
    if (options.json) {
      fmt::print(
          R"({{"name":"collective/all_reduce/{}/bytes:{}","bare_us_p50":{:.3f},"bare_us_p99":{:.3f},)"
          R"("channel_us_p50":{:.3f},"channel_us_p99":{:.3f},"exchange_us_p50":{:.3f},)"
          R"("exchange_us_p99":{:.3f},"us_p50":{:.3f},"us_p99":{:.3f},"ratio_to_bare":{:.3f},)"
          R"("ratio_to_channel":{:.3f},"ratio_to_exchange":{:.3f},"exchange_to_bare":{:.3f}}})"
          "\n",
          shared ? "shm" : "tcp", bytes, us(bare, 0.5), us(bare, 0.99), us(channel, 0.5),
          us(channel, 0.99), us(exchange, 0.5), us(exchange, 0.99), us(all_reduce, 0.5),
          us(all_reduce, 0.99), ratios[0], ratios[1], ratios[2], ratios[3]);
    } else {
      fmt::print("{:>4} {:>6}", shared ? "shm" : "tcp", bytes);
      for (const Series* series : {&bare, &channel, &exchange, &all_reduce}) {
        fmt::print(" {:>8.2f} {:>7.2f}", us(*series, 0.5), us(*series, 0.99));
      }
      for (const double ratio : ratios) fmt::print(" {:>7.2f}", ratio);
      fmt::print("\n");
    }
    std::fflush(stdout);
  }
  int status = -1;
  RECUA_CHECK(::waitpid(child, &status, 0) == child && status == 0);
}

}  // namespace
}  // namespace recua

int main(int argc, char** argv) {
  recua::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto number = [&](std::size_t& out) {
      if (i + 1 >= argc) return;
      const std::string_view text = argv[++i];
      std::from_chars(text.data(), text.data() + text.size(), out);
      out = std::max<std::size_t>(out, 1);
    };
    if (argument == "--json") options.json = true;
    if (argument == "--turns") number(options.turns);
    if (argument == "--rounds") number(options.rounds);
  }
  if (!options.json) {
    fmt::print("us, p50 and p99 of {} turns of {} rounds, then ratios\n", options.turns,
               options.rounds);
    fmt::print("{:>4} {:>6} {:>16} {:>16} {:>16} {:>16} {:>7} {:>7} {:>7} {:>7}\n", "", "bytes",
               "bare one way", "channel one way", "bare both ways", "all-reduce", "/bare", "/chan",
               "/both", "both/1");
  }
  for (const bool shared : {true, false}) {
    for (const std::size_t bytes :
         {std::size_t{8} << 10U, std::size_t{16} << 10U, std::size_t{32} << 10U}) {
      recua::run(shared, bytes, options);
    }
  }
  return 0;
}
