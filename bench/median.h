#pragma once
/// The upper median of at least one value.

#include <algorithm>
#include <vector>

namespace recua {

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace recua
