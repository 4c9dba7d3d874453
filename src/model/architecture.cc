#include "model/architecture.h"

#include <array>

namespace recua::model {
namespace {

std::array<const Architecture*, 4> all_architectures() {
  return {&arch_llama(), &arch_qwen2(), &arch_qwen3(), &arch_qwen3moe()};
}

}  // namespace

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture* architecture : all_architectures()) {
    if (architecture->name == name) return architecture;
  }
  return nullptr;
}

std::string known_architectures() {
  std::string out;
  for (const Architecture* architecture : all_architectures()) {
    if (!out.empty()) out += ", ";
    out += architecture->name;
  }
  return out;
}

}  // namespace recua::model
