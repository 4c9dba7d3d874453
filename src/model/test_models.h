#pragma once
/// What the tests of this folder share: models from tests/golden, edited copies of them, and a way
/// to run an awaitable to its end. Included by tests only.

#include <cstdint>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "compute/cpu/cpu_device.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "model/local_executor.h"

namespace recua::model {

inline nlohmann::json read_golden_json(const std::string& name) {
  std::ifstream in(std::string(RECUA_GOLDEN_DIR) + "/" + name);
  return nlohmann::json::parse(in);
}

inline std::shared_ptr<const gguf::GgufFile> open_golden(const std::string& name) {
  auto file = gguf::GgufFile::open(std::string(RECUA_GOLDEN_DIR) + "/" + name);
  EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
  return std::make_shared<const gguf::GgufFile>(std::move(file).value());
}

inline std::unique_ptr<compute::Device> test_device(std::size_t n_threads = 1) {
  const compute::CpuDeviceOptions options = {.n_threads = n_threads};
  auto device = compute::make_cpu_device(options);
  EXPECT_TRUE(device.ok());
  return std::move(device).value();
}

/// Options with caches that round nothing.
inline SliceOptions exact_options(std::uint32_t n_ctx) {
  return {.n_ctx = n_ctx, .k_type = quant::DataType::kF32, .v_type = quant::DataType::kF32};
}

template <class T>
boost::asio::awaitable<void> store_result(boost::asio::awaitable<T> work, std::optional<T>& out) {
  out.emplace(co_await std::move(work));
}

/// Runs an awaitable on a loop of its own. T need not have a default.
template <class T>
T run_awaitable(boost::asio::awaitable<T> work) {
  boost::asio::io_context loop;
  std::optional<T> out;
  boost::asio::co_spawn(loop, store_result(std::move(work), out),
                        [](const std::exception_ptr& failed) {
                          if (failed) std::rethrow_exception(failed);
                        });
  loop.run();
  return std::move(*out);
}

/// A sequence that grows in pages of its own, [first_page, first_page + ...).
struct TestSequence {
  SequenceId seq = 0;
  PageId first_page = 0;
  std::uint32_t page_tokens = 32;
  std::uint32_t length = 0;

  SequencePart next(std::vector<TokenId> tokens) {
    const auto pages = [this](std::uint32_t n) { return (n + page_tokens - 1) / page_tokens; };
    SequencePart part{.seq = seq, .position = length};
    const auto n = static_cast<std::uint32_t>(tokens.size());
    for (PageId page = pages(length); page < pages(length + n); ++page) {
      part.new_pages.push_back(first_page + page);
    }
    length += n;
    part.tokens = std::move(tokens);
    return part;
  }
};

/// A model in memory, kept alive by its GgufFile's owner.
struct EditedModel {
  std::vector<std::byte> bytes;
  std::shared_ptr<const gguf::GgufFile> file;
};

/// One tensor or metadata entry of an edited copy; leave it out by returning false.
struct TensorEdit {
  std::string name;
  quant::DataType type;
  std::vector<std::uint64_t> shape;
};
struct ModelEdits {
  std::function<bool(TensorEdit&)> tensor = [](TensorEdit&) { return true; };
  std::function<bool(std::string_view key, gguf::Value&)> metadata =
      [](std::string_view, gguf::Value&) { return true; };
  std::vector<TensorEdit> more_tensors = {};  // Filled with zeros.
  std::vector<std::pair<std::string, gguf::Value>> more_metadata = {};
};

/// A copy of a model with edits. A tensor whose size changes is cut or filled with zeros.
inline std::shared_ptr<const EditedModel> edited(const gguf::GgufFile& from,
                                                 const ModelEdits& edits) {
  gguf::GgufWriter writer;
  for (const auto& entry : from.metadata()) {
    gguf::Value value = entry.value;
    if (edits.metadata(entry.key, value)) writer.add(entry.key, value);
  }
  for (const auto& [key, value] : edits.more_metadata) writer.add(key, value);
  std::vector<std::pair<TensorEdit, std::span<const std::byte>>> tensors;
  for (const gguf::TensorInfo& info : from.tensors()) {
    TensorEdit edit{.name = std::string(info.name), .type = info.type, .shape = {}};
    edit.shape.assign(info.shape.begin(),
                      info.shape.begin() + static_cast<std::ptrdiff_t>(info.n_dims));
    if (edits.tensor(edit)) tensors.emplace_back(std::move(edit), info.data);
  }
  for (const TensorEdit& more : edits.more_tensors) {
    tensors.emplace_back(more, std::span<const std::byte>());
  }
  for (const auto& [edit, data] : tensors) writer.add_tensor(edit.name, edit.type, edit.shape);
  auto out = std::make_shared<EditedModel>();
  out->bytes = writer.header();
  for (const auto& [edit, data] : tensors) {
    std::size_t n_bytes = quant::row_bytes(edit.type, edit.shape[0]);
    for (std::size_t i = 1; i < edit.shape.size(); ++i) n_bytes *= edit.shape[i];
    const std::size_t begin = out->bytes.size();
    out->bytes.insert(out->bytes.end(), data.begin(),
                      data.begin() + static_cast<std::ptrdiff_t>(std::min(n_bytes, data.size())));
    out->bytes.resize(begin + align_up<std::size_t>(n_bytes, gguf::kAlignmentDefault));
  }
  auto file = gguf::GgufFile::parse(out->bytes, "edited.gguf");
  EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
  out->file = std::make_shared<const gguf::GgufFile>(std::move(file).value());
  return out;
}

}  // namespace recua::model
