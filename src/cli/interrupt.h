#pragma once
/// Ctrl-C (SIGINT) and SIGTERM as an event of a loop.
///
/// The first one calls the handler on the loop; a second one ends the process at once, for whoever
/// does not want to wait for the step that is being computed. Destroying the object gives the
/// signals their usual meaning back. At most one object at a time.

#include <functional>
#include <memory>

#include <boost/asio/io_context.hpp>

namespace recua::cli {

class Interrupt {
 public:
  Interrupt(boost::asio::io_context& loop, std::function<void()> handler);
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  ~Interrupt();

  [[nodiscard]] bool happened() const;

 private:
  struct Pipe;
  std::shared_ptr<Pipe> pipe_;
};

}  // namespace recua::cli
