#include "cli/backend.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "cli/cluster_backend.h"
#include "cli/memory_estimate.h"
#include "cli/plan_choice.h"
#include "cli/progress.h"
#include "cli/run_loop.h"
#include "cli/units.h"
#include "compute/cpu/cpu_device.h"
#include "model/hyperparams.h"
#include "model/local_executor.h"
#include "model/lora.h"
#include "model/vocab.h"
#include "sys/memory.h"
#include "sys/topology.h"

namespace recua::cli {
namespace {

constexpr std::uint32_t kPageTokens = 32;
constexpr std::uint32_t kDefaultCtxMax = 4096;

std::uint32_t choose_ctx(const ModelFlags& flags, const BackendNeeds& needs,
                         std::uint32_t n_ctx_train) {
  if (needs.n_ctx) return *needs.n_ctx;
  if (!flags.ctx_given) return std::min(n_ctx_train, kDefaultCtxMax);
  return flags.n_ctx == 0 ? n_ctx_train : flags.n_ctx;
}

net::Env make_env(Backend& backend) {
  return real_env(backend.loop, backend.clock, *backend.network);
}

Result<void> load_here(Backend& backend, const ModelFlags& flags,
                       const model::SliceOptions& options, const model::LoadProgress& progress) {
  const std::size_t n_threads = choose_threads(flags);
  backend.n_threads = static_cast<std::uint32_t>(n_threads);
  RECUA_ASSIGN_OR_RETURN(backend.device,
                         compute::make_cpu_device({.n_threads = n_threads,
                                                   .repack = flags.repack,
                                                   .cpus = std::move(backend.placement.cpus)}));
  RECUA_ASSIGN_OR_RETURN(backend.executor,
                         model::LocalExecutor::create(*backend.device, backend.file, options,
                                                      progress, flags.n_batch));
  return ok();
}

Result<void> load(Backend& backend, const BackendFlags& flags, const model::SliceOptions& options) {
  ProgressBar bar("loading " + std::filesystem::path(flags.model.model).filename().string(),
                  ProgressBar::Unit::kBytes, std::chrono::milliseconds(300));
  const model::LoadProgress progress = [&bar](std::size_t n_done, std::size_t n_total) {
    bar.update(n_done, n_total);
  };
  if (!flags.cluster.any()) return load_here(backend, flags.model, options, progress);
  RECUA_ASSIGN_OR_RETURN(
      ClusterBackend cluster,
      connect_cluster(backend.env, backend.loop, flags.cluster, flags.links, *backend.links,
                      backend.file, options, flags.model, progress));
  backend.executor = std::move(cluster.executor);
  backend.close_cluster = std::move(cluster.close);
  return ok();
}

/// Before anything starts threads, so that all of them are where the flags say.
Result<sys::Placement> place_here(BackendFlags& flags) {
  if (!flags.model.cpus.any()) return sys::Placement{};
  if (flags.cluster.any()) {
    return Error{ErrorCode::kInvalidArgument,
                 "--cpu-range, --cpu-strict and --numa are about this process, and the model runs "
                 "on workers: give them to `recua worker`"};
  }
  RECUA_ASSIGN_OR_RETURN(sys::Placement placement, flags.model.cpus.place(flags.model.n_threads));
  flags.model.n_threads = static_cast<std::uint32_t>(placement.n_threads);
  return placement;
}

/// One line of what it will take, or an error when that is not there.
Result<void> check_memory(const Backend& backend, const ModelFlags& flags,
                          const model::HyperParams& hyperparams,
                          const model::SliceOptions& options) {
  RECUA_ASSIGN_OR_RETURN(const MemoryEstimate need,
                         estimate_memory(*backend.file, hyperparams, options, choose_threads(flags),
                                         flags.repack, backend.tokenizer.has_value()));
  const std::uint64_t available = sys::memory_info().available_bytes;
  log_info("memory: {}; {} are free", need.text(), human_bytes(available));
  if (!flags.memory_check) return ok();
  Result<void> fits = check_fits(need, available);
  if (!fits.ok()) return std::move(fits).error().within(backend.file->name());
  return ok();
}

}  // namespace

Result<model::SliceOptions> choose_options(const ModelFlags& flags, const BackendNeeds& needs,
                                           std::uint32_t n_ctx_train) {
  model::SliceOptions options;
  options.n_ctx = choose_ctx(flags, needs, n_ctx_train);
  options.page_tokens = kPageTokens;
  const std::uint64_t pages_each = (std::uint64_t{options.n_ctx} + kPageTokens - 1) / kPageTokens;
  const std::uint64_t n_pages = pages_each * needs.n_sequences;
  if (n_pages > UINT32_MAX) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a context of {} tokens for {} sequences is too large: choose a "
                             "smaller -c",
                             options.n_ctx, needs.n_sequences)};
  }
  options.n_pages = static_cast<std::uint32_t>(n_pages);
  options.n_ubatch = std::min(flags.n_ubatch, flags.n_batch);
  options.n_logit_rows = options.n_ubatch;
  RECUA_ASSIGN_OR_RETURN(options.k_type, parse_cache_type("-ctk", flags.k_type));
  RECUA_ASSIGN_OR_RETURN(options.v_type, parse_cache_type("-ctv", flags.v_type));
  if (options.n_ctx > n_ctx_train) {
    log_warning("the context of {} tokens is longer than the {} that the model was made for",
                options.n_ctx, n_ctx_train);
  }
  return options;
}

std::size_t choose_threads(const ModelFlags& flags) {
  return flags.n_threads != 0 ? flags.n_threads : sys::default_thread_count(sys::detect_topology());
}

Result<std::unique_ptr<Backend>> open_backend(BackendFlags& flags, const BackendNeeds& needs) {
  RECUA_RETURN_IF_ERROR(flags.check());
  auto backend = std::make_unique<Backend>();
  RECUA_ASSIGN_OR_RETURN(backend->placement, place_here(flags));
  backend->network = std::make_unique<net::TcpNetwork>(backend->loop.get_executor());
  backend->env = make_env(*backend);
  const net::TimePoint begin = backend->clock.now();
  RECUA_ASSIGN_OR_RETURN(gguf::GgufFile file, gguf::GgufFile::open(flags.model.model));
  backend->file = std::make_shared<gguf::GgufFile>(std::move(file));
  RECUA_ASSIGN_OR_RETURN(const model::HyperParams hyperparams,
                         model::read_hyperparams(*backend->file));
  if (flags.lora.any()) {
    RECUA_RETURN_IF_ERROR(
        model::add_lora(*backend->file, hyperparams, flags.lora.path, flags.lora.scale));
  }
  RECUA_ASSIGN_OR_RETURN(model::SliceOptions options,
                         choose_options(flags.model, needs, hyperparams.n_ctx_train));
  RECUA_RETURN_IF_ERROR(take_plan(flags.cluster, flags.links, backend->file, hyperparams, options));
  if (flags.cluster.any()) {
    RECUA_ASSIGN_OR_RETURN(backend->links, make_link_setup(flags.links));
  }
  if (needs.with_tokenizer) {
    RECUA_ASSIGN_OR_RETURN(backend->tokenizer, model::load_tokenizer(*backend->file));
    if (needs.before_load) RECUA_RETURN_IF_ERROR(needs.before_load(*backend->tokenizer));
  }
  if (!flags.cluster.any()) {  // Workers check for themselves.
    RECUA_RETURN_IF_ERROR(check_memory(*backend, flags.model, hyperparams, options));
  }
  RECUA_RETURN_IF_ERROR(load(*backend, flags, options));
  backend->load_time = backend->clock.now() - begin;
  log_info("{}: {}", backend->file->name(), backend->executor->info().description);
  return backend;
}

}  // namespace recua::cli
