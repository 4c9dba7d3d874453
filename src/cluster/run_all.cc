#include "cluster/run_all.h"

#include <cstddef>
#include <exception>
#include <memory>
#include <utility>

#include <boost/asio/co_spawn.hpp>

#include "net/event.h"

namespace recua::cluster {

namespace asio = boost::asio;

asio::awaitable<Result<void>> run_all(asio::any_io_executor executor,
                                      std::vector<asio::awaitable<Result<void>>> tasks) {
  struct Shared {
    explicit Shared(const asio::any_io_executor& e) : event(e) {}
    net::Event event;
    std::size_t running = 0;
    Result<void> result;
  };
  const auto shared = std::make_shared<Shared>(executor);
  shared->running = tasks.size();
  for (auto& task : tasks) {
    asio::co_spawn(executor, std::move(task),
                   [shared](std::exception_ptr thrown, Result<void> result) {
                     if (thrown != nullptr) {
                       result = Error{ErrorCode::kResourceExhausted, "out of memory"};
                     }
                     if (!result.ok() && shared->result.ok()) shared->result = std::move(result);
                     if (--shared->running == 0) shared->event.notify_all();
                   });
  }
  while (shared->running > 0) co_await shared->event.wait();
  co_return shared->result;
}

}  // namespace recua::cluster
