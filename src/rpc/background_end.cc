#include "rpc/background_end.h"

#include <system_error>
#include <utility>

namespace recua::rpc {

BackgroundEnd::~BackgroundEnd() {
  for (Ending& ending : endings_) ending.thread.join();
}

void BackgroundEnd::take(std::shared_ptr<void> object) {
  std::erase_if(endings_, [](Ending& ending) {
    if (!*ending.is_over) return false;
    ending.thread.join();
    return true;
  });
  if (endings_.size() == kThreadsMax) return;
  const auto is_over = std::make_shared<std::atomic<bool>>(false);
  try {
    endings_.push_back({is_over, {}});
    endings_.back().thread = std::thread([last = std::move(object), is_over]() mutable {
      last.reset();
      *is_over = true;
    });
  } catch (const std::system_error&) {
    endings_.pop_back();  // The object went with what was to run there.
  }
}

}  // namespace recua::rpc
