#include "cli/flags.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <gtest/gtest.h>

namespace recua::cli {
namespace {

template <class T>
void expect_refused(const Result<T>& result, const std::string& what) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(result.error().message.find(what), std::string::npos) << result.error().message;
}

TEST(Flags, ReadLogitBiases) {
  const auto plus = parse_logit_bias("15043+1.5");
  ASSERT_TRUE(plus.ok());
  EXPECT_EQ(*plus, (sampling::LogitBias{.id = 15043, .bias = 1.5F}));
  const auto never = parse_logit_bias("7-inf");
  ASSERT_TRUE(never.ok());
  EXPECT_EQ(*never,
            (sampling::LogitBias{.id = 7, .bias = -std::numeric_limits<float>::infinity()}));
}

TEST(Flags, TakeAnAdapterWithOrWithoutItsScale) {
  LoraFlags flags;
  EXPECT_FALSE(flags.any());
  flags.text = "a.gguf";
  ASSERT_TRUE(flags.check().ok());
  EXPECT_TRUE(flags.any());
  EXPECT_EQ(flags.path, "a.gguf");
  EXPECT_EQ(flags.scale, 1.0F);
  flags.text = "dir:x/a.gguf:-0.5";
  ASSERT_TRUE(flags.check().ok());
  EXPECT_EQ(flags.path, "dir:x/a.gguf");
  EXPECT_EQ(flags.scale, -0.5F);
  for (const char* text : {"a.gguf:", "a.gguf:x", "a.gguf:nan", "a.gguf:inf", ":1", "a.gguf:1x"}) {
    flags.text = text;
    expect_refused(flags.check(), "FILE:SCALE");
  }
}

TEST(Flags, RefuseMalformedLogitBiases) {
  for (const char* text :
       {"", "7", "+1", "-1", "7+", "7+x", "7+nan", "a+1", "7--1", "99999999999+1"})
    expect_refused(parse_logit_bias(text), "ID+BIAS");
}

TEST(Flags, ReadTokenIds) {
  const auto ids = parse_token_ids("--prompt-ids", "1,403,0");
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, (std::vector<TokenId>{1, 403, 0}));
  for (const char* text : {"", "1,", ",1", "1,,2", "x", "-1", "1 2", "2147483648"})
    expect_refused(parse_token_ids("--prompt-ids", text), "--prompt-ids");
}

TEST(Flags, BoundCounts) {
  const auto counts = parse_counts("-p", "512,1024", 1024);
  ASSERT_TRUE(counts.ok());
  EXPECT_EQ(*counts, (std::vector<std::uint32_t>{512, 1024}));
  expect_refused(parse_counts("-p", "1025", 1024), "0 to 1024");
  expect_refused(parse_counts("-p", "1.5", 1024), "'1.5'");
}

TEST(Flags, ListTheCacheTypesWhenAnotherIsNamed) {
  EXPECT_EQ(*parse_cache_type("-ctk", "F32"), quant::DataType::kF32);
  EXPECT_EQ(*parse_cache_type("-ctk", "f16"), quant::DataType::kF16);
  EXPECT_EQ(*parse_cache_type("-ctk", "q8_0"), quant::DataType::kQ8_0);
  EXPECT_EQ(*parse_cache_type("-ctk", "Q4_0"), quant::DataType::kQ4_0);
  expect_refused(parse_cache_type("-ctk", "q4_k"), "need f16, f32, q8_0 or q4_0");
  expect_refused(parse_cache_type("-ctk", "nonsense"), "need f16, f32, q8_0 or q4_0");
}

TEST(Flags, CheckTheSamplingRanges) {
  SamplingFlags flags;
  flags.params.top_p = 1.5F;
  expect_refused(flags.check(), "--top-p is 1.5, need a number from 0 to 1");
  flags.params.top_p = std::nanf("");
  expect_refused(flags.check(), "--top-p");
  flags.params.top_p = 1.0F;
  flags.params.repeat_penalty = 0.0F;
  expect_refused(flags.check(), "--repeat-penalty");
  flags.params.repeat_penalty = 1.0F;
  flags.seed = 42;
  const auto checked = flags.check();
  ASSERT_TRUE(checked.ok());
  EXPECT_EQ(checked->seed, 42U);
}

TEST(Flags, NameEveryWorker) {
  ClusterFlags flags;
  flags.workers_text = "a:1,[fd00::1]:2,c";
  flags.split_text = "2,1,1";
  ASSERT_TRUE(flags.check().ok());
  ASSERT_EQ(flags.workers.size(), 3U);
  EXPECT_EQ(flags.workers[1], (net::Endpoint{.host = "fd00::1", .port = 2}));
  EXPECT_EQ(flags.workers[2], (net::Endpoint{.host = "c", .port = kDefaultWorkerPort}));
  EXPECT_EQ(flags.split, (std::vector<std::uint32_t>{2, 1, 1}));
}

TEST(Flags, RefuseContradictionsAboutWorkers) {
  ClusterFlags flags;
  flags.workers_text = "a:1,,b:2";
  expect_refused(flags.check(), "empty parts");
  flags.workers_text = "a:1,b:2";
  flags.split_text = "1";
  expect_refused(flags.check(), "1 shares for 2 workers");
  flags.split_text = "0,0";
  expect_refused(flags.check(), "no worker any layer");
  flags.n_local_workers = 2;
  expect_refused(flags.check(), "exclude each other");
  flags.n_local_workers = 0;
  flags.workers_text.clear();
  flags.split_text = "1,2";
  expect_refused(flags.check(), "--split needs");
}

TEST(Flags, StagesAndRanksFollowFromEachOther) {
  ClusterFlags flags;
  flags.n_local_workers = 6;
  flags.n_stages = 2;
  ASSERT_TRUE(flags.check().ok());
  EXPECT_EQ(flags.n_ranks, 3U);
  flags.n_ranks = 2;
  expect_refused(flags.check(),
                 "--pp 2 and --tp 2 make 4 workers, there are 6: leave one of the two away");
  flags.n_ranks = 1;
  flags.n_stages = 4;
  expect_refused(flags.check(),
                 "--pp 4 makes no equal stages of 6 workers, need a number that divides them");
  flags.n_stages = 6;
  ASSERT_TRUE(flags.check().ok());
  EXPECT_EQ(flags.n_ranks, 1U);
  flags.n_local_workers = 0;
  expect_refused(flags.check(), "--pp needs --workers or --local-workers");
}

TEST(Flags, AskForTheModel) {
  ModelFlags flags;
  expect_refused(flags.check(), "-m/--model is missing");
  flags.model = "x.gguf";
  EXPECT_TRUE(flags.check().ok());
  flags.n_batch = 0;
  expect_refused(flags.check(), "-b/--batch-size is 0");
  flags.n_batch = 1 << 20;
  flags.n_ubatch = 65536;
  EXPECT_TRUE(flags.check().ok());
  flags.n_ubatch = 65537;
  expect_refused(flags.check(), "-ub/--ubatch-size is 65537, need a number from 1 to 65536");
}

TEST(Flags, RepackUnlessToldNotTo) {
  for (const bool told : {false, true}) {
    CLI::App app;
    ModelFlags flags;
    flags.add(app);
    app.parse(told ? "-m model.gguf --no-repack" : "-m model.gguf");
    EXPECT_EQ(flags.repack, !told);
  }
}

TEST(ClusterFlags, RefusesWorkersThatCannotReachEachOther) {
  const auto message = [](const char* text) {
    ClusterFlags flags;
    flags.workers_text = text;
    const auto checked = flags.check();
    return checked.ok() ? std::string() : checked.error().message;
  };
  EXPECT_EQ(message("a:7500,b:7500"), "");
  EXPECT_EQ(message("127.0.0.1:7500,[::1]:7500"), "");
  EXPECT_NE(message("a:7500,a").find("twice"), std::string::npos);
  EXPECT_NE(message("a:0").find("port"), std::string::npos);
  EXPECT_EQ(message("localhost:7500,b:7500"), "");
  EXPECT_NE(message("b:7500,localhost:7500").find("others can reach"), std::string::npos);
}

TEST(ClusterFlags, TakesAPortAloneAsThisMachine) {
  ClusterFlags flags;
  flags.workers_text = ":7501";
  ASSERT_TRUE(flags.check().ok());
  EXPECT_EQ(flags.workers.at(0).host, "127.0.0.1");
}

}  // namespace
}  // namespace recua::cli
