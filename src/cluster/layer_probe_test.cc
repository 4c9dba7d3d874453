#include "cluster/layer_probe.h"

#include <gtest/gtest.h>

#include "cluster/plan_test_inputs.h"
#include "cluster/step_model.h"
#include "compute/cpu/cpu_device.h"

namespace recua::cluster {
namespace {

constexpr const char* kModel = RECUA_GOLDEN_DIR "/models/stories260K.gguf";

Result<std::optional<LayerTimes>> times_of(const LayerProbeOptions& options) {
  RECUA_ASSIGN_OR_RETURN(gguf::GgufFile opened, gguf::GgufFile::open(kModel));
  const auto file = std::make_shared<const gguf::GgufFile>(std::move(opened));
  RECUA_ASSIGN_OR_RETURN(const model::HyperParams hyperparams, model::read_hyperparams(*file));
  RECUA_ASSIGN_OR_RETURN(const auto device, compute::make_cpu_device({.n_threads = 1}));
  return time_layers(*device, file, hyperparams, options);
}

TEST(LayerProbe, TimesLayersAndHalvesOfThem) {
  const auto times = times_of({});
  ASSERT_TRUE(times.ok()) << times.error().message;
  ASSERT_TRUE(times->has_value());
  const LayerTimes& t = **times;
  EXPECT_EQ(t.layers, (IndexRange{1, 4}));  // Neither the first nor the last of five.
  EXPECT_GT(t.whole, 0.0);
  EXPECT_GT(t.half, 0.0);
  EXPECT_EQ(t.share.heads, (IndexRange{0, 4}));
}

TEST(LayerProbe, TakesNoMoreLayersThanAreWanted) {
  const auto times = times_of({.weight_bytes = 1});
  ASSERT_TRUE(times.ok() && times->has_value());
  EXPECT_EQ((*times)->layers, (IndexRange{1, 2}));
}

TEST(LayerProbe, TakesAsManyLayersAsMemoryHolds) {
  const std::uint64_t layer = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64 + 2 * 64);
  const auto times = times_of({.memory_bytes_max = 2 * 2 * layer + layer});
  ASSERT_TRUE(times.ok() && times->has_value());
  EXPECT_EQ((*times)->layers, (IndexRange{1, 3}));
}

TEST(LayerProbe, LeavesLayersAloneThatAreTooLarge) {
  const auto times = times_of({.memory_bytes_max = 1000});
  ASSERT_TRUE(times.ok());
  EXPECT_FALSE(times->has_value());
}

/// Seconds that a machine of this speed is said to take for a share of the layers.
double predicted(const MachineSpeed& speed, const ModelShape& model, const LayerTimes& times,
                 const RankShare& share) {
  const ClusterShape cluster = cluster_of({{.name = "here", .speed = speed}}, {});
  StepModel step_model(model, cluster);
  return step_model
      .stage({.layers = times.layers, .ranks = {share}}, {.context = times.context, .n_outputs = 0})
      .compute;
}

struct Fitted {
  MachineSpeed before = {};
  MachineSpeed after = {};
  double whole = 0.0;
  double half = 0.0;
};

Fitted fit(double whole, double half) {
  const ModelShape model = test_model(8);
  LayerTimes times = {.layers = {1, 5}, .context = 160.0, .whole = whole, .half = half};
  times.share = {.machine = 0, .heads = {0, 8}, .ffn = {0, 2048}, .vocab = {0, 16000}};
  Fitted out = {.before = test_machine("a").speed};
  out.before.by_type = {{quant::DataType::kQ8_0, 2e11, 1e10}};
  out.after = fit_to_layers(out.before, model, times);
  out.whole = predicted(out.after, model, times,
                        {.machine = 0, .heads = {0, 16}, .ffn = {0, 4096}, .vocab = {0, 32000}});
  out.half = predicted(out.after, model, times, times.share);
  return out;
}

TEST(FitToLayers, PredictsWhatWasMeasured) {
  const Fitted fitted = fit(12e-3, 7e-3);
  EXPECT_NEAR(fitted.whole, 12e-3, 0.02 * 12e-3);  // Attention is not scaled.
  EXPECT_NEAR(fitted.half, 7e-3, 0.02 * 7e-3);
  EXPECT_GT(fitted.after.operator_seconds, 0.0);
  // Many tokens at a time were measured as they are.
  EXPECT_EQ(fitted.after.by_type[0].macs_per_second, fitted.before.by_type[0].macs_per_second);
}

TEST(FitToLayers, TakesAllAsProportionalWhenAHalfTakesLessThanHalf) {
  const Fitted fitted = fit(12e-3, 5e-3);
  EXPECT_NEAR(fitted.whole, 12e-3, 0.02 * 12e-3);
  EXPECT_NEAR(fitted.after.operator_seconds, 0.0, 1e-7);
}

TEST(FitToLayers, BoundsWhatNoiseCanDo) {
  // A half slower than the whole: somebody else computed meanwhile.
  const Fitted fitted = fit(12e-3, 13e-3);
  EXPECT_GT(fitted.after.bytes_per_second, 0.0);
  EXPECT_LE(fitted.after.bytes_per_second, 2.0 * fitted.before.bytes_per_second);
  EXPECT_NEAR(fitted.whole, 12e-3, 0.02 * 12e-3);
}

}  // namespace
}  // namespace recua::cluster
