// Runs a golden case and compares every slot after every instruction: golden BUNDLE CASE
//
// The sampler shows slots to nobody, so this goes to the parts that it is made of; what Sampler::sample returns is
// compared with the last state as well.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "binding.hpp"
#include "failure.hpp"
#include "flowblending/files.hpp"
#include "node.hpp"

namespace fb = flowblending;
using namespace fb::detail;

static void check(const fb::Status& status) {
  if (!status.ok()) throw Failure(status.code(), status.message());
}

template <typename T>
static T take(fb::Result<T> result) {
  check(result.status());
  return std::move(*result);
}

// The largest difference as a share of the largest value; NaN in `expected` means that nothing was written yet.
static double difference(const float* found, const float* expected, std::size_t count) {
  double error = 0, largest = 0;
  if (std::isnan(expected[0])) return 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(found[i])) return HUGE_VAL;
    error = std::max(error, std::fabs(static_cast<double>(found[i]) - static_cast<double>(expected[i])));
    largest = std::max(largest, std::fabs(static_cast<double>(expected[i])));
  }
  return error / largest;
}

static double compare(const std::string& bundle_path, const std::string& folder) {
  const Document document(read_file(folder + "/golden.json", 1 << 20), folder + "/golden.json");
  const Node golden = document.root();
  const auto path = [&](const Node& name) { return folder + "/" + name.text(); };
  const fb::Array noise = take(fb::read_npy(path(golden.at("latents"))));
  const fb::Array trace = take(fb::read_npy(path(golden.at("trace"))));
  const std::string program_path = path(golden.at("program"));
  const double tolerance = static_cast<double>(golden.at("tolerance").single());
  const auto count = static_cast<std::size_t>(noise.bytes.size() / sizeof(float));

  const Manifest manifest = open_bundle(bundle_path, fb::Verify::checksums);
  const Program program = parse_program(read_file(program_path, 1 << 26), program_path);
  check_program(program, manifest, folder);
  const auto device = open_host();
  Scratch scratch([&](std::size_t bytes) { return device->allocate(bytes); });
  Engines engines;
  for (const auto& [model, unused] : program.engines) {
    engines[model] = open_engine(manifest, manifest.models.at(model), *device, scratch, 0);
  }
  const auto binding = bind_program(program, manifest, engines, *device);
  fb::Sampler sampler = take(fb::Sampler::create(take(fb::Bundle::open(bundle_path))));
  check(sampler.load(program_path));
  for (BoundInput& input : binding->inputs) {
    const char* branch = input.info.branch.c_str();
    const Node listed = input.info.branch == kGiven ? golden.at(kGiven) : golden.at("conditions").at(branch);
    const fb::Array array = take(fb::read_npy(path(listed.at(input.info.name.c_str()))));
    for (void* place : input.places) device->copy(place, array.bytes.data(), array.bytes.size());
    check(sampler.set_input(input.info.branch, input.info.name, array.view()));
  }

  device->copy(binding->slots[0], noise.bytes.data(), noise.bytes.size());
  const std::size_t slots = program.slots.size();
  const float* expected = trace.floats();
  double worst = 0;
  std::size_t instructions = 0;
  for (BoundStep& step : binding->steps) {
    for (auto& each : step.instructions) {
      enqueue(each, *binding, *device);
      if (++instructions * slots * count * sizeof(float) > trace.bytes.size())
        fail(fb::Code::bad_file, "The trace is too short.");
      for (std::size_t slot = 0; slot < slots; ++slot, expected += count) {
        // Of a slot of some latent frames alone, the numbers come first.
        const auto size = static_cast<std::size_t>(elements(program.slot_shape(static_cast<int>(slot))));
        const double error = difference(binding->slots[slot], expected, size);
        if (!(error <= tolerance)) {
          fail(fb::Code::failed, "Slot ", program.slots[slot], " differs by ", error, " after instruction ",
               instructions);
        }
        worst = std::max(worst, error);
      }
    }
  }
  if (instructions * slots * count * sizeof(float) != trace.bytes.size())
    fail(fb::Code::bad_file, "The trace is too long.");
  const auto shape = sampler.result_shape();
  const auto own = static_cast<std::size_t>(elements(shape)), channels = static_cast<std::size_t>(shape[0]);
  std::vector<float> latents(own), last;
  for (std::size_t channel = 1; channel <= channels; ++channel) {
    const float* end = expected - slots * count + channel * (count / channels);
    last.insert(last.end(), end - own / channels, end);
  }
  check(sampler.sample(noise.floats(), latents.data()));
  const double error = difference(latents.data(), last.data(), own);
  if (!(error <= tolerance)) fail(fb::Code::failed, "The result differs by ", error);
  std::printf("%zu instructions, %zu slots, largest difference %.2e\n", instructions, slots, std::max(worst, error));
  return worst;
}

int main(int count, char** words) {
  if (count != 3) return 2;
  const fb::Status status = guarded([&] { compare(words[1], words[2]); });
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return static_cast<int>(status.code());
}
