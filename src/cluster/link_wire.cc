#include "cluster/link_wire.h"

#include <algorithm>

#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

constexpr std::size_t kNameBytesMax = 256;
constexpr std::size_t kTextBytesMax = 1024;

/// The counters' fields of the message in the order of rpc::counter_fields(), both ways.
struct WireField {
  std::uint64_t (wire::LinkCounters::*get)() const;
  void (wire::LinkCounters::*set)(std::uint64_t);
  std::uint64_t rpc::ChannelCounters::* value;
};
constexpr WireField kFields[] = {
    {&wire::LinkCounters::messages, &wire::LinkCounters::set_messages,
     &rpc::ChannelCounters::messages},
    {&wire::LinkCounters::bytes, &wire::LinkCounters::set_bytes, &rpc::ChannelCounters::bytes},
    {&wire::LinkCounters::payload_copies, &wire::LinkCounters::set_payload_copies,
     &rpc::ChannelCounters::payload_copies},
    {&wire::LinkCounters::payload_bytes_copied, &wire::LinkCounters::set_payload_bytes_copied,
     &rpc::ChannelCounters::payload_bytes_copied},
    {&wire::LinkCounters::system_calls, &wire::LinkCounters::set_system_calls,
     &rpc::ChannelCounters::system_calls},
    {&wire::LinkCounters::posts, &wire::LinkCounters::set_posts, &rpc::ChannelCounters::posts},
    {&wire::LinkCounters::requests, &wire::LinkCounters::set_requests,
     &rpc::ChannelCounters::requests},
    {&wire::LinkCounters::polls, &wire::LinkCounters::set_polls, &rpc::ChannelCounters::polls},
    {&wire::LinkCounters::completions, &wire::LinkCounters::set_completions,
     &rpc::ChannelCounters::completions},
    {&wire::LinkCounters::sleeps, &wire::LinkCounters::set_sleeps, &rpc::ChannelCounters::sleeps},
    {&wire::LinkCounters::failovers, &wire::LinkCounters::set_failovers,
     &rpc::ChannelCounters::failovers},
    {&wire::LinkCounters::resent, &wire::LinkCounters::set_resent, &rpc::ChannelCounters::resent},
    {&wire::LinkCounters::rows_alone, &wire::LinkCounters::set_rows_alone,
     &rpc::ChannelCounters::rows_alone},
};
static_assert(sizeof(kFields) / sizeof(kFields[0]) * sizeof(std::uint64_t) ==
              sizeof(rpc::ChannelCounters));

}  // namespace

wire::LinkCounters to_wire(const SessionLink& link) {
  wire::LinkCounters out;
  out.set_from(rpc::wire_text(link.stats.from, kNameBytesMax));
  out.set_to(rpc::wire_text(link.stats.to, kNameBytesMax));
  out.set_transport(rpc::wire_text(link.stats.transport, kTextBytesMax));
  out.set_number(link.number);
  out.set_sends(link.stats.sends);
  for (const WireField& field : kFields) (out.*field.set)(link.stats.counters.*field.value);
  return out;
}

std::vector<SessionLink> from_wire(const wire::SessionClosed& closed, int links_max) {
  std::vector<SessionLink> out;
  for (const wire::LinkCounters& counters : closed.links()) {
    if (static_cast<int>(out.size()) == links_max) break;
    SessionLink& link = out.emplace_back();
    link.number = counters.number();
    link.stats.from = rpc::wire_text(counters.from(), kNameBytesMax);
    link.stats.to = rpc::wire_text(counters.to(), kNameBytesMax);
    link.stats.transport = rpc::wire_text(counters.transport(), kTextBytesMax);
    link.stats.sends = counters.sends();
    for (const WireField& field : kFields) {
      link.stats.counters.*field.value = (counters.*field.get)();
    }
  }
  return out;
}

wire::LinkReport link_report_to_wire(const rpc::ChannelId& id, const rpc::LinkStats& link,
                                     std::uint32_t number, const std::string& text) {
  wire::LinkReport out;
  out.set_session(id.session);
  out.set_epoch(id.epoch);
  out.set_from(rpc::wire_text(link.from, kNameBytesMax));
  out.set_to(rpc::wire_text(link.to, kNameBytesMax));
  out.set_text(rpc::wire_text(text, kTextBytesMax));
  out.set_number(number);
  out.set_sends(link.sends);
  return out;
}

}  // namespace recua::cluster
