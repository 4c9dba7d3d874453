#pragma once
/// Several coroutines at the same time.

#include <vector>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include "base/result.h"

namespace recua::cluster {

/// Runs all of them; the first error, after all have ended.
boost::asio::awaitable<Result<void>> run_all(
    boost::asio::any_io_executor executor, std::vector<boost::asio::awaitable<Result<void>>> tasks);

}  // namespace recua::cluster
