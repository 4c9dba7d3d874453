#pragma once
/// The loss of a run as a picture that any browser shows.

#include <span>
#include <string>

#include "train/loss_log.h"

namespace recua::train {

/// One SVG file: the loss of training, averaged where steps lie closer than a pixel, and the loss
/// on validation data as points with lines between. Losses that are not finite are left out. Small
/// whatever the number of steps.
[[nodiscard]] std::string loss_svg(std::span<const LossRecord> records, const std::string& title);

}  // namespace recua::train
