#include "rpc/background_end.h"

#include <system_error>
#include <utility>

namespace recua::rpc {

BackgroundEnd::~BackgroundEnd() {
  for (std::thread& thread : threads_) thread.join();
}

void BackgroundEnd::take(std::shared_ptr<void> object) {
  try {
    threads_.emplace_back([last = std::move(object)]() mutable { last.reset(); });
  } catch (const std::system_error&) {
    // The object went with what was to run there.
  }
}

}  // namespace recua::rpc
