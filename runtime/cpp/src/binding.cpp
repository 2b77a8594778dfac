// A program bound to engines and memory.
#include "binding.hpp"

#include <algorithm>

#include "failure.hpp"

namespace flowblending::detail {

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

namespace {

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
    binding_->result_shape = program.result_shape();
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
          bound.instructions.emplace_back(
              BoundRescale{slot(rescale->out), slot(rescale->reference), count(rescale->out), rescale->share});
        } else if (const auto* place = std::get_if<Place>(&each)) {
          bound.instructions.emplace_back(placing(*place));
        } else {
          bound.instructions.emplace_back(mix(*std::get_if<Mix>(&each)));
        }
      }
      binding_->steps.push_back(std::move(bound));
    }
    for (const int given : program_.given) {
      const auto [channels, frames, height, width] = program_.slot_shape(given);
      const std::string& name = program_.slots[static_cast<std::size_t>(given)];
      binding_->inputs.push_back(
          {{kGiven, name, DType::float32, {1, channels, frames, height, width}}, {slot(given)}, false});
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
    for (std::size_t number = 0; number < program_.slots.size(); ++number) place({static_cast<int>(number)});
  }

  // Numbers in a slot.
  std::size_t count(int number) const { return static_cast<std::size_t>(elements(program_.slot_shape(number))); }

  void place(const std::vector<int>& slots) {
    if (binding_->slots[static_cast<std::size_t>(slots.front())] != nullptr) return;
    const std::size_t size = count(slots.front());
    float* rows = allocate<float>(slots.size() * size * sizeof(float));
    for (std::size_t row = 0; row < slots.size(); ++row) slot(slots[row]) = rows + row * size;
  }

  float*& slot(int number) { return binding_->slots[static_cast<std::size_t>(number)]; }

  BoundMix mix(const Mix& mix) {
    BoundMix bound{slot(mix.out), count(mix.out), {}};
    for (const auto& [factor, from] : mix.terms) bound.terms.emplace_back(factor, slot(from));
    return bound;
  }

  BoundPlace placing(const Place& place) {
    const auto& frames = program_.partial.at(place.source);
    const auto [channels, total, height, width] = program_.latent_shape;
    const auto frame = static_cast<std::size_t>(height * width);
    BoundPlace bound{
        {}, static_cast<std::size_t>(total) * frame, frames.size() * frame, static_cast<std::size_t>(channels)};
    for (std::size_t first = 0, next = 0; first < frames.size(); first = next) {
      for (next = first + 1; next < frames.size() && frames[next] == frames[next - 1] + 1;) ++next;
      bound.stretches.push_back({slot(place.out) + static_cast<std::size_t>(frames[first]) * frame,
                                 slot(place.source) + first * frame, (next - first) * frame});
    }
    return bound;
  }

  BoundCall call(const Run& run, const Step& step, int number) {
    const GraphSpec& spec = manifest_.models.at(run.model).spec;
    const auto batch = static_cast<std::int64_t>(run.branches.size());
    const auto& sources = program_.engines.at(run.model);
    std::vector<BoundTensor> tensors;
    for (std::size_t index = 0; index < spec.inputs.size(); ++index) {
      const TensorSpec& input = spec.inputs[index];
      const InputBinding& from = sources[index];
      void* data = from.source == Source::latents    ? slot(0)
                   : from.source == Source::timestep ? timestep(step, input, run.branches.size())
                                                     : condition(run, input, from.key);
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
  float* timestep(const Step& step, const TensorSpec& spec, std::size_t batch) {
    std::vector<float> told(step.frame_timesteps);
    const std::int64_t count = spec.shape.size() == 1 ? 1 : program_.latent_shape[1];
    if (told.empty()) told.assign(static_cast<std::size_t>(count), step.timestep);
    float*& known = timesteps_[{told, batch}];
    if (known == nullptr) {
      std::vector<float> values;
      for (std::size_t row = 0; row < batch; ++row) values.insert(values.end(), told.begin(), told.end());
      known = allocate<float>(values.size() * sizeof(float));
      device_.copy(known, values.data(), values.size() * sizeof(float));
    }
    return known;
  }

  // Memory for a condition of a call: the branches' own rows one after the other, or what they share.
  void* condition(const Run& run, const TensorSpec& spec, const std::string& key) {
    const Shape shape = resolve(spec, 1, program_.latent_shape);
    const std::size_t bytes = bytes_of(shape, spec.dtype);
    void*& known = conditions_[{run.branches, key}];
    const bool made = known == nullptr;
    if (made) known = allocate<void>(bytes * (spec.batched() ? run.branches.size() : 1));
    for (std::size_t row = 0; row < run.branches.size(); ++row) {
      BoundInput& bound = input(run.branches[row], key, spec, shape);
      if (made && (row == 0 || spec.batched())) bound.places.push_back(static_cast<char*>(known) + row * bytes);
    }
    return known;
  }

  BoundInput& input(const std::string& branch, const std::string& key, const TensorSpec& spec, const Shape& shape) {
    auto& inputs = binding_->inputs;
    auto found = std::find_if(inputs.begin(), inputs.end(), [&](const BoundInput& each) {
      return each.info.branch == branch && each.info.name == key;
    });
    if (found == inputs.end()) {
      inputs.push_back({{branch, key, spec.dtype, shape}, {}, false});
      return inputs.back();
    }
    if (found->info.dtype != spec.dtype || found->info.shape != shape) {
      fail(Code::bad_file, "The engines ask for the input ", key, " as ", brackets(found->info.shape), " and as ",
           brackets(shape), ", but both get the same; build the bundle again.");
    }
    return *found;
  }

  const Program& program_;
  const Manifest& manifest_;
  const Engines& engines_;
  DeviceMemory& device_;
  std::unique_ptr<Binding> binding_;
  std::map<std::pair<std::vector<float>, std::size_t>, float*> timesteps_;
  std::map<std::pair<std::vector<std::string>, std::string>, void*> conditions_;
};

}  // namespace

void enqueue(BoundInstruction& instruction, const Binding& binding, DeviceMemory& device) {
  if (auto* call = std::get_if<BoundCall>(&instruction)) {
    for (float* copy : call->copies) device.copy(copy, binding.slots[0], binding.count * sizeof(float));
    call->call->enqueue();
  } else if (const auto* mix = std::get_if<BoundMix>(&instruction)) {
    device.mix(mix->out, mix->count, mix->terms);
  } else if (const auto* rescale = std::get_if<BoundRescale>(&instruction)) {
    device.rescale(rescale->out, rescale->reference, rescale->count, rescale->share);
  } else {
    const auto& place = *std::get_if<BoundPlace>(&instruction);
    for (const auto& [out, source, count] : place.stretches) {
      device.copy_rows(out, place.out_pitch * sizeof(float), source, place.source_pitch * sizeof(float),
                       count * sizeof(float), place.channels);
    }
  }
}

void copy_result(const Binding& binding, float* latents, DeviceMemory& device) {
  const auto channels = static_cast<std::size_t>(binding.latent_shape[0]);
  const std::size_t all = binding.count / channels;
  const std::size_t own = static_cast<std::size_t>(elements(binding.result_shape)) / channels;
  device.copy_rows(latents, own * sizeof(float), binding.slots[0] + (all - own), all * sizeof(float),
                   own * sizeof(float), channels);
}

std::unique_ptr<Binding> bind_program(const Program& program, const Manifest& manifest, const Engines& engines,
                                      DeviceMemory& device) {
  return Binder(program, manifest, engines, device).bind();
}

}  // namespace flowblending::detail
