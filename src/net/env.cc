#include <thread>

#include "net/connection.h"

namespace recua::net {

Duration default_spin() {
  return std::thread::hardware_concurrency() == 1 ? Duration::zero()
                                                  : std::chrono::microseconds(200);
}

}  // namespace recua::net
