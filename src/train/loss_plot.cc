#include "train/loss_plot.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "base/svg.h"

namespace recua::train {
namespace {

// Pixels.
constexpr double kWidth = 900.0;
constexpr double kHeight = 480.0;
constexpr double kLeft = 60.0;
constexpr double kRight = 20.0;
constexpr double kTop = 66.0;
constexpr double kBottom = 44.0;
constexpr double kPlotWidth = kWidth - kLeft - kRight;
constexpr double kPlotHeight = kHeight - kTop - kBottom;

constexpr svg::Style kStyle = {
    .light =
        ".train { stroke: #6ba3dd; } .valid { stroke: #d9822b; } .dot { fill: #d9822b; }\n"
        "path { fill: none; stroke-width: 1.5; } .grid { stroke-width: 1; }",
    .dark = ".train { stroke: #4c8fd6; } .valid { stroke: #f0a04b; } .dot { fill: #f0a04b; }"};

struct Point {
  double step = 0.0;
  double loss = 0.0;
};

// The mean of each group of steps that fall on one pixel.
std::vector<Point> averaged(const std::vector<Point>& points, double step_max) {
  std::vector<Point> out;
  std::int64_t column = -1;
  std::size_t n = 0;
  for (const Point& point : points) {
    const auto here = static_cast<std::int64_t>(point.step / step_max * kPlotWidth);
    if (here != column) {
      column = here;
      n = 0;
      out.emplace_back();
    }
    Point& mean = out.back();
    ++n;
    mean.step += (point.step - mean.step) / static_cast<double>(n);
    mean.loss += (point.loss - mean.loss) / static_cast<double>(n);
  }
  return out;
}

struct Axes {
  double step_max = 1.0;
  double loss_min = 0.0;
  double loss_max = 1.0;
  double loss_step = 0.2;

  [[nodiscard]] double x(double step) const { return kLeft + step / step_max * kPlotWidth; }
  [[nodiscard]] double y(double loss) const {
    return kTop + (loss_max - loss) / (loss_max - loss_min) * kPlotHeight;
  }
};

// Whole steps of the grid around all points.
Axes axes_around(const std::vector<Point>& train, const std::vector<Point>& valid,
                 double step_max) {
  double low = std::numeric_limits<double>::max();
  double high = std::numeric_limits<double>::lowest();
  for (const auto* points : {&train, &valid}) {
    for (const Point& point : *points) {
      low = std::min(low, point.loss);
      high = std::max(high, point.loss);
    }
  }
  const double range = std::max({high - low, 1e-3 * std::abs(high), 1e-9});
  const double step = svg::nice_step(range, 7.0);
  return {.step_max = step_max,
          .loss_min = std::floor(low / step) * step,
          .loss_max = (std::floor(high / step) + 1.0) * step,
          .loss_step = step};
}

void draw_axes(const Axes& axes, std::string& out) {
  const double bottom = kTop + kPlotHeight;
  const auto n_rows = std::lround((axes.loss_max - axes.loss_min) / axes.loss_step);
  for (long i = 0; i <= n_rows; ++i) {
    const double loss = axes.loss_min + static_cast<double>(i) * axes.loss_step;
    svg::draw_line(out, "grid", kLeft, axes.y(loss), kLeft + kPlotWidth, axes.y(loss));
    svg::draw_text(out, kLeft - 6.0, axes.y(loss) + 4.0, "faint", "end",
                   fmt::format("{:.5g}", loss));
  }
  const double step = std::max(1.0, svg::nice_step(axes.step_max, 9.0));
  for (int i = 0; i * step <= axes.step_max * 1.0001; ++i) {
    const double at = i * step;
    svg::draw_line(out, "grid", axes.x(at), kTop, axes.x(at), bottom + 4.0);
    svg::draw_text(out, axes.x(at), bottom + 17.0, "faint", "middle", fmt::format("{:.0f}", at));
  }
  svg::draw_text(out, kLeft + kPlotWidth / 2, bottom + 34.0, "faint", "middle", "step");
}

void draw_path(const Axes& axes, const std::vector<Point>& points, const char* css,
               std::string& out) {
  if (points.empty()) return;
  fmt::format_to(std::back_inserter(out), "<path class=\"{}\" d=\"", css);
  char command = 'M';
  for (const Point& point : points) {
    fmt::format_to(std::back_inserter(out), "{}{:.1f} {:.1f}", command, axes.x(point.step),
                   axes.y(point.loss));
    command = 'L';
  }
  out += "\"/>\n";
}

void draw_dots(const Axes& axes, const std::vector<Point>& points, std::string& out) {
  for (const Point& point : points) {
    fmt::format_to(std::back_inserter(out),
                   "<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\"/>\n",
                   axes.x(point.step), axes.y(point.loss));
  }
}

void draw_legend(const std::vector<Point>& valid, const LossRecord& last, std::string& out) {
  svg::draw_line(out, "train", 10.0, 44.0, 28.0, 44.0);
  const std::string train = fmt::format("training, {:.4f} at step {}", last.loss, last.step);
  svg::draw_text(out, 33.0, 48.0, "name", "start", train);
  if (valid.empty()) return;
  const double x = 70.0 + 6.2 * static_cast<double>(train.size());
  svg::draw_line(out, "valid", x, 44.0, x + 18.0, 44.0);
  const auto best = std::ranges::min_element(valid, {}, &Point::loss);
  svg::draw_text(out, x + 23.0, 48.0, "name", "start",
                 fmt::format("validation, {:.4f}; least {:.4f} at step {:.0f}", valid.back().loss,
                             best->loss, best->step));
}

}  // namespace

std::string loss_svg(std::span<const LossRecord> records, const std::string& title) {
  std::vector<Point> train;
  std::vector<Point> valid;
  for (const LossRecord& record : records) {
    const auto step = static_cast<double>(record.step);
    if (std::isfinite(record.loss)) train.push_back({.step = step, .loss = record.loss});
    if (record.validation_loss && std::isfinite(*record.validation_loss))
      valid.push_back({.step = step, .loss = *record.validation_loss});
  }
  std::string out = svg::begin(kWidth, kHeight, title, kStyle);
  svg::draw_text(out, 10.0, 24.0, "title", "start", title);
  if (train.empty() && valid.empty()) {
    svg::draw_text(out, kWidth / 2, kHeight / 2, "faint", "middle", "no step yet");
    return out + "</svg>\n";
  }
  const double step_max = std::max(1.0, static_cast<double>(records.back().step));
  train = averaged(train, step_max);
  valid = averaged(valid, step_max);
  const Axes axes = axes_around(train, valid, step_max);
  draw_axes(axes, out);
  draw_path(axes, train, "train", out);
  draw_path(axes, valid, "valid", out);
  draw_dots(axes, valid, out);
  draw_legend(valid, records.back(), out);
  return out + "</svg>\n";
}

}  // namespace recua::train
