#include "profiles.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flowblending::detail {
namespace {

Geometry read_geometry(const Node& node) {
  Geometry found;
  found.width = node.at("width").integer(1, kLargestSize);
  found.height = node.at("height").integer(1, kLargestSize);
  found.frames = node.at("frames").integer(1, kLargestSize);
  found.latent_shape = read_latent_shape(node.at("latent_shape"));
  return found;
}

bool within(const Profile& profile, const LatentShape& shape) {
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] < profile.min.latent_shape[axis] || shape[axis] > profile.max.latent_shape[axis]) return false;
  }
  return true;
}

bool in_order(std::int64_t min, std::int64_t opt, std::int64_t max) { return min <= opt && opt <= max; }

Profile read_profile(const Node& node) {
  const Profile found{read_geometry(node.at("min")), read_geometry(node.at("opt")), read_geometry(node.at("max"))};
  const auto& [min, opt, max] = found;
  bool good = in_order(min.width, opt.width, max.width) && in_order(min.height, opt.height, max.height) &&
              in_order(min.frames, opt.frames, max.frames);
  for (std::size_t axis = 0; axis < min.latent_shape.size(); ++axis) {
    good = good && in_order(min.latent_shape[axis], opt.latent_shape[axis], max.latent_shape[axis]);
  }
  if (!good) node.damaged("no size of min above that of opt, and none of opt above that of max was expected");
  return found;
}

// Pixels or frames grow evenly with latents, so the two ends of a profile tell all between them.
std::int64_t between(std::int64_t at, std::int64_t from, std::int64_t to, std::int64_t first, std::int64_t last) {
  return from == to ? first : first + (at - from) * (last - first) / (to - from);
}

Geometry clamped(const Profile& profile, const LatentShape& shape) {
  const auto& [min, opt, max] = profile;
  const LatentShape &low = min.latent_shape, &high = max.latent_shape;
  Geometry found;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    found.latent_shape[axis] = std::clamp(shape[axis], low[axis], high[axis]);
  }
  found.frames = between(found.latent_shape[1], low[1], high[1], min.frames, max.frames);
  found.height = between(found.latent_shape[2], low[2], high[2], min.height, max.height);
  found.width = between(found.latent_shape[3], low[3], high[3], min.width, max.width);
  return found;
}

double distance(const LatentShape& from, const LatentShape& to) {
  double sum = 0;
  for (std::size_t axis = 1; axis < from.size(); ++axis) {
    sum += std::fabs(std::log(static_cast<double>(from[axis]) / static_cast<double>(to[axis])));
  }
  return sum;
}

}  // namespace

LatentShape read_latent_shape(const Node& node) {
  LatentShape shape{};
  if (node.size() != shape.size()) node.damaged("four sizes were expected");
  std::int64_t product = 1;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    shape[axis] = node[axis].integer(1, kLargestSize);
    if (shape[axis] > kMostElements / product) node.damaged("the sizes are too large");
    product *= shape[axis];
  }
  return shape;
}

std::vector<Profile> read_profiles(const Node& node) {
  std::vector<Profile> found;
  node.each([&](const Node& each) {
    found.push_back(read_profile(each));
    const std::int64_t channels = found.front().min.latent_shape[0];
    if (found.back().min.latent_shape[0] != channels || found.back().max.latent_shape[0] != channels)
      each.damaged("the same number of channels was expected everywhere");
  });
  if (found.empty()) node.damaged("at least one profile was expected");
  return found;
}

std::vector<Profile> one_profile(const Node& node) {
  const Geometry only = read_geometry(node);
  return {Profile{only, only, only}};
}

bool holds(const std::vector<Profile>& profiles, const LatentShape& shape) {
  return std::any_of(profiles.begin(), profiles.end(), [&](const Profile& each) { return within(each, shape); });
}

Geometry nearest(const std::vector<Profile>& profiles, const LatentShape& shape) {
  Geometry best;
  double least = std::numeric_limits<double>::infinity();
  for (const Profile& each : profiles) {
    const Geometry found = clamped(each, shape);
    const double away = distance(found.latent_shape, shape);
    if (away < least) {
      best = found;
      least = away;
    }
  }
  return best;
}

}  // namespace flowblending::detail
