#pragma once
/// The way from the command line to workers. Implemented by cluster_backend.cc.

#include <functional>
#include <memory>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "base/result.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "gguf/gguf_file.h"
#include "model/executor.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "rpc/link_metrics.h"

namespace recua::cli {

struct ClusterBackend {
  std::unique_ptr<model::Executor> executor;
  /// Ends the workers' sessions; what both ends of all links did. While executor lives.
  std::function<std::vector<rpc::LinkStats>()> close;
};

/// Connects to the workers that the flags name (or starts local ones, which end with the executor),
/// plans, lets them load their slices and opens the channels. Blocks: runs the loop until that is
/// done. links outlives the loop. options: n_ctx, n_pages, page_tokens, n_ubatch and types of the
/// whole model. model: for n_batch, and for what local workers take over. kUnavailable, kTimeout:
/// names the worker and what to check there. Others as they say.
Result<ClusterBackend> connect_cluster(net::Env& env, boost::asio::io_context& loop,
                                       const ClusterFlags& flags, const LinkFlags& link_flags,
                                       const LinkSetup& links, std::shared_ptr<gguf::GgufFile> file,
                                       const model::SliceOptions& options, const ModelFlags& model,
                                       const model::LoadProgress& progress);

}  // namespace recua::cli
