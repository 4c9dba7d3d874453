#include "model/local_weight_source.h"

#include <fmt/format.h>

namespace recua::model {

bool LocalWeightSource::has(std::string_view tensor_name) const {
  return file_->find(tensor_name) != nullptr;
}

Result<compute::TensorBytes> LocalWeightSource::tensor(std::string_view tensor_name) const {
  RECUA_ASSIGN_OR_RETURN(const gguf::TensorInfo* info, file_->tensor(tensor_name));
  if (info->shape[3] != 1) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: tensor {} has shape {}; expected at most three dimensions",
                             file_->name(), info->name, info->shape_text())};
  }
  return compute::TensorBytes{.name = std::string(info->name),
                              .type = info->type,
                              .n_in = info->shape[0],
                              .n_out = info->shape[1],
                              .n_experts = info->shape[2],
                              .bytes = info->data,
                              .owner = file_,
                              .in_mapped_file = file_->is_mapped(info->shard)};
}

void LocalWeightSource::loaded() const {
  for (std::size_t i = 0; i < file_->n_shards(); ++i) {
    if (file_->is_mapped(i)) drop_mapped_pages(file_->shard_bytes(i));
  }
}

}  // namespace recua::model
