#include "cluster/cluster_file.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "cluster/json_fields.h"

namespace recua::cluster {
namespace {

// Bounds that no machine of the next decades leaves, so that sums stay far from overflow.
constexpr double kMemoryGibMax = 1 << 20;
constexpr double kGigaPerSecondMax = 1e9;
constexpr double kMicrosecondsMax = 1e7;
constexpr double kHostLimitNone = 0.0;

std::optional<LinkTransport> transport_named(const std::string& name) {
  if (name == "shm") return LinkTransport::kSharedMemory;
  if (name == "rdma") return LinkTransport::kRdma;
  if (name == "tcp") return LinkTransport::kTcp;
  return std::nullopt;
}

MachineSpeed read_speed(JsonFields& fields) {
  MachineSpeed speed;
  speed.bytes_per_second = 1e9 * fields.number("memory_gb_per_s", 1e-3, kGigaPerSecondMax);
  speed.macs_per_second = 1e9 * fields.number("matmul_gmac_per_s", 1e-3, kGigaPerSecondMax);
  speed.attention_macs_per_second =
      1e9 * fields.number_or("attention_gmac_per_s", 0.0, 1e-3, kGigaPerSecondMax);
  speed.operator_seconds = 1e-6 * fields.number_or("operator_us", 2.0, 0.0, kMicrosecondsMax);
  if (!fields.has("types")) return speed;
  JsonFields types = fields.object("types");
  for (const std::string& name : types.keys()) {
    JsonFields entry = types.object(name.c_str());
    const auto type = quant::data_type_from_name(name);
    if (!type) types.fail(name.c_str(), "is not a type of weights, such as Q4_K");
    speed.by_type.push_back(
        {.type = type.value_or(quant::DataType::kF32),
         .macs_per_second = 1e9 * entry.number("matmul_gmac_per_s", 1e-3, kGigaPerSecondMax),
         .decode_macs_per_second =
             1e9 * entry.number_or("decode_gmac_per_s", 0.0, 1e-3, kGigaPerSecondMax)});
    entry.finish();
  }
  return speed;
}

LinkSpec read_transport(JsonFields& fields) {
  LinkSpec link;
  const std::string name = fields.text("transport");
  if (const auto transport = transport_named(name)) {
    link.transport = *transport;
  } else {
    fields.fail("transport", fmt::format("is \"{}\", need shm, rdma or tcp", name));
  }
  link.latency_seconds = 1e-6 * fields.number("latency_us", 0.0, kMicrosecondsMax);
  link.message_seconds =
      1e-6 * fields.number_or("message_us", 1e6 * typical_message_seconds(link.transport), 0.0,
                              kMicrosecondsMax);
  link.bytes_per_second = 1e9 / 8 * fields.number("gbit_per_s", 1e-6, kGigaPerSecondMax);
  fields.finish();
  return link;
}

/// The transport that recua would use of those an object lists under "transports".
LinkSpec read_link(JsonFields& fields, std::span<const LinkTransport> allowed) {
  std::vector<LinkSpec> links;
  for (JsonFields& transport : fields.objects("transports", 3)) {
    links.push_back(read_transport(transport));
  }
  const std::optional<LinkSpec> chosen = choose_link(links, allowed);
  if (!chosen) fields.fail("transports", "has none of the transports that --transport allows");
  return chosen.value_or(LinkSpec{.bytes_per_second = 1.0});
}

void read_machines(JsonFields& file, ClusterShape& cluster,
                   std::map<std::string, std::uint32_t>& groups) {
  for (JsonFields& fields : file.objects("machines", kGroupsDescribedMax)) {
    const std::string name = fields.text("name");
    const auto group = static_cast<std::uint32_t>(groups.size());
    if (!groups.emplace(name, group).second) {
      fields.fail("name", fmt::format("is \"{}\" for the second time", name));
    }
    const std::size_t n = fields.count_or("count", 1, 1, kMachinesMax);
    if (cluster.machines.size() + n > kMachinesMax) {
      fields.fail("count", fmt::format("makes more than {} machines in all", kMachinesMax));
      return;
    }
    Machine machine;
    machine.group = group;
    machine.memory_bytes = static_cast<std::uint64_t>(
        fields.number("memory_gib", 1e-3, kMemoryGibMax) * (std::uint64_t{1} << 30));
    machine.n_threads = static_cast<std::uint32_t>(fields.count_or("threads", 0, 0, 65536));
    machine.speed = read_speed(fields);
    if (fields.has("one_host")) {
      JsonFields host = fields.object("one_host");
      machine.host = static_cast<std::uint32_t>(cluster.hosts.size());
      cluster.hosts.push_back(
          {.bytes_per_second =
               1e9 * host.number_or("memory_gb_per_s", kHostLimitNone, 1e-3, kGigaPerSecondMax),
           .macs_per_second =
               1e9 * host.number_or("matmul_gmac_per_s", kHostLimitNone, 1e-3, kGigaPerSecondMax)});
      host.finish();
    }
    fields.finish();
    for (std::size_t i = 0; i < n; ++i) {
      machine.name = n == 1 ? name : fmt::format("{}-{}", name, i);
      cluster.machines.push_back(machine);
    }
  }
  cluster.n_groups = static_cast<std::uint32_t>(groups.size());
}

void read_links(JsonFields& file, std::span<const LinkTransport> allowed, ClusterShape& cluster,
                const std::map<std::string, std::uint32_t>& groups, JsonErrors& errors) {
  const std::size_t n = cluster.n_groups;
  std::vector<bool> told(n * n, false);
  cluster.links.assign(n * n, LinkSpec{});
  if (file.has("default_link")) {
    JsonFields fields = file.object("default_link");
    cluster.links.assign(n * n, read_link(fields, allowed));
    told.assign(n * n, true);
    fields.finish();
  }
  std::vector<bool> told_twice(n * n, false);
  if (file.has("links")) {
    for (JsonFields& fields : file.objects("links", kGroupsDescribedMax * kGroupsDescribedMax)) {
      std::uint32_t ends[2] = {0, 0};
      const std::vector<std::string> names = fields.texts("between", 2);
      for (std::size_t i = 0; i < 2; ++i) {
        const auto at = groups.find(names[i]);
        if (at == groups.end()) {
          fields.fail("between",
                      fmt::format("names \"{}\", which no machines are called", names[i]));
          return;
        }
        ends[i] = at->second;
      }
      const LinkSpec link = read_link(fields, allowed);
      fields.finish();
      const std::size_t pair = std::size_t{ends[0]} * n + ends[1];
      const std::size_t reverse = std::size_t{ends[1]} * n + ends[0];
      if (told_twice[pair]) fields.fail("between", "is told for the second time");
      told[pair] = told[reverse] = told_twice[pair] = told_twice[reverse] = true;
      cluster.set_link(ends[0], ends[1], link);
    }
  }
  for (const auto& [name_a, a] : groups) {
    for (const auto& [name_b, b] : groups) {
      const bool alone = a == b && std::count_if(cluster.machines.begin(), cluster.machines.end(),
                                                 [group = a](const Machine& machine) {
                                                   return machine.group == group;
                                                 }) < 2;
      if (told[std::size_t{a} * n + b] || alone) continue;
      errors.add("links", fmt::format("does not tell of \"{}\" and \"{}\", and there is no "
                                      "default_link",
                                      name_a, name_b));
      return;
    }
  }
}

}  // namespace

Result<ClusterShape> parse_cluster(std::string_view text, std::string_view where,
                                   std::span<const LinkTransport> allowed) {
  RECUA_ASSIGN_OR_RETURN(const nlohmann::json value, parse_json(text, where));
  JsonErrors errors = {.where = std::string(where)};
  JsonFields file(value, "", errors);
  ClusterShape cluster;
  std::map<std::string, std::uint32_t> groups;
  read_machines(file, cluster, groups);
  if (!errors.first) read_links(file, allowed, cluster, groups, errors);
  // By default the coordinator is a machine like others: a link to the same group as within it.
  cluster.coordinator_links.resize(cluster.n_groups);
  for (std::uint32_t g = 0; g < cluster.n_groups && !errors.first; ++g) {
    cluster.coordinator_links[g] = cluster.links[std::size_t{g} * cluster.n_groups + g];
  }
  if (file.has("coordinator_link")) {
    JsonFields fields = file.object("coordinator_link");
    cluster.coordinator_links.assign(cluster.n_groups, read_link(fields, allowed));
    fields.finish();
  }
  file.finish();
  if (errors.first) return *errors.first;
  return cluster;
}

ClusterShape first_machines(const ClusterShape& cluster, std::size_t n) {
  ClusterShape out = cluster;
  if (n < out.machines.size()) out.machines.resize(n);
  return out;
}

}  // namespace recua::cluster
