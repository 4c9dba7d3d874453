#include "cli/plan_inputs.h"

#include "base/mapped_file.h"
#include "cli/net_report.h"
#include "cluster/cluster_file.h"
#include "cluster/json_fields.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"

namespace recua::cli {

Result<cluster::ModelShape> read_model_shape(const std::string& path, quant::DataType k_type,
                                             quant::DataType v_type) {
  if (path.ends_with(".json")) {
    RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(path, cluster::kJsonBytesMax));
    return cluster::parse_model_shape(text, path, k_type, v_type);
  }
  RECUA_ASSIGN_OR_RETURN(const gguf::GgufFile file, gguf::GgufFile::open(path));
  RECUA_ASSIGN_OR_RETURN(const model::HyperParams hyperparams, model::read_hyperparams(file));
  return cluster::model_shape(file, hyperparams, k_type, v_type);
}

Result<PlanMachines> described_machines(const std::string& path, const LinkFlags& links) {
  RECUA_ASSIGN_OR_RETURN(const auto allowed, parse_link_transports(links.transports));
  RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(path, cluster::kJsonBytesMax));
  PlanMachines out;
  RECUA_ASSIGN_OR_RETURN(out.shape, cluster::parse_cluster(text, path, allowed));
  return out;
}

Result<PlanMachines> measured_machines(const cluster::ModelShape&, const ClusterFlags&,
                                       const LinkFlags&, std::uint32_t, bool) {
  return Error{ErrorCode::kUnsupported,
               "measuring is not there yet: describe machines by "
               "--simulate FILE"};
}

}  // namespace recua::cli
