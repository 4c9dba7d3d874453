#include "cluster/poll_loop.h"

#include <future>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <gtest/gtest.h>

#include "cluster/offload.h"
#include "net/real_clock.h"

namespace recua::cluster {
namespace {

// What cannot be waited for is posted by arming itself: it must be seen by a sleep within the
// handler that posted it.
TEST(PollLoop, IsWokenByWhatArmingPosts) {
  net::RealClock clock;
  ThreadOffload offload(1);
  const auto loop = offload.new_stage_loop();
  net::Env env;
  env.executor = loop->executor();
  env.clock = &clock;
  env.run_one = loop->run_one();
  const auto wake = std::make_shared<net::Event>(env.executor);
  const auto posted = std::make_shared<bool>(false);
  std::promise<void> ended;
  boost::asio::co_spawn(
      env.executor,
      poll_until(
          env, *wake, []() -> Result<bool> { return false; },
          [env, wake, posted] {
            boost::asio::post(env.executor, [wake, posted] {
              *posted = true;
              wake->notify_all();
            });
          },
          [posted] { return *posted; }),
      [&ended](const std::exception_ptr&, const Result<void>&) { ended.set_value(); });
  ASSERT_EQ(ended.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

}  // namespace
}  // namespace recua::cluster
