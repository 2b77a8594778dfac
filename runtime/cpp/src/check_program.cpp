// Whether a program was written for a bundle, with the engines that it has.
#include <algorithm>

#include "binding.hpp"
#include "failure.hpp"
#include "profiles.hpp"

namespace flowblending::detail {
namespace {

void check_engine(const std::string& model, const GraphSpec& spec, const Program& program, const std::string& where) {
  const auto& bindings = program.engines.at(model);
  const bool same = std::equal(bindings.begin(), bindings.end(), spec.inputs.begin(), spec.inputs.end(),
                               [](const auto& binding, const TensorSpec& input) { return binding.spec == input; });
  if (!same) {
    fail(Code::bad_file, where, " gives engine ", model,
         " other inputs than the bundle's manifest; write it again with "
         "fb-run --emit-program.");
  }
  const auto& shape = program.latent_shape;
  const Shape latents = {1, shape[0], shape[1], shape[2], shape[3]};
  const auto fits = [&](const TensorSpec& tensor, const Shape& expected) {
    return tensor.dtype == DType::float32 && tensor.batched() && resolve(tensor, 1, shape) == expected;
  };
  for (const TensorSpec& input : spec.inputs) {
    const bool good = input.name == "latents"    ? fits(input, latents)
                      : input.name == "timestep" ? fits(input, {1}) || fits(input, {1, shape[1]})
                                                 : true;
    if (!good) {
      fail(Code::bad_file, "Input ", input.name, " of engine ", model, " is no float32 [batch, ...] of the size of ",
           where, "; build the bundle again.");
    }
    for (std::size_t axis = 1; axis < input.shape.size(); ++axis) {
      if (input.shape[axis] == Dim("batch")) {
        fail(Code::bad_file, "Input ", input.name, " of engine ", model,
             " has its batch behind; build the bundle again.");
      }
    }
  }
  if (spec.outputs.size() != 1 || spec.outputs[0].name != "velocity" || !fits(spec.outputs[0], latents)) {
    fail(Code::bad_file, "Engine ", model, " does not give one output velocity of the latents' shape in ", where,
         "; build the bundle again.");
  }
}

bool takes_frame_timesteps(const GraphSpec& spec) {
  return std::any_of(spec.inputs.begin(), spec.inputs.end(),
                     [](const TensorSpec& input) { return input.name == "timestep" && input.shape.size() == 2; });
}

}  // namespace

void check_program(const Program& program, const Manifest& manifest, const std::string& where) {
  if (program.bundle != manifest.id) {
    fail(Code::bad_file, where, " was written for bundle ", program.bundle, ", but this is bundle ", manifest.id,
         "; write it again with fb-run --emit-program.");
  }
  if (!holds(manifest.profiles, program.result_shape())) {
    const Geometry near = nearest(manifest.profiles, program.result_shape());
    fail(Code::bad_file, where, " was written for latents ", brackets(program.result_shape()),
         ", which none of the bundle's profiles holds; write it again for ", near.width, "x", near.height, " and ",
         near.frames, near.frames == 1 ? " frame" : " frames", ", whose latents ", brackets(near.latent_shape),
         " are the nearest that fit, or build the bundle for its size.");
  }
  for (const auto& [model, bindings] : program.engines) {
    const auto found = manifest.models.find(model);
    if (found == manifest.models.end()) {
      fail(Code::bad_file, where, " runs the model ", model, ", which the bundle does not have; write it again.");
    }
    check_engine(model, found->second.spec, program, where);
  }
  for (const Step& step : program.steps) {
    if (step.frame_timesteps.empty()) continue;
    for (const auto& each : step.instructions) {
      const auto* run = std::get_if<Run>(&each);
      if (run != nullptr && !takes_frame_timesteps(manifest.models.at(run->model).spec)) {
        fail(Code::bad_file, where, " tells a timestep for every latent frame, but engine ", run->model,
             " takes one for all; write it again with fb-run --emit-program.");
      }
    }
  }
}

}  // namespace flowblending::detail
