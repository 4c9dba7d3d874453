// Links of the plan: workers are told to connect to each other, the coordinator connects to the
// first group and to the last, and sets up the executor that sends and receives there.

#include <utility>

#include <fmt/format.h>

#include "cluster/coordinator_impl.h"
#include "cluster/rank_group.h"
#include "cluster/ring_buffer.h"
#include "cluster/run_all.h"
#include "cluster/stage.h"
#include "cluster/wire.h"
#include "rpc/link.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kCallTimeout = std::chrono::seconds(30);
constexpr net::Duration kSettleSlack = std::chrono::seconds(5);

/// The link itself gives up a transport in its own time; this only catches one that does not.
net::Duration settle_timeout(const rpc::LinkPolicy* policy) {
  const rpc::LinkPolicy defaults;
  return (policy == nullptr ? defaults.settle_timeout : policy->settle_timeout) + kSettleSlack;
}

}  // namespace

std::vector<asio::awaitable<Result<void>>> ClusterImpl::plan_links() {
  std::vector<asio::awaitable<Result<void>>> out;
  for (std::size_t to = n_ranks(); to < peers_.size(); ++to) {
    out.push_back(link(to - n_ranks(), to, static_cast<std::uint32_t>(to)));
  }
  for (std::size_t from = 0; from < peers_.size(); ++from) {
    const std::size_t group = from / n_ranks() * n_ranks();
    for (std::size_t to = group; to < group + n_ranks(); ++to) {
      if (to == from) continue;
      const std::uint32_t number =
          group_channel_number({.from = static_cast<std::uint32_t>(from - group),
                                .to = static_cast<std::uint32_t>(to - group)});
      out.push_back(link(from, to, number));
    }
  }
  return out;
}

asio::awaitable<Result<void>> ClusterImpl::link(std::size_t from, std::size_t to,
                                                std::uint32_t number) {
  wire::ControlMessage request;
  wire::OpenChannel& open = *request.mutable_open_channel();
  open.set_session(id_.session);
  open.set_epoch(id_.epoch);
  open.set_number(number);
  open.set_host(peers_[to].endpoint.host);
  open.set_port(peers_[to].endpoint.port);
  open.set_secret(secret_to_wire(secret_));
  const Result<wire::ControlMessage> reply = co_await call(from, std::move(request), kCallTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  co_return ok();
}

asio::awaitable<Result<void>> ClusterImpl::start(std::size_t index) {
  wire::ControlMessage request;
  request.mutable_start_session()->set_session(id_.session);
  request.mutable_start_session()->set_epoch(id_.epoch);
  const Result<wire::ControlMessage> reply = co_await call(index, std::move(request), kCallTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  co_return ok();
}

rpc::LinkContext ClusterImpl::link_context(std::uint32_t number, bool sends) {
  rpc::LinkContext context;
  context.env = env_;
  context.policy = options_.link_policy;
  context.self = self_.name;
  context.other = sends ? peers_[number].name : peers_[peers_.size() - n_ranks()].name;
  context.report = [weak = weak_from_this(), number, sends](const std::string& text) {
    if (const auto alive = weak.lock()) alive->links_.own_report(number, sends, text);
  };
  return context;
}

asio::awaitable<Result<void>> ClusterImpl::open_channels() {
  const auto self = shared_from_this();
  using Task = asio::awaitable<Result<void>>;
  Result<void> result = co_await run_all(env_.executor, plan_links());
  if (!result.ok()) co_return result;

  const std::size_t last = peers_.size() - n_ranks();  // The first rank of the last group.
  rpc::ChannelRequest in;
  in.id = id_;
  in.direction = rpc::Direction::kConnectorSends;
  in.secret = secret_;
  std::vector<OpenedChannel> firsts;
  for (std::uint32_t i = 0; i < n_ranks(); ++i) {
    in.number = i;
    RECUA_CO_ASSIGN_OR_RETURN(OpenedChannel first, co_await channel_to(i, in));
    firsts.push_back(std::move(first));
  }

  rpc::ChannelRequest out = in;
  out.number = static_cast<std::uint32_t>(peers_.size());
  out.direction = rpc::Direction::kAcceptorSends;
  out.ring = result_ring_shape(n_logit_rows_, hyperparams_.vocab_size);
  RECUA_CO_ASSIGN_OR_RETURN(OpenedChannel results, co_await channel_to(last, out));

  std::vector<Task> starts;
  for (std::size_t i = 0; i < peers_.size(); ++i) starts.push_back(start(i));
  result = co_await run_all(env_.executor, std::move(starts));
  if (!result.ok()) co_return result;

  RECUA_CO_ASSIGN_OR_RETURN(std::unique_ptr<RingBuffer> made,
                            RingBuffer::create(nullptr, out.ring, options_.link_policy));
  const std::shared_ptr<RingBuffer> ring = std::move(made);
  RemoteExecutor::Parts parts;
  parts.env = env_;
  parts.id = id_;
  parts.info = {
      .vocab_size = hyperparams_.vocab_size,
      .n_ctx = slice_options_.n_ctx,
      .n_pages = slice_options_.n_pages,
      .page_tokens = slice_options_.page_tokens,
      .n_batch = options_.n_batch,
      .n_ubatch = slice_options_.n_ubatch,
      .description = fmt::format("{} worker{}, {}", peers_.size(), peers_.size() == 1 ? "" : "s",
                                 describe(plan_, offers_))};
  parts.n_logit_rows = n_logit_rows_;
  parts.keep = ring;
  for (std::uint32_t i = 0; i < n_ranks(); ++i) {
    OpenedChannel& first = firsts[i];
    parts.firsts.push_back(rpc::make_link_sender(link_context(i, true), std::move(first.connection),
                                                 first.agreed.ring, {},
                                                 first.agreed.peer.features));
  }
  RECUA_CO_ASSIGN_OR_RETURN(parts.last, rpc::make_link_receiver(link_context(out.number, false),
                                                                std::move(results.connection), id_,
                                                                out.ring, ring->memory()));
  executor_ = std::make_unique<RemoteExecutor>(std::move(parts));
  result = co_await executor_->wait_until_settled(settle_timeout(options_.link_policy));
  if (failure_.has_value()) co_return *failure_;
  co_return result;
}

}  // namespace recua::cluster
