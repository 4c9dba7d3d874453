// Workers that measure for a planner, in the simulation: what is asked, in which order, and what
// happens when something cannot be measured.
#include "cluster/survey.h"

#include <limits>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <gtest/gtest.h>

#include "base/scratch_folder.h"
#include "cluster/echo_link.h"
#include "cluster/measure_wire.h"
#include "cluster/offload.h"
#include "cluster/plan_test_inputs.h"
#include "cluster/worker.h"
#include "net/sim/sim_network.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;
using std::chrono::seconds;

constexpr std::uint16_t kPort = 7500;

class SurveyTest : public testing::Test {
 protected:
  ~SurveyTest() override {
    for (const auto& box : boxes_) {
      box->worker->stop();
      box->listener->close();
    }
    loop_.run_for(seconds(1));
  }

  struct Box {
    std::unique_ptr<Worker> worker;
    std::unique_ptr<net::Listener> listener;
    std::vector<SpeedRequest> speeds;
    std::vector<std::string> links;
    std::optional<Error> refuses;
  };

  /// A worker on a machine of this name; host: what it says of it.
  Box& add(const std::string& name, const std::string& host, bool measures = true) {
    Box& box = *boxes_.emplace_back(std::make_unique<Box>());
    WorkerOptions options;
    options.name = name;
    options.cache_dir = scratch_.path();
    options.memory_bytes = std::uint64_t{1} << 30;
    if (measures) {
      options.measuring.speed = [&box](const SpeedRequest& request) -> Result<MachineSpeed> {
        box.speeds.push_back(request);
        if (box.refuses) return *box.refuses;
        MachineSpeed speed = test_machine("", 10.0 * std::max(request.n_threads, 1U)).speed;
        for (const quant::DataType type : request.types) {
          speed.by_type.push_back(
              {.type = type, .macs_per_second = 2e9, .decode_macs_per_second = 1e9});
        }
        speed.attention_macs_per_second = 3e9;
        speed.attention_decode_macs_per_second = 4e9;
        return speed;
      };
      options.measuring.link = [&box](const net::Endpoint& peer, auto) -> Result<LinkSpec> {
        box.links.push_back(peer.host);
        if (box.refuses) return *box.refuses;
        return test_link(7, 40);
      };
    }
    box.worker = std::make_unique<Worker>(
        network_.env(name), offload_,
        []() -> Result<std::unique_ptr<compute::Device>> {
          return Error{ErrorCode::kUnsupported, "nothing is computed here"};
        },
        options);
    box.listener = *network_.env(name).network->listen(net::Endpoint{"", kPort});
    asio::co_spawn(loop_.executor(), box.worker->serve(*box.listener), asio::detached);
    options_.endpoints.push_back({name, kPort});
    options_.workers.push_back({.name = name, .host = host, .memory_bytes = 1, .n_threads = 2});
    return box;
  }

  Survey survey() {
    options_.own_host = "here";
    options_.speed.types = {quant::DataType::kQ4_K, quant::DataType::kQ6_K};
    options_.speed.width = 2048;
    options_.transports = {LinkTransport::kTcp};
    return loop_.run(survey_workers(network_.env("here"), options_));
  }

  ScratchFolder scratch_;
  net::SimLoop loop_;
  net::SimNetwork network_{loop_, {}};
  InlineOffload offload_{loop_.executor()};
  std::vector<std::unique_ptr<Box>> boxes_;
  SurveyOptions options_;
};

TEST_F(SurveyTest, EveryWorkerMeasuresItselfAndEveryPairItsLink) {
  const Box& local = add("local", "here");
  const Box& alone = add("alone", "");
  const Box& first = add("first", "shared");
  const Box& second = add("second", "shared");
  const Survey found = survey();
  EXPECT_TRUE(found.notes.empty()) << found.notes.front();
  EXPECT_TRUE(local.speeds.empty());  // Whoever plans measures its own machine.
  EXPECT_FALSE(found.speeds[0]);
  ASSERT_EQ(alone.speeds.size(), 1U);
  EXPECT_EQ(alone.speeds[0].types, options_.speed.types);
  EXPECT_EQ(alone.speeds[0].width, 2048U);
  ASSERT_TRUE(found.speeds[1]);
  EXPECT_EQ(found.speeds[1]->by_type.size(), 2U);
  EXPECT_DOUBLE_EQ(found.speeds[1]->by_type[1].macs_per_second, 2e9);
  // What two workers of one host do together is measured by one of them.
  ASSERT_EQ(first.speeds.size(), 2U);
  EXPECT_EQ(first.speeds[1].n_threads, 4U);
  EXPECT_EQ(second.speeds.size(), 1U);
  ASSERT_TRUE(found.hosts.contains("shared"));
  EXPECT_DOUBLE_EQ(found.hosts.at("shared").bytes_per_second, 40e9);
  ASSERT_EQ(found.links.size(), 6U);
  EXPECT_EQ(local.links.size() + alone.links.size() + first.links.size(), 6U);
  EXPECT_DOUBLE_EQ(found.links.at({1, 3}).latency_seconds, 7e-6);
  EXPECT_EQ(found.links.at({1, 3}).transport, test_link(7, 40).transport);
}

TEST_F(SurveyTest, WhatCannotBeMeasuredIsSaid) {
  add("old", "", false);
  Box& broken = add("broken", "");
  broken.refuses = Error{ErrorCode::kResourceExhausted, "no memory to measure with"};
  add("good", "");
  const Survey found = survey();
  EXPECT_FALSE(found.speeds[0]);
  EXPECT_FALSE(found.speeds[1]);
  EXPECT_TRUE(found.speeds[2]);
  EXPECT_TRUE(found.links.empty());
  ASSERT_EQ(found.notes.size(), 3U);
  EXPECT_NE(found.notes[0].find("does not measure itself"), std::string::npos) << found.notes[0];
  EXPECT_NE(found.notes[1].find("no memory to measure with"), std::string::npos);
  EXPECT_NE(found.notes[2].find("from worker broken to good"), std::string::npos);
}

TEST_F(SurveyTest, AWorkerThatIsAtWorkIsLeftInPeace) {
  const Box& box = add("busy", "");
  const auto peer =
      loop_.run(EchoPeer::connect(network_.env("here"), {"busy", kPort}, {}, seconds(5), {}));
  ASSERT_TRUE(peer.ok());
  EchoLink::Options options;
  options.transports = {wire::TRANSPORT_TCP};
  options.rows_bytes_max = 4096;
  options.stream_bytes = 1024;
  const auto link = loop_.run(EchoLink::open(*peer, options));
  ASSERT_TRUE(link.ok());
  const Survey during = survey();
  ASSERT_EQ(during.notes.size(), 1U);
  EXPECT_NE(during.notes[0].find("it is at work"), std::string::npos);
  EXPECT_TRUE(box.speeds.empty());
  loop_.run((*link)->close());
  EXPECT_TRUE(survey().speeds[0]);
}

TEST(MeasureWire, RefusesWhatNobodyMayAsk) {
  const SpeedRequest good{.types = {quant::DataType::kF16}, .width = 512};
  wire::MeasureSpeed message;
  to_wire(good, message);
  ASSERT_TRUE(from_wire(message).ok());
  wire::MeasureSpeed wrong = message;
  wrong.set_width(1000);
  EXPECT_NE(from_wire(wrong).error().message.find("measure_speed.width is 1000"),
            std::string::npos);
  wrong = message;
  wrong.add_types(9999);
  EXPECT_EQ(from_wire(wrong).error().code, ErrorCode::kUnsupported);
  wrong = message;
  wrong.clear_types();
  EXPECT_EQ(from_wire(wrong).error().code, ErrorCode::kProtocol);
  for (int i = 0; i < 9; ++i) wrong.add_types(0);
  EXPECT_EQ(from_wire(wrong).error().code, ErrorCode::kProtocol);

  wire::MeasureLink link;
  to_wire(LinkRequest{.peer = {"b", 7500}, .transports = {LinkTransport::kTcp}}, link);
  ASSERT_TRUE(from_wire(link).ok());
  wire::MeasureLink odd = link;
  odd.set_port(70000);
  EXPECT_FALSE(from_wire(odd).ok());
  odd = link;
  odd.clear_transports();
  EXPECT_EQ(from_wire(odd).error().code, ErrorCode::kUnsupported);
}

TEST(MeasureWire, RefusesFiguresThatNobodyMeasures) {
  const SpeedRequest asked{.types = {quant::DataType::kF16}, .width = 512};
  MachineSpeed speed = test_machine("", 10.0).speed;
  speed.by_type = {
      {.type = quant::DataType::kF16, .macs_per_second = 2e9, .decode_macs_per_second = 1e9}};
  speed.attention_macs_per_second = 3e9;
  speed.attention_decode_macs_per_second = 4e9;
  wire::SpeedMeasured message;
  to_wire(speed, message);
  ASSERT_TRUE(from_wire(message, asked).ok());
  for (const double figure : {0.0, -1.0, 1e30, std::numeric_limits<double>::quiet_NaN(),
                              std::numeric_limits<double>::infinity()}) {
    wire::SpeedMeasured wrong = message;
    wrong.set_bytes_per_second(figure);
    EXPECT_FALSE(from_wire(wrong, asked).ok()) << figure;
    wrong = message;
    wrong.mutable_types(0)->set_decode_macs_per_second(figure);
    EXPECT_FALSE(from_wire(wrong, asked).ok()) << figure;
  }
  wire::SpeedMeasured other = message;
  other.mutable_types(0)->set_type(static_cast<std::uint32_t>(quant::DataType::kQ4_0));
  EXPECT_FALSE(from_wire(other, asked).ok());
  other.clear_types();
  EXPECT_FALSE(from_wire(other, asked).ok());
  wire::LinkMeasured link;
  to_wire(test_link(7, 40), link);
  ASSERT_TRUE(from_wire(link).ok());
  link.set_latency_seconds(-1.0);
  EXPECT_FALSE(from_wire(link).ok());
}

}  // namespace
}  // namespace recua::cluster
