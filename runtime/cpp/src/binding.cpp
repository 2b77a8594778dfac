// A program bound to engines and memory, and whether it may be.
#include "binding.hpp"

#include <algorithm>

#include "failure.hpp"
#include "profiles.hpp"

namespace flowblending::detail {
namespace {

Shape resolve(const TensorSpec& spec, std::int64_t batch, const LatentShape& latents) {
  Shape shape;
  for (const Dim& dim : spec.shape) {
    if (const auto* size = std::get_if<std::int64_t>(&dim)) {
      shape.push_back(*size);
    } else {
      const std::string& symbol = *std::get_if<std::string>(&dim);
      shape.push_back(symbol == "batch"    ? batch
                      : symbol == "frames" ? latents[1]
                      : symbol == "height" ? latents[2]
                                           : latents[3]);
    }
  }
  return shape;
}

std::size_t bytes_of(const Shape& shape, DType dtype) {
  std::int64_t bytes = size_of(dtype);
  for (const std::int64_t size : shape) {
    if (size > (std::int64_t{1} << 46) / bytes)
      fail(Code::bad_file, "The shape ", brackets(shape), " is too large; check the bundle.");
    bytes *= size;
  }
  return static_cast<std::size_t>(bytes);
}

class Binder {
 public:
  Binder(const Program& program, const Manifest& manifest, const Engines& engines, DeviceMemory& device)
      : program_(program),
        manifest_(manifest),
        engines_(engines),
        device_(device),
        binding_(std::make_unique<Binding>()) {
    binding_->latent_shape = program.latent_shape;
    binding_->count = static_cast<std::size_t>(elements(program.latent_shape));
  }

  std::unique_ptr<Binding> bind() {
    place_slots();
    int number = 0;
    for (const Step& step : program_.steps) {
      ++number;
      BoundStep bound{step.model, {}, device_.mark()};
      for (const Instruction& each : step.instructions) {
        if (const auto* run = std::get_if<Run>(&each)) {
          bound.instructions.emplace_back(call(*run, step, number));
        } else if (const auto* rescale = std::get_if<Rescale>(&each)) {
          bound.instructions.emplace_back(BoundRescale{slot(rescale->out), slot(rescale->reference), rescale->share});
        } else {
          bound.instructions.emplace_back(mix(*std::get_if<Mix>(&each)));
        }
      }
      binding_->steps.push_back(std::move(bound));
    }
    for (const BoundInput& each : binding_->inputs) binding_->infos.push_back(each.info);
    return std::move(binding_);
  }

 private:
  template <typename T>
  T* allocate(std::size_t bytes) {
    binding_->memory.push_back(device_.allocate(bytes));
    return static_cast<T*>(binding_->memory.back().get());
  }

  // Slots of one call are rows of one buffer; so are the latents and the copies of them.
  void place_slots() {
    std::vector<const std::vector<int>*> outs;
    std::size_t rows = 1;
    for (const Step& step : program_.steps) {
      for (const Instruction& each : step.instructions) {
        if (const auto* run = std::get_if<Run>(&each)) {
          outs.push_back(&run->out);
          rows = std::max(rows, run->out.size());
        }
      }
    }
    std::stable_sort(outs.begin(), outs.end(), [](const auto* a, const auto* b) { return a->size() > b->size(); });
    binding_->slots.assign(program_.slots.size(), nullptr);
    binding_->slots[0] = allocate<float>(rows * binding_->count * sizeof(float));
    for (const auto* out : outs) place(*out);
    for (std::size_t slot = 0; slot < program_.slots.size(); ++slot) place({static_cast<int>(slot)});
  }

  void place(const std::vector<int>& slots) {
    if (binding_->slots[static_cast<std::size_t>(slots.front())] != nullptr) return;
    float* rows = allocate<float>(slots.size() * binding_->count * sizeof(float));
    for (std::size_t row = 0; row < slots.size(); ++row) slot(slots[row]) = rows + row * binding_->count;
  }

  float*& slot(int number) { return binding_->slots[static_cast<std::size_t>(number)]; }

  BoundMix mix(const Mix& mix) {
    BoundMix bound{slot(mix.out), {}};
    for (const auto& [factor, from] : mix.terms) bound.terms.emplace_back(factor, slot(from));
    return bound;
  }

  BoundCall call(const Run& run, const Step& step, int number) {
    const GraphSpec& spec = manifest_.models.at(run.model).spec;
    const auto batch = static_cast<std::int64_t>(run.branches.size());
    const auto& sources = program_.engines.at(run.model);
    std::vector<BoundTensor> tensors;
    for (std::size_t index = 0; index < spec.inputs.size(); ++index) {
      const TensorSpec& input = spec.inputs[index];
      const Source source = sources[index].second;
      void* data = source == Source::latents    ? slot(0)
                   : source == Source::timestep ? timestep(step.timestep, run.branches.size())
                                                : condition(run, input);
      tensors.push_back({&input, resolve(input, batch, program_.latent_shape), data});
    }
    const TensorSpec& output = spec.outputs.front();
    BoundCall bound{run.model, number, {}, nullptr, slot(run.out.front()), run.out.size() * binding_->count};
    tensors.push_back({&output, resolve(output, batch, program_.latent_shape), bound.velocity});
    for (std::size_t row = 1; row < run.branches.size(); ++row) bound.copies.push_back(slot(0) + row * binding_->count);
    bound.call = engines_.at(run.model)->bind(std::move(tensors));
    return bound;
  }

  // One allocation each, not rows of a table: TensorRT wants its inputs aligned.
  float* timestep(float value, std::size_t batch) {
    float*& known = timesteps_[{value, batch}];
    if (known == nullptr) {
      const std::vector<float> values(batch, value);
      known = allocate<float>(batch * sizeof(float));
      device_.copy(known, values.data(), batch * sizeof(float));
    }
    return known;
  }

  // Memory for a condition of a call: the branches' own rows one after the other, or what they share.
  void* condition(const Run& run, const TensorSpec& spec) {
    const Shape shape = resolve(spec, 1, program_.latent_shape);
    const std::size_t bytes = bytes_of(shape, spec.dtype);
    void*& known = conditions_[{run.branches, spec.name}];
    const bool made = known == nullptr;
    if (made) known = allocate<void>(bytes * (spec.batched() ? run.branches.size() : 1));
    for (std::size_t row = 0; row < run.branches.size(); ++row) {
      BoundInput& bound = input(run.branches[row], spec, shape);
      if (made && (row == 0 || spec.batched())) bound.places.push_back(static_cast<char*>(known) + row * bytes);
    }
    return known;
  }

  BoundInput& input(const std::string& branch, const TensorSpec& spec, const Shape& shape) {
    auto& inputs = binding_->inputs;
    auto found = std::find_if(inputs.begin(), inputs.end(), [&](const BoundInput& each) {
      return each.info.branch == branch && each.info.name == spec.name;
    });
    if (found == inputs.end()) {
      inputs.push_back({{branch, spec.name, spec.dtype, shape}, {}, false});
      return inputs.back();
    }
    if (found->info.dtype != spec.dtype || found->info.shape != shape) {
      fail(Code::bad_file, "The engines ask for the input ", spec.name, " as ", brackets(found->info.shape), " and as ",
           brackets(shape), ", but both get the same; build the bundle again.");
    }
    return *found;
  }

  const Program& program_;
  const Manifest& manifest_;
  const Engines& engines_;
  DeviceMemory& device_;
  std::unique_ptr<Binding> binding_;
  std::map<std::pair<float, std::size_t>, float*> timesteps_;
  std::map<std::pair<std::vector<std::string>, std::string>, void*> conditions_;
};

void check_engine(const std::string& model, const GraphSpec& spec, const Program& program, const std::string& where) {
  const auto& bindings = program.engines.at(model);
  const bool same = std::equal(bindings.begin(), bindings.end(), spec.inputs.begin(), spec.inputs.end(),
                               [](const auto& binding, const TensorSpec& input) { return binding.first == input; });
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
    if ((input.name == "latents" && !fits(input, latents)) || (input.name == "timestep" && !fits(input, {1}))) {
      fail(Code::bad_file, "Input ", input.name, " of engine ", model, " is no float32 [batch, ...] of the size of ",
           where, "; build the bundle again.");
    }
    for (std::size_t axis = 1; axis < input.shape.size(); ++axis) {
      if (input.shape[axis] == Dim("batch")) {
        fail(Code::bad_file, "Input ", input.name, " of engine ", model,
             " has its batch behind; build the bundle again.");
      }
    }
    if (input.batched() && input.shape.front() != Dim("batch")) {
      fail(Code::bad_file, "Input ", input.name, " of engine ", model,
           " does not start with its batch; build the bundle "
           "again.");
    }
  }
  if (spec.outputs.size() != 1 || spec.outputs[0].name != "velocity" || !fits(spec.outputs[0], latents)) {
    fail(Code::bad_file, "Engine ", model, " does not give one output velocity of the latents' shape in ", where,
         "; build the bundle again.");
  }
  if (spec.outputs[0].shape.front() != Dim("batch")) {
    fail(Code::bad_file, "Output velocity of engine ", model,
         " does not start with its batch; build the bundle again.");
  }
}

}  // namespace

void enqueue(BoundInstruction& instruction, const Binding& binding, DeviceMemory& device) {
  if (auto* call = std::get_if<BoundCall>(&instruction)) {
    for (float* copy : call->copies) device.copy(copy, binding.slots[0], binding.count * sizeof(float));
    call->call->enqueue();
  } else if (const auto* mix = std::get_if<BoundMix>(&instruction)) {
    device.mix(mix->out, binding.count, mix->terms);
  } else {
    const auto& rescale = *std::get_if<BoundRescale>(&instruction);
    device.rescale(rescale.out, rescale.reference, binding.count, rescale.share);
  }
}

void check_program(const Program& program, const Manifest& manifest, const std::string& where) {
  if (program.bundle != manifest.id) {
    fail(Code::bad_file, where, " was written for bundle ", program.bundle, ", but this is bundle ", manifest.id,
         "; write it again with fb-run --emit-program.");
  }
  if (!holds(manifest.profiles, program.latent_shape)) {
    const Geometry near = nearest(manifest.profiles, program.latent_shape);
    fail(Code::bad_file, where, " was written for latents ", brackets(program.latent_shape),
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
}

std::unique_ptr<Binding> bind_program(const Program& program, const Manifest& manifest, const Engines& engines,
                                      DeviceMemory& device) {
  return Binder(program, manifest, engines, device).bind();
}

}  // namespace flowblending::detail
