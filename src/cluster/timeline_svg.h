#pragma once
/// Timelines as a picture that any browser shows.

#include <span>
#include <string>

#include "cluster/timeline.h"

namespace recua::cluster {

/// One SVG file, the timelines below each other on axes of their own. Readable on light and dark
/// ground. Events too narrow to be seen are merged with their neighbours, so the file stays small
/// whatever the timelines hold.
std::string timeline_svg(std::span<const Timeline> timelines, const std::string& title);

}  // namespace recua::cluster
