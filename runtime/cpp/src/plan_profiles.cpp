#include "plan_profiles.hpp"

#include <limits>

#include "failure.hpp"

namespace flowblending::detail {
namespace {

bool within(const Bounds& bounds, const Shape& shape) {
  bool good = bounds.least.size() == shape.size() && bounds.most.size() == shape.size();
  for (std::size_t axis = 0; good && axis < shape.size(); ++axis) {
    good = bounds.least[axis] <= shape[axis] && shape[axis] <= bounds.most[axis];
  }
  return good;
}

bool holds(const PlanProfile& profile, const std::vector<BoundTensor>& tensors) {
  for (std::size_t input = 0; input < profile.size(); ++input) {
    if (!within(profile[input], tensors[input].shape)) return false;
  }
  return true;
}

// Numbers in all inputs at their largest.
double volume(const PlanProfile& profile) {
  double sum = 0;
  for (const Bounds& bounds : profile) {
    double product = 1;
    for (const std::int64_t size : bounds.most) product *= static_cast<double>(size);
    sum += product;
  }
  return sum;
}

// The first input that fits nowhere; the first of all if each fits somewhere.
std::size_t culprit(const std::vector<PlanProfile>& profiles, const std::vector<BoundTensor>& tensors) {
  for (std::size_t input = 0; input + 1 < tensors.size(); ++input) {
    bool fits = false;
    for (const PlanProfile& profile : profiles) fits = fits || within(profile[input], tensors[input].shape);
    if (!fits) return input;
  }
  return 0;
}

[[noreturn]] void refuse(const std::vector<PlanProfile>& profiles, const std::vector<BoundTensor>& tensors,
                         const std::string& engine) {
  const std::size_t input = culprit(profiles, tensors);
  std::string known;
  for (const PlanProfile& profile : profiles) {
    known += (known.empty() ? "" : " or ") + brackets(profile[input].least) + " to " + brackets(profile[input].most);
  }
  fail(Code::bad_file, "Input ", tensors[input].spec->name, " of engine ", engine, " has shape ",
       brackets(tensors[input].shape), ", but it was compiled for ", known, "; build the bundle for this size.");
}

}  // namespace

int choose_profile(const std::vector<PlanProfile>& profiles, const std::vector<BoundTensor>& tensors,
                   const std::string& engine) {
  int best = -1;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t index = 0; index < profiles.size(); ++index) {
    const double found = volume(profiles[index]);
    if (found < least && holds(profiles[index], tensors)) {
      best = static_cast<int>(index);
      least = found;
    }
  }
  if (best < 0) refuse(profiles, tensors, engine);
  return best;
}

}  // namespace flowblending::detail
