// The main of a fuzz target in builds without libFuzzer: runs every file of the directories (and
// every file) named as arguments through the target, each also cut at a few places, and fails when
// there is none.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/mapped_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr std::size_t kInputBytesMax = std::size_t{64} << 20;

bool replay(const std::filesystem::path& path) {
  const auto text = recua::read_file(path, kInputBytesMax);
  if (!text.ok()) {
    fmt::print(stderr, "{}\n", text.error().message);
    return false;
  }
  for (const std::size_t eighths : {8U, 7U, 5U, 3U, 1U, 0U}) {
    // A copy of exactly this size on the heap, so that the sanitizers see any read beyond it.
    const std::size_t size = text->size() * eighths / 8;
    const std::vector<std::uint8_t> input(text->begin(),
                                          text->begin() + static_cast<std::ptrdiff_t>(size));
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> paths;
  for (int i = 1; i < argc; ++i) {
    std::error_code error;
    if (std::filesystem::is_directory(argv[i], error)) {
      for (const auto& entry : std::filesystem::directory_iterator(argv[i]))
        paths.push_back(entry.path());
    } else {
      paths.emplace_back(argv[i]);
    }
  }
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    if (!replay(path)) return 1;
  }
  fmt::print("replayed {} inputs\n", paths.size());
  return paths.empty() ? 1 : 0;
}
