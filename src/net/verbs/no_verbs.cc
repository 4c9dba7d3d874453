// Stands in for the real provider and rdma_cm where libibverbs was not there at build time.
#include "net/verbs/cm.h"
#include "net/verbs/ibv_provider.h"

namespace recua::net::verbs {
namespace {

Error not_built() {
  return Error{
      ErrorCode::kUnsupported,
      "this recua was built without libibverbs; install libibverbs-dev and librdmacm-dev and build "
      "again"};
}

class NoProvider : public Provider {
 public:
  Result<std::vector<DeviceInfo>> devices() override { return not_built(); }
  Result<std::unique_ptr<Device>> open(const std::string& /*name*/) override { return not_built(); }
};

}  // namespace

bool built_with_verbs() { return false; }

std::string_view verbs_version() { return {}; }

std::unique_ptr<Provider> make_ibv_provider() { return std::make_unique<NoProvider>(); }

Result<std::unique_ptr<CmListener>> cm_listen(const std::string& /*local_address*/) {
  return not_built();
}

Result<std::unique_ptr<CmConnection>> cm_connect(const std::string& /*local_address*/,
                                                 const Endpoint& /*remote*/,
                                                 Duration /*resolve_timeout*/) {
  return not_built();
}

}  // namespace recua::net::verbs
