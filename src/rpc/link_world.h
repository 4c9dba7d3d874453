#pragma once
/// What the tests of links share: a sender and a receiver on two simulated hosts, connected by a
/// simulated stream and by a fake RDMA fabric, on one virtual clock.

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "net/verbs/fake_fabric.h"
#include "net/verbs/lane.h"
#include "rpc/link.h"
#include "rpc/link_record.h"
#include "rpc/test_world.h"

namespace recua::rpc {

struct LinkWorldOptions {
  RingShape ring{.n_slots = 4, .slot_bytes = 16 * 1024};
  int n_ports = 1;  // On each host: a0, a1 and b0, b1, pairwise on networks of their own.
  bool sender_rdma = true;
  bool receiver_rdma = true;
  bool peer_knows_links = true;
  std::uint64_t stripe_bytes_min = 4096;
  bool use_immediate = true;
  std::uint64_t n_alike = 3;          // Messages in a row of one shape and descriptor.
  std::size_t descriptor_bytes = 40;  // And up to four more.
  std::uint64_t seed = 1;
  net::verbs::FakeLimits limits = {};
};

struct LinkWorld : TestWorld {
  static constexpr ChannelId kId{.session = 7, .epoch = 3};

  explicit LinkWorld(const LinkWorldOptions& options_in = {})
      : TestWorld({.seed = options_in.seed}),
        options(options_in),
        memory(options.ring.n_slots * options.ring.slot_bytes),
        source(options.ring.n_slots * options.ring.slot_bytes) {
    for (int i = 0; i < options.n_ports; ++i) {
      fabric.add_device("a", "a" + std::to_string(i), {"10." + std::to_string(i) + ".0.1"},
                        options.limits);
      fabric.add_device("b", "b" + std::to_string(i), {"10." + std::to_string(i) + ".0.2"},
                        options.limits);
    }
    provider_a = fabric.provider("a");
    provider_b = fabric.provider("b");
    policy_a = policy(*provider_a, options.sender_rdma);
    policy_b = policy(*provider_b, options.receiver_rdma);
    LinkContext from{.env = a, .policy = &policy_a, .self = "a", .other = "b"};
    from.report = [this](const std::string& line) { sender_lines.push_back(line); };
    LinkContext to{.env = b, .policy = &policy_b, .self = "b", .other = "a"};
    to.report = [this](const std::string& line) { receiver_lines.push_back(line); };
    const std::vector<std::uint32_t> features =
        options.peer_knows_links ? PeerInfo{}.features : std::vector<std::uint32_t>{1, 2};
    sender = make_link_sender(from, std::move(client), options.ring, {std::span(source)}, features);
    by_hand = server.get();
    receiver = *make_link_receiver(to, std::move(server), kId, options.ring, {.bytes = memory});
  }
  /// Takes the sender's offer off the connection before the receiver sees it: its first lane.
  net::verbs::LaneAddress offer_by_hand() {
    std::array<std::byte, 4096> bytes;
    const std::size_t n = *by_hand->try_read(bytes);
    wire::LinkOffer offer;
    RECUA_CHECK(n > kRecordHeaderBytes);
    RECUA_CHECK(
        parse_record(std::span(bytes).first(n).subspan(kRecordHeaderBytes), "a", offer).ok());
    return *from_wire(offer.lanes(0));
  }
  /// Answers the sender's offer in the receiver's place, as one that knows nothing of rows alone;
  /// the lane reads `word`.
  std::unique_ptr<net::verbs::Lane> answer_by_hand(std::span<std::byte> word) {
    RECUA_CHECK(sender->poll().ok());
    settle();
    const net::verbs::LaneAddress offered = offer_by_hand();
    const auto ports = *net::verbs::choose_ports(*provider_b->devices(), {}, "10.0.0.2");
    const std::array<std::span<std::byte>, 1> sources{word};
    auto lane = *net::verbs::Lane::create(*provider_b, ports[0], memory, sources, 1, {});
    RECUA_CHECK(lane->connect(offered).ok());
    wire::LinkAnswer answer;
    answer.set_generation(1);
    to_wire(lane->local(), *answer.add_lanes()->mutable_lane());
    say_to_sender(RecordKind::kAnswer, answer);
    return lane;
  }
  void say_to_sender(RecordKind kind, const google::protobuf::MessageLite& message) {
    const auto bytes = encode_record(kind, message);
    RECUA_CHECK(loop.run(by_hand->write(bytes)).ok());
    settle();
  }

  [[nodiscard]] LinkPolicy policy(net::verbs::Provider& provider, bool rdma) const {
    LinkPolicy out;
    out.allow_rdma = rdma;
    out.provider = rdma ? &provider : nullptr;
    out.stripe_bytes_min = options.stripe_bytes_min;
    out.use_immediate = options.use_immediate;
    return out;
  }

  ~LinkWorld() { fabric.hold_ends(false); }
  /// Polls both ends and lets time pass until the sender knows what it uses.
  bool settle_link() {
    for (int i = 0; i < 20'000 && !sender->settled(); ++i) {
      if (!step()) return false;
    }
    return sender->settled();
  }
  /// One poll of each end. False when an end failed.
  bool step() {
    const Result<bool> sent = sender->poll();
    if (!sent.ok()) sender_error = sent.error();
    if (!take()) return false;
    loop.run_one_or_advance();
    return sent.ok();
  }
  /// Takes messages in and checks them; releases after `hold_back` more.
  bool take() {
    Result<const Incoming*> in = receiver->poll();
    if (!in.ok()) {
      receiver_error = in.error();
      return false;
    }
    if (!*in) return true;
    check(**in, n_taken);
    ++n_taken;
    held.push_back((*in)->slot);
    while (held.size() > hold_back) {
      if (!receiver->release(held.front()).ok()) return false;
      held.pop_front();
    }
    return true;
  }

  [[nodiscard]] std::uint64_t kind_of(std::uint64_t i) const { return i / options.n_alike; }
  /// Kinds change in the descriptor's bytes each time, in lengths every other time.
  [[nodiscard]] std::vector<std::byte> descriptor_of(std::uint64_t i) const {
    return std::vector<std::byte>(options.descriptor_bytes + kind_of(i) / 2 % 5,
                                  std::byte(kind_of(i)));
  }
  /// The next message: its bytes follow from its number, its rows lie in `source`.
  Result<bool> send(std::uint32_t size, bool last = true) {
    const std::uint64_t i = sender->n_sent();
    if (sender->credits() == 0 || i - sender->n_completed() >= options.ring.n_slots) return false;
    std::byte* const rows = source.data() + i % options.ring.n_slots * options.ring.slot_bytes;
    const std::uint32_t bytes = size + static_cast<std::uint32_t>(kind_of(i) / 2 % 7);
    row_bytes[i % row_bytes.size()] = size == 0 ? 0 : bytes;
    for (std::uint32_t k = 0; k < bytes; ++k) rows[k] = byte_of(i, k);
    std::vector<std::byte>& descriptor = descriptors[i % options.ring.n_slots];
    descriptor = descriptor_of(i);
    TensorHeader header{.session = kId.session, .epoch = kId.epoch, .step = i};
    header.n_rows = size == 0 ? 0 : 1;
    header.row_bytes = size == 0 ? 0 : bytes;
    header.descriptor_bytes = static_cast<std::uint32_t>(descriptor.size());
    header.last = last;
    return sender->try_send({.header = header,
                             .rows = std::span(rows, size == 0 ? 0 : bytes),
                             .descriptor = descriptor});
  }
  static std::byte byte_of(std::uint64_t message, std::uint32_t k) {
    return std::byte(mix(message, k / 8) >> (k % 8 * 8));
  }
  void check(const Incoming& in, std::uint64_t i) {
    intact = intact && in.header.step == i && in.header.sequence == i &&
             in.rows.size() == row_bytes[i % row_bytes.size()];
    for (std::uint32_t k = 0; k < in.rows.size(); ++k) {
      intact = intact && in.rows[k] == byte_of(i, k);
    }
    intact = intact && std::ranges::equal(in.descriptor, descriptor_of(i));
  }

  /// Sends n messages of about this size and waits for all. False when it cannot go on.
  bool run(std::uint64_t n, std::uint32_t size) {
    const std::uint64_t end = n_taken + n;
    for (int i = 0; n_taken < end; ++i) {
      if (i > 200'000) return false;
      if (sender->n_sent() < end) {
        const Result<bool> sent = send(size);
        if (!sent.ok()) {
          sender_error = sent.error();
          return false;
        }
      }
      if (!step()) return false;
    }
    return intact;
  }
  [[nodiscard]] std::string what_failed() const {
    return (sender_error ? "sender: " + sender_error->message + "; " : "") +
           (receiver_error ? "receiver: " + receiver_error->message + "; " : "") +
           (intact ? "" : "bytes differ; ") + fmt::format("{} taken", n_taken);
  }

  LinkWorldOptions options;
  net::verbs::FakeFabric fabric;
  std::unique_ptr<net::verbs::Provider> provider_a;
  std::unique_ptr<net::verbs::Provider> provider_b;
  LinkPolicy policy_a;
  LinkPolicy policy_b;
  std::vector<std::byte> memory;
  std::vector<std::byte> source;
  std::array<std::vector<std::byte>, 64> descriptors;
  std::array<std::uint32_t, 64> row_bytes{};  // Of messages under way.
  std::unique_ptr<ChannelSender> sender;
  std::unique_ptr<ChannelReceiver> receiver;
  net::Connection* by_hand = nullptr;  // The receiver's.
  std::vector<std::string> sender_lines;
  std::vector<std::string> receiver_lines;
  std::uint64_t n_taken = 0;
  std::size_t hold_back = 0;
  std::deque<std::uint32_t> held;
  bool intact = true;
  std::optional<Error> sender_error;
  std::optional<Error> receiver_error;
};

}  // namespace recua::rpc
