#include "cluster/timeline_svg.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/svg.h"

namespace recua::cluster {
namespace {

// Pixels.
constexpr double kNameWidth = 210.0;
constexpr double kPlotWidth = 900.0;
constexpr double kShareWidth = 60.0;
constexpr double kLaneHeight = 18.0;
constexpr double kBarHeight = 14.0;
constexpr double kCardHeight = 4.0;  // A card's sending lies along the bottom of the lane.
constexpr double kHeadHeight = 64.0;
constexpr double kTitleHeight = 30.0;
constexpr double kAxisHeight = 34.0;

// Narrower events are merged with the next of their kind; gaps narrower than that are not seen.
constexpr double kSeenWidth = 0.5;

constexpr svg::Style kStyle = {
    .light =
        ".lane { fill: #f3f5f7; } .c0 { fill: #2f6fb3; } .c1 { fill: #6ba3dd; }\n"
        ".x { fill: #d9822b; } .s { fill: #2a9d6f; }",
    .dark =
        ".lane { fill: #161b22; } .c0 { fill: #4c8fd6; } .c1 { fill: #88bdf2; }\n"
        ".x { fill: #f0a04b; } .s { fill: #43c491; }"};

std::string shortened(const std::string& text, std::size_t n_max) {
  return text.size() <= n_max ? text : text.substr(0, n_max - 3) + "...";
}

struct Unit {
  const char* name;
  double seconds;
};

Unit unit_for(double seconds) {
  constexpr std::array<Unit, 3> kUnits = {{{"s", 1.0}, {"ms", 1e-3}, {"us", 1e-6}}};
  for (const Unit& unit : kUnits) {
    if (seconds >= 2.0 * unit.seconds) return unit;
  }
  return kUnits.back();
}

const char* class_of(const TimelineEvent& event) {
  if (event.what == Activity::kExchange) return "x";
  if (event.what == Activity::kSend) return "s";
  return event.chain % 2 == 0 ? "c0" : "c1";
}

/// The bars of a timeline, merged where they cannot be told apart.
struct Bar {
  double begin = 0.0;  // Pixels from the plot's left.
  double end = 0.0;
};

/// A path per colour, since a rectangle element for each bar would take five times the bytes.
void draw_bars(const Timeline& timeline, double top, std::string& out) {
  const double scale = kPlotWidth / timeline.end;
  // Per place (card or not) and colour what is drawn already, and per lane the bar that may grow.
  std::map<std::pair<bool, std::string>, std::string> paths;
  std::map<std::tuple<bool, std::string, std::uint32_t>, Bar> open;
  const auto write = [&](const auto& key, const Bar& bar) {
    const auto& [on_card, css, lane] = key;
    const double y = top + lane * kLaneHeight + (on_card ? kBarHeight + 1 - kCardHeight : 1.0);
    fmt::format_to(std::back_inserter(paths[{on_card, css}]), "M{:.1f} {:g}h{:.1f}v{:g}h{:.1f}z",
                   kNameWidth + bar.begin, y, std::max(bar.end - bar.begin, kSeenWidth),
                   on_card ? kCardHeight : kBarHeight, -std::max(bar.end - bar.begin, kSeenWidth));
  };
  for (const TimelineEvent& event : timeline.events) {
    const auto key = std::tuple(event.on_card, std::string(class_of(event)), event.lane);
    const Bar bar = {.begin = event.begin * scale, .end = event.end * scale};
    const auto [at, is_new] = open.try_emplace(key, bar);
    if (is_new) continue;
    if (bar.begin - at->second.end < kSeenWidth && bar.begin >= at->second.begin &&
        (bar.end - bar.begin < kSeenWidth || at->second.end - at->second.begin < kSeenWidth)) {
      at->second.end = std::max(at->second.end, bar.end);
    } else {
      write(key, at->second);
      at->second = bar;
    }
  }
  for (const auto& [key, bar] : open) write(key, bar);
  // What cards do comes last in the map, so it is seen on top of what processors do.
  for (const auto& [key, path] : paths) {
    fmt::format_to(std::back_inserter(out), "<path class=\"{}\" d=\"{}\"/>\n", key.second, path);
  }
}

/// Returns the height that was used.
double draw_timeline(const Timeline& timeline, double top, std::string& out) {
  std::string title = timeline.title;
  if (timeline.n_stages_hidden > 0) {
    title += fmt::format(" ({} more stages not shown)", timeline.n_stages_hidden);
  }
  svg::draw_text(out, 10.0, top + 18.0, "part", "start", title);
  svg::draw_text(out, kNameWidth + kPlotWidth + kShareWidth - 5.0, top + 18.0, "faint", "end",
                 "busy");
  const double lanes_top = top + kTitleHeight;
  const double lanes_height = static_cast<double>(timeline.lanes.size()) * kLaneHeight;
  for (std::size_t i = 0; i < timeline.lanes.size(); ++i) {
    const TimelineLane& lane = timeline.lanes[i];
    const double y = lanes_top + static_cast<double>(i) * kLaneHeight;
    fmt::format_to(std::back_inserter(out),
                   "<rect class=\"lane\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" "
                   "height=\"{:.1f}\"/>\n",
                   kNameWidth, y + 1.0, kPlotWidth, kBarHeight);
    svg::draw_text(out, kNameWidth - 6.0, y + 12.0, "name", "end", shortened(lane.name, 32));
    svg::draw_text(out, kNameWidth + kPlotWidth + kShareWidth - 5.0, y + 12.0, "faint", "end",
                   fmt::format("{:.0f} %", 100.0 * lane.busy_seconds / timeline.end));
  }
  const Unit unit = unit_for(timeline.end);
  const double whole = timeline.end / unit.seconds;
  const double step = svg::nice_step(whole, 9.0);
  for (int i = 0; i * step <= whole * 1.0001; ++i) {
    const double x = kNameWidth + i * step / whole * kPlotWidth;
    svg::draw_line(out, "grid", x, lanes_top, x, lanes_top + lanes_height + 4.0);
    svg::draw_text(out, x, lanes_top + lanes_height + 16.0, "faint", "middle",
                   fmt::format("{:.6g} {}", i * step, unit.name));
  }
  draw_bars(timeline, lanes_top, out);
  return kTitleHeight + lanes_height + kAxisHeight;
}

void draw_legend(const std::string& chain_name, std::string& out) {
  const std::array<std::pair<const char*, std::string>, 4> entries = {
      {{"c0", "computing"},
       {"c1", "computing, every other " + chain_name},
       {"x", "exchanging partial sums"},
       {"s", "sending to the next stage (thin: by the card)"}}};
  double x = 10.0;
  for (const auto& [css, text] : entries) {
    fmt::format_to(std::back_inserter(out),
                   "<rect class=\"{}\" x=\"{:.1f}\" y=\"38\" width=\"12\" height=\"12\"/>\n", css,
                   x);
    svg::draw_text(out, x + 17.0, 48.0, "name", "start", text);
    x += 40.0 + 6.2 * static_cast<double>(text.size());
  }
}

}  // namespace

std::string timeline_svg(std::span<const Timeline> timelines, const std::string& title) {
  std::string body;
  double y = kHeadHeight;
  for (const Timeline& timeline : timelines) {
    if (timeline.end > 0.0) y += draw_timeline(timeline, y, body);
  }
  const double width = kNameWidth + kPlotWidth + kShareWidth;
  std::string out = svg::begin(width, y, title, kStyle);
  svg::draw_text(out, 10.0, 24.0, "title", "start", title);
  std::string chain_names;
  for (const Timeline& timeline : timelines) {
    if (chain_names.find(timeline.chain_name) != std::string::npos) continue;
    chain_names += (chain_names.empty() ? "" : " or ") + timeline.chain_name;
  }
  draw_legend(chain_names, out);
  out += body;
  out += "</svg>\n";
  return out;
}

}  // namespace recua::cluster
