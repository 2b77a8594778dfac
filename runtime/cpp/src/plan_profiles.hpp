// Which of a TensorRT plan's optimization profiles serves a call.
#pragma once

#include <string>
#include <vector>

#include "engine.hpp"

namespace flowblending::detail {

// What an input may be, on every axis.
struct Bounds {
  Shape least, most;
};

// Of all inputs, in the specification's order.
using PlanProfile = std::vector<Bounds>;

// The profile that holds the inputs of a call (its tensors but the last, which is the output); of several the one whose
// largest inputs have the fewest numbers, because its kernels were chosen for sizes nearest to these. Fails if there is
// none. `engine` is its name in messages.
int choose_profile(const std::vector<PlanProfile>& profiles, const std::vector<BoundTensor>& tensors,
                   const std::string& engine);

}  // namespace flowblending::detail
