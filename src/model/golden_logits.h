#pragma once
/// The random models of tests/golden/random, and how far logits may be from the float64 pass over
/// them. Included by tests only.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "model/test_models.h"

namespace recua::model {

struct RandomModel {
  std::string name;
  nlohmann::json expected;
};
inline std::vector<RandomModel> random_models() {
  std::vector<RandomModel> out;
  const nlohmann::json expected = read_golden_json("random/expected.json");
  EXPECT_EQ(expected["models"].size(), 17U);
  for (const nlohmann::json& entry : expected["models"]) {
    out.push_back({entry["model"].get<std::string>(), entry});
  }
  return out;
}

inline std::vector<double> log_softmax(const std::vector<float>& logits) {
  double sum = 0.0;
  const double max = *std::max_element(logits.begin(), logits.end());
  for (const float x : logits) sum += std::exp(x - max);
  std::vector<double> out;
  for (const float x : logits) out.push_back(x - max - std::log(sum));
  return out;
}

// Activations stay float with unquantized weights. With quantized ones they are rounded to 8 bits:
// of the ten most probable tokens other engines with such rounding were measured to be within 0.05.
inline double tolerance(const std::string& name) {
  const bool quantized = name.find("-q") != std::string::npos && !name.starts_with("rnd-qwen");
  return quantized ? 0.05 : 0.005;
}

struct Difference {
  double top = 0.0;   // Worst of the ten most probable tokens.
  double all = 0.0;   // Worst of all.
  double mean = 0.0;  // Root of the mean square of all.
};
inline Difference compare(const std::vector<float>& got_logits,
                          const nlohmann::json& wanted_logits) {
  const auto got = log_softmax(got_logits);
  const auto wanted = log_softmax(wanted_logits.get<std::vector<float>>());
  EXPECT_EQ(got.size(), wanted.size());
  std::vector<std::size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return wanted[a] > wanted[b]; });
  Difference out;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    const double difference = std::abs(got[order[rank]] - wanted[order[rank]]);
    if (rank < 10) out.top = std::max(out.top, difference);
    out.all = std::max(out.all, difference);
    out.mean += difference * difference / static_cast<double>(order.size());
  }
  out.mean = std::sqrt(out.mean);
  return out;
}

}  // namespace recua::model
