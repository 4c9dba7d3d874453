// The yardstick of the RDMA transport: a bare WRITE_WITH_IMM ping-pong, and a window of bare
// writes, by libibverbs and sockets only. Nothing of recua is in it.
//
//   raw_verbs --server 7600 [--device rxb] [--gid-index 1 | --address 10.9.0.2]
//   raw_verbs --connect 10.9.0.2:7600 [--device rxa] [...] [--bytes 8192] [--rounds 1000] [--json]
//   raw_verbs --connect ... --bandwidth [--bytes 1048576] [--rounds 64] [--window 16]
//
// The client says what is measured, so the server needs only a port and a device; it serves one
// client and ends. Waiting: by default both sides spin for --spin-us (10) and then block on the
// completion channel (--events); with --poll they spin all the time, which starves Soft-RoCE on one
// processor. A receiver learns nothing of a peer that is gone, so after --limit-s (120) each side
// ends by SIGALRM. One way is half of a round trip. MB are 10^6 bytes; perftest's MB/sec are 2^20.
#include <algorithm>
#include <arpa/inet.h>
#include <bit>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <infiniband/verbs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <random>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace {

using SteadyClock = std::chrono::steady_clock;
using Microseconds = std::chrono::duration<double, std::micro>;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "raw_verbs: %s\n", what.c_str());
  std::exit(1);
}
[[noreturn]] void fail(const std::string& what, int error) {
  fail(what + ": " + std::strerror(error));
}

struct Options {
  std::string server;
  std::string connect;
  std::string device;
  std::string address;
  int gid_index = -1;
  std::uint64_t bytes = 0;
  std::uint64_t rounds = 0;
  std::uint64_t window = 16;
  std::uint64_t spin_us = 10;
  std::uint64_t limit_s = 120;
  bool poll = false;
  bool bandwidth = false;
  bool json = false;
};

std::uint64_t number(const std::string& text) {
  std::uint64_t out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || end != text.data() + text.size() || out > (std::uint64_t{1} << 32))
    fail("'" + text + "' is not a number up to 2^32");
  return out;
}

Options parse(int argc, char** argv) {
  Options out;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      if (++i >= argc) fail(name + " needs a value");
      return argv[i];
    };
    if (name == "--server") {
      out.server = value();
    } else if (name == "--connect") {
      out.connect = value();
    } else if (name == "--device") {
      out.device = value();
    } else if (name == "--address") {
      out.address = value();
    } else if (name == "--gid-index") {
      out.gid_index = static_cast<int>(number(value()));
    } else if (name == "--bytes") {
      out.bytes = number(value());
    } else if (name == "--rounds") {
      out.rounds = number(value());
    } else if (name == "--window") {
      out.window = std::clamp<std::uint64_t>(number(value()), 1, 128);
    } else if (name == "--spin-us") {
      out.spin_us = number(value());
    } else if (name == "--limit-s") {
      out.limit_s = number(value());
    } else if (name == "--events") {
      out.poll = false;
    } else if (name == "--poll") {
      out.poll = true;
    } else if (name == "--bandwidth") {
      out.bandwidth = true;
    } else if (name == "--json") {
      out.json = true;
    } else {
      fail("unknown option " + name + "; the head of raw_verbs.cc lists them");
    }
  }
  if (out.server.empty() == out.connect.empty()) fail("give either --server or --connect");
  if (out.bytes == 0) out.bytes = out.bandwidth ? std::uint64_t{1} << 20 : 8192;
  if (out.rounds == 0) out.rounds = out.bandwidth ? 64 : 1000;
  return out;
}

// ---- Sockets ----------------------------------------------------------------------------------

int open_socket(const std::string& where, bool listens) {
  const std::size_t colon = where.rfind(':');
  std::string host = colon == std::string::npos ? "" : where.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  const std::string port = colon == std::string::npos ? where : where.substr(colon + 1);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = listens ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  if (const int error =
          getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
      error != 0)
    fail("'" + where + "': " + gai_strerror(error));
  // A server may be a moment later than its client.
  const auto deadline = SteadyClock::now() + std::chrono::seconds(10);
  int fd = -1;
  while (fd < 0) {
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket", errno);
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const int done = listens ? bind(fd, found->ai_addr, found->ai_addrlen)
                             : connect(fd, found->ai_addr, found->ai_addrlen);
    if (done == 0) break;
    if (listens || SteadyClock::now() > deadline) fail("'" + where + "'", errno);
    close(fd);
    fd = -1;
    usleep(20'000);
  }
  freeaddrinfo(found);
  if (!listens) return fd;
  if (listen(fd, 1) != 0) fail("listen", errno);
  const int accepted = accept(fd, nullptr, nullptr);
  if (accepted < 0) fail("accept", errno);
  close(fd);
  return accepted;
}

void write_all(int fd, const void* data, std::size_t bytes) {
  if (send(fd, data, bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) fail("send", errno);
}
void read_all(int fd, void* data, std::size_t bytes) {
  if (recv(fd, data, bytes, MSG_WAITALL) != static_cast<ssize_t>(bytes)) fail("the peer is gone");
}

/// Both ends are this program on machines of one byte order, and one run of it.
struct Hello {
  std::uint64_t bytes = 0;
  std::uint64_t rounds = 0;
  std::uint64_t window = 0;
  std::uint64_t spin_us = 0;
  std::uint32_t bandwidth = 0;
  std::uint32_t poll = 0;
  std::uint64_t address = 0;
  std::uint32_t rkey = 0;
  std::uint32_t qp_number = 0;
  std::uint32_t psn = 0;
  std::uint32_t mtu = 0;
  std::uint32_t lid = 0;
  std::uint32_t unused = 0;
  std::uint8_t gid[16] = {};
};

// ---- Verbs ------------------------------------------------------------------------------------

constexpr std::uint32_t kReceives = 64;
constexpr std::size_t kPage = 4096;

class Link {
 public:
  Link(const Options& options) { open(options); }

  void connect(int fd, Hello& mine, bool is_server) {
    ibv_port_attr port{};
    if (const int error = ibv_query_port(context_, 1, &port); error != 0) fail("port", error);
    Hello theirs;
    if (is_server) {  // The client's wishes first: the buffer depends on them.
      read_all(fd, &theirs, sizeof theirs);
      mine = theirs;
    }
    // Sent from the first half, received into the second.
    half_ = (mine.bytes + kPage - 1) / kPage * kPage;
    buffer_ = static_cast<std::uint8_t*>(mmap(nullptr, 2 * half_, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
    if (buffer_ == MAP_FAILED) fail("mmap", errno);
    region_ =
        ibv_reg_mr(domain_, buffer_, 2 * half_, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    if (region_ == nullptr) fail("ibv_reg_mr (is `ulimit -l` large enough?)", errno);
    std::random_device random;
    mine.address = std::bit_cast<std::uintptr_t>(buffer_ + half_);
    mine.rkey = region_->rkey;
    mine.qp_number = qp_->qp_num;
    mine.psn = random() & 0xff'ffffU;
    mine.mtu = static_cast<std::uint32_t>(port.active_mtu);
    mine.lid = port.lid;
    std::memcpy(mine.gid, gid_.raw, sizeof mine.gid);
    for (std::uint32_t i = 0; i < kReceives; ++i) post_receive();
    write_all(fd, &mine, sizeof mine);
    if (!is_server) read_all(fd, &theirs, sizeof theirs);

    ibv_qp_attr rtr{};
    rtr.qp_state = IBV_QPS_RTR;
    rtr.path_mtu = static_cast<ibv_mtu>(std::min(mine.mtu, theirs.mtu));
    rtr.dest_qp_num = theirs.qp_number;
    rtr.rq_psn = theirs.psn;
    rtr.max_dest_rd_atomic = 1;
    rtr.min_rnr_timer = 12;
    rtr.ah_attr.port_num = 1;
    rtr.ah_attr.dlid = static_cast<std::uint16_t>(theirs.lid);
    if (port.link_layer == IBV_LINK_LAYER_ETHERNET) {
      rtr.ah_attr.is_global = 1;
      rtr.ah_attr.grh.hop_limit = 64;
      rtr.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(gid_index_);
      std::memcpy(rtr.ah_attr.grh.dgid.raw, theirs.gid, sizeof theirs.gid);
    }
    modify(rtr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    ibv_qp_attr rts{};
    rts.qp_state = IBV_QPS_RTS;
    rts.timeout = 14;
    rts.retry_cnt = 6;
    rts.rnr_retry = 6;
    rts.sq_psn = mine.psn;
    rts.max_rd_atomic = 1;
    modify(rts, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                    IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
    remote_address_ = theirs.address;
    rkey_ = theirs.rkey;
    bytes_ = mine.bytes;
    // Nobody writes before both are ready.
    char ready = 'r';
    write_all(fd, &ready, 1);
    read_all(fd, &ready, 1);
  }

  void post_write(bool immediate, bool signaled) {
    ibv_sge segment{.addr = std::bit_cast<std::uintptr_t>(buffer_),
                    .length = static_cast<std::uint32_t>(bytes_),
                    .lkey = region_->lkey};
    ibv_send_wr request{};
    request.sg_list = &segment;
    request.num_sge = 1;
    request.opcode = immediate ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE;
    if (signaled) request.send_flags |= IBV_SEND_SIGNALED;
    if (bytes_ <= inline_bytes_) request.send_flags |= IBV_SEND_INLINE;
    request.wr.rdma.remote_addr = remote_address_;
    request.wr.rdma.rkey = rkey_;
    ibv_send_wr* bad = nullptr;
    if (const int error = ibv_post_send(qp_, &request, &bad); error != 0)
      fail("ibv_post_send", error);
  }
  void post_receive() {
    ibv_recv_wr request{};
    ibv_recv_wr* bad = nullptr;
    if (const int error = ibv_post_recv(qp_, &request, &bad); error != 0)
      fail("ibv_post_recv", error);
  }

  struct Taken {
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
  };
  /// Waits for at least one completion.
  Taken wait(std::chrono::microseconds spin, bool always_poll) {
    Taken taken = take();
    if (taken.sent + taken.received != 0) return taken;
    const auto until = SteadyClock::now() + spin;
    while (always_poll || SteadyClock::now() < until) {
      taken = take();
      if (taken.sent + taken.received != 0) return taken;
    }
    while (true) {
      if (const int error = ibv_req_notify_cq(cq_, 0); error != 0) fail("ibv_req_notify_cq", error);
      taken = take();  // What arrived before the request raises no event.
      if (taken.sent + taken.received != 0) return taken;
      ibv_cq* cq = nullptr;
      void* ignored = nullptr;
      if (ibv_get_cq_event(channel_, &cq, &ignored) != 0) fail("ibv_get_cq_event", errno);
      ibv_ack_cq_events(cq_, 1);
      taken = take();
      if (taken.sent + taken.received != 0) return taken;
    }
  }

  void close_all() {
    ibv_destroy_qp(qp_);
    ibv_destroy_cq(cq_);
    ibv_destroy_comp_channel(channel_);
    ibv_dereg_mr(region_);
    ibv_dealloc_pd(domain_);
    ibv_close_device(context_);
    munmap(buffer_, 2 * half_);
  }

 private:
  void modify(ibv_qp_attr& attributes, int mask) {
    if (const int error = ibv_modify_qp(qp_, &attributes, mask); error != 0)
      fail("ibv_modify_qp", error);
  }

  Taken take() {
    Taken out;
    ibv_wc completions[16];
    const int n = ibv_poll_cq(cq_, 16, completions);
    if (n < 0) fail("ibv_poll_cq");
    for (int i = 0; i < n; ++i) {
      if (completions[i].status != IBV_WC_SUCCESS) fail(ibv_wc_status_str(completions[i].status));
      if (completions[i].opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
        post_receive();
        ++out.received;
      } else {
        ++out.sent;
      }
    }
    return out;
  }

  void choose_gid(const Options& options) {
    gid_index_ = options.gid_index;
    if (gid_index_ < 0) {
      std::vector<ibv_gid_entry> entries(1024);
      const ssize_t n = ibv_query_gid_table(context_, entries.data(), entries.size(), 0);
      in6_addr wanted{};
      in_addr v4{};
      const bool has_v4 = inet_pton(AF_INET, options.address.c_str(), &v4) == 1;
      const bool has_v6 = inet_pton(AF_INET6, options.address.c_str(), &wanted) == 1;
      for (ssize_t i = 0; i < n && gid_index_ < 0; ++i) {
        const ibv_gid_entry& entry = entries[static_cast<std::size_t>(i)];
        const auto* const raw = static_cast<const std::uint8_t*>(entry.gid.raw);
        const bool mapped = raw[10] == 0xff && raw[11] == 0xff;
        if (entry.port_num != 1 || entry.gid_type == IBV_GID_TYPE_ROCE_V1) continue;
        const bool fits = has_v6   ? std::memcmp(raw, &wanted, 16) == 0
                          : has_v4 ? mapped && std::memcmp(raw + 12, &v4, 4) == 0
                                   : mapped || entry.gid_type == IBV_GID_TYPE_IB;
        if (fits) gid_index_ = static_cast<int>(entry.gid_index);
      }
    }
    if (gid_index_ < 0) fail("no GID fits; name one with --gid-index");
    if (ibv_query_gid(context_, 1, gid_index_, &gid_) != 0) fail("no such GID index");
  }

  void open(const Options& options) {
    int n = 0;
    ibv_device** const list = ibv_get_device_list(&n);
    if (list == nullptr || n == 0) fail("no RDMA device here");
    ibv_device* chosen = nullptr;
    for (int i = 0; i < n && chosen == nullptr; ++i)
      if (options.device.empty() || options.device == ibv_get_device_name(list[i]))
        chosen = list[i];
    if (chosen == nullptr) fail("no RDMA device is called " + options.device);
    context_ = ibv_open_device(chosen);
    if (context_ == nullptr) fail("ibv_open_device", errno);
    ibv_free_device_list(list);
    choose_gid(options);
    domain_ = ibv_alloc_pd(context_);
    channel_ = ibv_create_comp_channel(context_);
    cq_ = ibv_create_cq(context_, 512, nullptr, channel_, 0);
    if (domain_ == nullptr || channel_ == nullptr || cq_ == nullptr)
      fail("cannot make a domain or queue", errno);
    for (std::uint32_t wish = 256;; wish /= 2) {
      ibv_qp_init_attr attributes{};
      attributes.send_cq = attributes.recv_cq = cq_;
      attributes.qp_type = IBV_QPT_RC;
      attributes.cap = {.max_send_wr = 128,
                        .max_recv_wr = kReceives,
                        .max_send_sge = 1,
                        .max_recv_sge = 1,
                        .max_inline_data = wish};
      qp_ = ibv_create_qp(domain_, &attributes);
      inline_bytes_ = std::min(wish, attributes.cap.max_inline_data);
      if (qp_ != nullptr) break;
      if (wish == 0) fail("ibv_create_qp", errno);
    }
    ibv_qp_attr init{};
    init.qp_state = IBV_QPS_INIT;
    init.port_num = 1;
    init.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
    modify(init, IBV_QP_STATE | IBV_QP_PORT | IBV_QP_PKEY_INDEX | IBV_QP_ACCESS_FLAGS);
  }

  ibv_context* context_ = nullptr;
  ibv_pd* domain_ = nullptr;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* cq_ = nullptr;
  ibv_qp* qp_ = nullptr;
  ibv_mr* region_ = nullptr;
  std::uint8_t* buffer_ = nullptr;
  std::size_t half_ = 0;
  int gid_index_ = -1;
  ibv_gid gid_{};
  std::uint32_t inline_bytes_ = 0;
  std::uint64_t bytes_ = 0;
  std::uint64_t remote_address_ = 0;
  std::uint32_t rkey_ = 0;
};

// ---- What is measured -------------------------------------------------------------------------

/// One-way times in microseconds, sorted. A send is signaled now and then, so that its queue
/// drains.
std::vector<double> ping_pong(Link& link, const Hello& run, bool is_server) {
  constexpr std::uint64_t kWarmUp = 20;
  constexpr std::uint64_t kSignalEvery = 32;
  const std::chrono::microseconds spin(run.spin_us);
  std::vector<double> out;
  std::uint64_t n_received = 0;
  const auto receive = [&](std::uint64_t until) {
    while (n_received < until) n_received += link.wait(spin, run.poll != 0).received;
  };
  for (std::uint64_t round = 0; round < run.rounds + kWarmUp; ++round) {
    const auto start = SteadyClock::now();
    if (is_server) receive(round + 1);
    link.post_write(/*immediate=*/true, /*signaled=*/round % kSignalEvery == 0);
    if (!is_server) receive(round + 1);
    if (round >= kWarmUp) out.push_back(Microseconds(SteadyClock::now() - start).count() / 2);
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// MB/s of the client; the server waits for the last write.
double stream(Link& link, const Hello& run, bool is_server) {
  const std::chrono::microseconds spin(run.spin_us);
  if (is_server) {
    while (link.wait(spin, run.poll != 0).received == 0) {
    }
    return 0;
  }
  std::uint64_t n_posted = 0;
  std::uint64_t n_done = 0;
  const auto start = SteadyClock::now();
  while (n_done < run.rounds) {
    while (n_posted < run.rounds && n_posted - n_done < run.window) {
      ++n_posted;
      link.post_write(/*immediate=*/n_posted == run.rounds, /*signaled=*/true);
    }
    n_done += link.wait(spin, run.poll != 0).sent;
  }
  const double us = Microseconds(SteadyClock::now() - start).count();
  return static_cast<double>(run.rounds * run.bytes) / us;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const bool is_server = !options.server.empty();
  alarm(static_cast<unsigned>(options.limit_s));
  const int fd = open_socket(is_server ? options.server : options.connect, is_server);
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  Hello run{.bytes = options.bytes,
            .rounds = options.rounds,
            .window = options.window,
            .spin_us = options.spin_us,
            .bandwidth = options.bandwidth ? 1U : 0U,
            .poll = options.poll ? 1U : 0U};
  Link link(options);
  link.connect(fd, run, is_server);
  const char* const mode = run.poll != 0 ? "poll" : "events";
  const auto bytes = static_cast<unsigned long long>(run.bytes);
  const auto rounds = static_cast<unsigned long long>(run.rounds);
  if (run.bandwidth != 0) {
    const double mb_s = stream(link, run, is_server);
    if (!is_server && options.json) {
      std::printf(
          "{\"name\":\"net/bandwidth/raw_verbs/bytes:%llu\",\"mode\":\"%s\","
          "\"window\":%llu,\"writes\":%llu,\"mb_per_s\":%.2f,\"mib_per_s\":%.2f}\n",
          bytes, mode, static_cast<unsigned long long>(run.window), rounds, mb_s,
          mb_s * 1e6 / 1048576);
    } else if (!is_server) {
      std::printf("net/bandwidth/raw_verbs/bytes:%llu %s: %.2f MB/s (%.2f MiB/s)\n", bytes, mode,
                  mb_s, mb_s * 1e6 / 1048576);
    }
  } else {
    const std::vector<double> us = ping_pong(link, run, is_server);
    const double p50 = us[us.size() / 2];
    const double p99 = us[us.size() * 99 / 100];
    if (!is_server && options.json) {
      std::printf(
          "{\"name\":\"net/one_way/raw_verbs/bytes:%llu\",\"mode\":\"%s\","
          "\"rounds\":%llu,\"p50_us\":%.2f,\"p99_us\":%.2f}\n",
          bytes, mode, rounds, p50, p99);
    } else if (!is_server) {
      std::printf("net/one_way/raw_verbs/bytes:%llu %s: p50 %.2f us, p99 %.2f us\n", bytes, mode,
                  p50, p99);
    }
  }
  std::fflush(stdout);
  // The last packets of the other end are answered before this one goes.
  char done = 'd';
  write_all(fd, &done, 1);
  read_all(fd, &done, 1);
  close(fd);
  link.close_all();
  return 0;
}
