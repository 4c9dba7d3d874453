#include "rpc/link_metrics.h"

#include <iterator>

#include <fmt/format.h>

namespace recua::rpc {
namespace {

constexpr std::array<CounterField, 13> kFields{{
    {"messages", "Tensor messages.", &ChannelCounters::messages},
    {"bytes", "Bytes of tensor messages, headers included.", &ChannelCounters::bytes},
    {"payload_copies", "Times that rows were copied on their way.",
     &ChannelCounters::payload_copies},
    {"payload_bytes_copied", "Bytes of rows that were copied.",
     &ChannelCounters::payload_bytes_copied},
    {"system_calls", "Reads and writes of the link's connection.", &ChannelCounters::system_calls},
    {"posts", "Calls that hand work to a network card.", &ChannelCounters::posts},
    {"requests", "Work requests handed to a network card.", &ChannelCounters::requests},
    {"polls", "Looks at a completion queue or a shared counter.", &ChannelCounters::polls},
    {"completions", "Completions that those looks found.", &ChannelCounters::completions},
    {"sleeps", "Times that the end went to sleep until something arrives.",
     &ChannelCounters::sleeps},
    {"failovers", "Times that a broken path was given up.", &ChannelCounters::failovers},
    {"resent", "Messages sent again after that.", &ChannelCounters::resent},
    {"rows_alone", "Messages sent without header and descriptor.", &ChannelCounters::rows_alone},
}};
static_assert(kFields.size() * sizeof(std::uint64_t) == sizeof(ChannelCounters));

std::string escaped(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
    } else {
      if (c == '\\' || c == '"') out += '\\';
      out += c;
    }
  }
  return out;
}

}  // namespace

std::span<const CounterField> counter_fields() { return kFields; }

std::string transport_kind(std::string_view transport) {
  if (transport.starts_with("shared memory")) return "shared memory";
  return std::string(transport.substr(0, transport.find_first_of(" ,")));
}

std::string prometheus_text(std::span<const LinkStats> links) {
  std::string out;
  if (links.empty()) return out;
  for (const CounterField& field : kFields) {
    fmt::format_to(std::back_inserter(out),
                   "# HELP recua_link_{0}_total {1}\n# TYPE recua_link_{0}_total counter\n",
                   field.name, field.help);
    for (const LinkStats& link : links) {
      fmt::format_to(
          std::back_inserter(out),
          "recua_link_{}_total{{link=\"{}->{}\",carries=\"{}\",end=\"{}\",transport=\"{}\"}} "
          "{}\n",
          field.name, escaped(link.from), escaped(link.to), escaped(link.carries),
          link.sends ? "sender" : "receiver", escaped(transport_kind(link.transport)),
          link.counters.*field.value);
    }
  }
  return out;
}

}  // namespace recua::rpc
