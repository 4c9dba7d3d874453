// Any bytes as a GGUF file: an error or a file of which every part can be read.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "gguf/gguf_file.h"
#include "quant/dequantize.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace recua;  // NOLINT: a fuzz target is one function.
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const auto file = gguf::GgufFile::parse(bytes, "fuzz.gguf");
  if (!file.ok()) {
    RECUA_CHECK(!file.error().message.empty());
    return 0;
  }
  for (const auto& [key, value] : file->metadata()) {
    RECUA_CHECK(file->value(key) == &value);
    RECUA_CHECK(!gguf::to_text(value, 100).empty());
    // Each of these gives a value or an error; the sanitizers watch.
    static_cast<void>(file->get_u32(key).ok());
    static_cast<void>(file->get_f32(key).ok());
    static_cast<void>(file->get_str(key).ok());
    static_cast<void>(file->get_str_array(key).ok());
    static_cast<void>(file->get_i32_array(key).ok());
    static_cast<void>(file->get_f32_array(key).ok());
    static_cast<void>(file->get_bool_array(key).ok());
  }
  std::vector<float> row;
  for (const gguf::TensorInfo& tensor : file->tensors()) {
    RECUA_CHECK(file->find(tensor.name) == &tensor);
    RECUA_CHECK(tensor.data.size() == tensor.n_bytes && tensor.n_bytes <= size);
    row.resize(tensor.shape[0]);
    quant::dequantize_row(tensor.type, tensor.data.data(), row.size(), row.data());
  }
  return 0;
}
