#pragma once
/// Two ends of a lane on a FakeFabric, for lane tests.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "net/verbs/fake_fabric.h"
#include "net/verbs/lane.h"

namespace recua::net::verbs {

/// One end: a window, a source, a lane. Its device has the address "10.0.0.N".
struct LanePeer {
  LanePeer(FakeFabric& fabric, std::string host, std::size_t window_bytes = 1 << 16,
           std::size_t source_bytes = 1 << 16)
      : provider(fabric.provider(host)), window(window_bytes), source(source_bytes) {}

  Result<void> try_create(const LaneOptions& options = {}, std::uint64_t randomness = 1) {
    RECUA_ASSIGN_OR_RETURN(const auto devices, provider->devices());
    RECUA_ASSIGN_OR_RETURN(const auto ports, choose_ports(devices, {}, ""));
    const std::array<std::span<std::byte>, 1> sources = {source};
    RECUA_ASSIGN_OR_RETURN(
        lane, Lane::create(*provider, ports.front(), window, sources, randomness, options));
    return ok();
  }
  void create(const LaneOptions& options = {}, std::uint64_t randomness = 1) {
    const auto created = try_create(options, randomness);
    ASSERT_TRUE(created.ok()) << created.error().message;
  }

  /// Writes [source_offset, source_offset + bytes) of the source to the same place of the window.
  Result<bool> write(std::size_t offset, std::size_t bytes, std::optional<std::uint32_t> announce,
                     bool signal = false) {
    const std::array<std::span<const std::byte>, 1> parts = {
        std::span<const std::byte>(source).subspan(offset, bytes)};
    return lane->write({.offset = offset, .parts = parts, .announce = announce, .signal = signal});
  }
  /// Whether a write was taken.
  [[nodiscard]] bool writes(std::size_t offset, std::size_t bytes,
                            std::optional<std::uint32_t> announce, bool signal = false) {
    const auto written = write(offset, bytes, announce, signal);
    EXPECT_TRUE(written.ok()) << written.error().message;
    return written.ok() && *written;
  }
  /// The announcements that one poll finds.
  std::vector<std::uint32_t> poll() {
    std::vector<Announcement> announcements;
    lane->poll(announcements);
    return values(announcements);
  }
  std::vector<std::uint32_t> fence() {
    std::vector<Announcement> announcements;
    lane->fence(announcements);
    return values(announcements);
  }
  /// "code: message", or "" while the lane works.
  [[nodiscard]] std::string failure() const {
    const auto& error = lane->failure();
    return error ? std::string(to_string(error->code)) + ": " + error->message : std::string();
  }

  static std::vector<std::uint32_t> values(const std::vector<Announcement>& announcements) {
    std::vector<std::uint32_t> out;
    for (const Announcement& announcement : announcements) out.push_back(announcement.value);
    return out;
  }

  std::unique_ptr<Provider> provider;
  std::vector<std::byte> window;
  std::vector<std::byte> source;
  std::unique_ptr<Lane> lane;
};

class LaneTest : public ::testing::Test {
 protected:
  explicit LaneTest(const FakeLimits& limits = {}) {
    fabric_.add_device("a", "fa", {"10.0.0.1"}, limits);
    fabric_.add_device("b", "fb", {"10.0.0.2"}, limits);
  }
  void connect(const LaneOptions& options = {}) {
    a_.create(options, 1);
    b_.create(options, 2);
    ASSERT_TRUE(a_.lane && b_.lane);
    const auto a = a_.lane->connect(b_.lane->local());
    ASSERT_TRUE(a.ok()) << a.error().message;
    const auto b = b_.lane->connect(a_.lane->local());
    ASSERT_TRUE(b.ok()) << b.error().message;
  }

  using Values = std::vector<std::uint32_t>;

  FakeFabric fabric_;
  LanePeer a_{fabric_, "a"};
  LanePeer b_{fabric_, "b"};
};

}  // namespace recua::net::verbs
