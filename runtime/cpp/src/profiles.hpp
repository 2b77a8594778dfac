// The sizes of videos that a bundle makes: reading them, and telling the nearest.
#pragma once

#include <vector>

#include "node.hpp"
#include "spec.hpp"

namespace flowblending::detail {

// [C, F, H, W]
LatentShape read_latent_shape(const Node& node);

// The list `profiles` of a manifest: at least one, each in order, all with the same number of channels.
std::vector<Profile> read_profiles(const Node& node);

// One video's size, as a list of profiles.
std::vector<Profile> one_profile(const Node& node);

// Whether one of the profiles holds latents of this shape.
bool holds(const std::vector<Profile>& profiles, const LatentShape& shape);

// Of all that the profiles hold, what is nearest to a shape: the least sum of |log ratio| over F, H and W.
Geometry nearest(const std::vector<Profile>& profiles, const LatentShape& shape);

}  // namespace flowblending::detail
