#pragma once
/// Backend: everything that runs a model, wired up. The one place that decides between this machine
/// and workers; the subcommands above it cannot tell.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "base/result.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "compute/device.h"
#include "gguf/gguf_file.h"
#include "model/executor.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"
#include "rpc/link_metrics.h"
#include "tokenizer/tokenizer.h"

namespace recua::cli {

struct BackendFlags {
  ModelFlags model;
  ClusterFlags cluster;
  LinkFlags links;
  LoraFlags lora;

  void add(CLI::App& app, bool with_ctx = true) {
    model.add(app, with_ctx);
    lora.add(app);
    cluster.add(app);
    links.add(app);
  }
  /// What can be wrong without looking at the machine or the model.
  [[nodiscard]] Result<void> check() {
    RECUA_RETURN_IF_ERROR(model.check());
    RECUA_RETURN_IF_ERROR(lora.check());
    RECUA_RETURN_IF_ERROR(cluster.check());
    RECUA_RETURN_IF_ERROR(model.cpus.request(model.n_threads));
    return links.check();
  }
};

/// How many sequences of which length the caches have to hold, when the tool knows better than -c.
struct BackendNeeds {
  std::optional<std::uint32_t> n_ctx;  // Instead of -c.
  std::uint32_t n_sequences = 1;
  bool with_tokenizer = true;
  /// Called with the tokenizer before anything is loaded or connected: what takes long (a large
  /// text) belongs here, since workers take a coordinator that is silent for seconds for lost.
  std::function<Result<void>(const tokenizer::Tokenizer&)> before_load = {};
};

struct Backend {
  // Members die from the bottom up: the executor first, what it stands on after it.
  std::unique_ptr<LinkSetup> links;  // Null when the model runs here.
  boost::asio::io_context loop{1};
  net::RealClock clock;
  std::unique_ptr<net::Network> network;
  net::Env env;
  std::shared_ptr<gguf::GgufFile> file;
  std::optional<tokenizer::Tokenizer> tokenizer;  // If it was asked for.
  std::unique_ptr<compute::Device> device;        // Null when the model runs on workers.
  std::unique_ptr<model::Executor> executor;
  /// Ends the workers' sessions and says what both ends of all links did. No step may follow. Empty
  /// when the model runs here.
  std::function<std::vector<rpc::LinkStats>()> close_cluster;

  sys::Placement placement;     // Of the threads that compute here; its CPUs move into the device.
  std::uint32_t n_threads = 0;  // That compute here; 0 when the model runs on workers.
  std::chrono::nanoseconds load_time{};
};

/// Checks the flags, opens the model and loads it here or on the workers, with a progress bar.
/// Every error says which flag, file, tensor or worker it is about.
Result<std::unique_ptr<Backend>> open_backend(BackendFlags& flags, const BackendNeeds& needs = {});

/// What the executor is made with: the context, pages and types that flags and needs ask for.
/// kInvalidArgument: names the flag.
Result<model::SliceOptions> choose_options(const ModelFlags& flags, const BackendNeeds& needs,
                                           std::uint32_t n_ctx_train);
/// Threads that compute here.
std::size_t choose_threads(const ModelFlags& flags);

}  // namespace recua::cli
