#include "rpc/background_end.h"

#include <chrono>
#include <system_error>
#include <utility>

#include "base/log.h"

namespace recua::rpc {

void BackgroundEnd::take(std::shared_ptr<void> object) {
  std::erase_if(endings_, [](const std::future<void>& ending) {
    return ending.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  });
  if (endings_.size() == kThreadsMax) return;
  try {
    endings_.push_back(
        std::async(std::launch::async, [last = std::move(object)]() mutable { last.reset(); }));
  } catch (const std::system_error& error) {
    // The object went with what was to run there.
    log_debug("a link ended without a thread of its own: {}", error.what());
  }
}

}  // namespace recua::rpc
