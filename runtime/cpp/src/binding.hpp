// A program bound to engines and memory: every slot, input and call, each made once.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine.hpp"

namespace flowblending::detail {

// An engine call: the latents are copied to each of `copies`, then the engine runs.
struct BoundCall {
  std::string model;
  int step;  // counted from 1, for messages
  std::vector<float*> copies;
  std::unique_ptr<Call> call;
  float* velocity;
  std::size_t count;
};

struct BoundMix {
  float* out;
  std::size_t count;
  std::vector<std::pair<float, const float*>> terms;
};

struct BoundRescale {
  float* out;
  const float* reference;
  std::size_t count;
  double share;
};

// Latent frames [C, F, H, W] of which each channel's are copied as they lie side by side.
struct BoundPlace {
  struct Stretch {
    float* out;
    const float* source;
    std::size_t count;  // numbers in a channel
  };
  std::vector<Stretch> stretches;
  std::size_t out_pitch, source_pitch;  // numbers from a channel to the next
  std::size_t channels;
};

using BoundInstruction = std::variant<BoundCall, BoundMix, BoundRescale, BoundPlace>;

struct BoundStep {
  std::string model;
  std::vector<BoundInstruction> instructions;
  std::unique_ptr<Mark> stop;
};

// A condition of one branch, or a slot that is given: where set_input copies it to.
struct BoundInput {
  InputInfo info;
  std::vector<void*> places;
  bool given = false;
};

using Engines = std::map<std::string, std::unique_ptr<Engine>>;

// Its members are destroyed last to first: calls before the memory that they use.
struct Binding {
  LatentShape latent_shape{};  // the program's, of every slot that holds all latent frames
  std::size_t count = 0;       // numbers in such a slot
  LatentShape result_shape{};  // without the latent frames before the video's own
  std::vector<Memory> memory;
  std::vector<float*> slots;  // the first is the latents'
  std::vector<BoundInput> inputs;
  std::vector<InputInfo> infos;
  std::vector<BoundStep> steps;
};

// A tensor's sizes in a call on so many rows.
Shape resolve(const TensorSpec& spec, std::int64_t batch, const LatentShape& latents);

// Enqueues one instruction of a binding.
void enqueue(BoundInstruction& instruction, const Binding& binding, DeviceMemory& device);

// Copies the result out of the latents' slot.
void copy_result(const Binding& binding, float* latents, DeviceMemory& device);

// Whether a program was written for this bundle, with the engines that it has.
void check_program(const Program& program, const Manifest& manifest, const std::string& where);

// Allocates and binds everything that running a checked program takes.
std::unique_ptr<Binding> bind_program(const Program& program, const Manifest& manifest, const Engines& engines,
                                      DeviceMemory& device);

}  // namespace flowblending::detail
