#pragma once
/// Which transports links between processes may use: flags of every command that has links, and
/// what they come to on this machine.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "cli/app.h"
#include "net/verbs/verbs.h"
#include "rpc/handshake.h"
#include "rpc/link.h"

namespace recua::cli {

struct LinkFlags {
  std::string transports = "auto";
  std::string rdma_devices = {};  // Empty: choose.
  std::optional<std::uint32_t> rdma_gid = {};
  std::string rdma_connect = "handshake";
  std::string rdma_immediate = "on";
  std::uint32_t delay_us = 0;

  void add(CLI::App& app);
  /// What can be said without looking at the machine.
  [[nodiscard]] Result<void> check() const;
  /// The same flags for another process of this program.
  [[nodiscard]] std::vector<std::string> arguments() const;
};

/// The flags on this machine. Outlives everything that has links.
struct LinkSetup {
  std::unique_ptr<net::verbs::Provider> provider;
  rpc::LinkPolicy policy;
  std::string shared_memory_host;             // Told to peers; empty: no shared memory.
  std::vector<rpc::RdmaPortInfo> rdma_ports;  // Told to peers.
};

/// kInvalidArgument: a flag is malformed, or names a device, port or GID that is not there; says
/// what is. That RDMA or shared memory cannot be used is no error: links then run without.
Result<std::unique_ptr<LinkSetup>> make_link_setup(const LinkFlags& flags);

/// The same with what is asked of the machine as arguments, for tests.
Result<std::unique_ptr<LinkSetup>> make_link_setup(const LinkFlags& flags,
                                                   std::unique_ptr<net::verbs::Provider> provider,
                                                   const Result<Digest>& host_identity);

}  // namespace recua::cli
