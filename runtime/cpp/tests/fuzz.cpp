// Reads mutated manifests and programs: fuzz BUNDLE PROGRAM COUNT SEED
//
// Every file is either refused with a message or accepted; what is accepted and small is run. A crash, or an error that
// a sanitizer finds, ends the program. A document is changed as bytes (flipped, removed, doubled), as JSON (values and
// members replaced by others, by strange ones, or removed), and in its sizes of videos (replaced by other likely ones),
// so that the later checks are reached as well.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "binding.hpp"
#include "failure.hpp"
#include "json_places.hpp"
#include "profiles.hpp"

namespace fb = flowblending;
using namespace fb::detail;
using Random = std::mt19937;

static std::size_t below(Random& random, std::size_t count) { return random() % count; }

static void mutate_bytes(std::string& text, Random& random) {
  for (std::size_t times = 1 + below(random, 4); times-- > 0 && !text.empty();) {
    const std::size_t place = below(random, text.size());
    const std::size_t length = std::min(text.size() - place, 1 + below(random, 64));
    switch (below(random, 5)) {
      case 0: text[place] = static_cast<char>(random()); break;
      case 1: text[place] = "0123456789-.eE\"[]{},:"[below(random, 21)]; break;
      case 2: text.erase(place, length); break;
      case 3: text.insert(place, text.substr(place, length)); break;
      default: text.resize(place); break;
    }
  }
}

static std::string strange(Random& random) {
  static const std::vector<std::string> values = {"null",
                                                  "true",
                                                  "-1",
                                                  "0",
                                                  "1",
                                                  "2",
                                                  "9223372036854775807",
                                                  "18446744073709551615",
                                                  "1e300",
                                                  "-1e-300",
                                                  "1e999",
                                                  "[]",
                                                  "[[[[[[]]]]]]",
                                                  "{}",
                                                  "\"\"",
                                                  "\"latents\"",
                                                  "\"batch\"",
                                                  "\"../../etc/passwd\"",
                                                  "\"\\u0000\"",
                                                  "\"\\ud800\""};
  return values[below(random, values.size())];
}

// From the end on, so that the places before stay right.
using Changes = std::map<Original::Place, std::string, std::greater<Original::Place>>;

static void change(std::string& text, const Changes& changes) {
  std::size_t limit = text.size();
  for (const auto& [place, with] : changes) {
    if (place.second > limit) continue;
    text.replace(place.first, place.second - place.first, with);
    limit = place.first;
  }
}

static void mutate_sizes(const Original& source, std::string& text, Random& random) {
  Changes changes;
  for (std::size_t times = 1 + below(random, 3); times-- > 0;) {
    changes[source.sizes[below(random, source.sizes.size())]] = std::to_string(1 + below(random, 10));
  }
  change(text, changes);
}

static void mutate_json(const Original& source, std::string& text, Random& random) {
  Changes changes;
  for (std::size_t times = 1 + below(random, 3); times-- > 0;) {
    const Original::Place value = source.values[below(random, source.values.size())];
    const Original::Place other = source.values[below(random, source.values.size())];
    switch (below(random, 4)) {
      case 0: changes[source.members[below(random, source.members.size())]] = ""; break;
      case 1: changes[value] = source.text.substr(other.first, other.second - other.first); break;
      default: changes[value] = strange(random); break;
    }
  }
  change(text, changes);
}

static std::string mutate(const Original& source, Random& random) {
  std::string text = source.text;
  switch (below(random, 5)) {
    case 0: mutate_bytes(text, random); break;
    case 1: mutate_sizes(source, text, random); break;
    default: mutate_json(source, text, random); break;
  }
  return text;
}

static bool small(const Manifest& manifest, const Program& program) {
  const auto& [channels, frames, height, width] = program.latent_shape;
  if (channels * frames * height * width >= 10000) return false;
  const std::map<std::string, std::int64_t> sizes = {
      {"batch", 16}, {"frames", frames}, {"height", height}, {"width", width}};
  std::size_t inputs = 0;
  for (const auto& [name, model] : manifest.models) {
    for (const TensorSpec& input : model.spec.inputs) {
      double size = 1;
      for (const Dim& dim : input.shape) {
        const auto* number = std::get_if<std::int64_t>(&dim);
        size *= static_cast<double>(number == nullptr ? sizes.at(*std::get_if<std::string>(&dim)) : *number);
      }
      if (size > 1e6) return false;
      ++inputs;
    }
  }
  return program.slots.size() < 100 && program.steps.size() < 100 && inputs < 100;
}

// Whatever the files say: the default size is one that the bundle makes, and so is what is told as the nearest.
static void check_sizes(const Manifest& manifest, const Program& program) {
  const Geometry near = nearest(manifest.profiles, program.latent_shape);
  const bool held = holds(manifest.profiles, program.latent_shape);
  if (!holds(manifest.profiles, manifest.latent_shape()) || !holds(manifest.profiles, near.latent_shape) ||
      held != (near.latent_shape == program.latent_shape) || std::min({near.width, near.height, near.frames}) < 1) {
    fail(fb::Code::failed, "The sizes contradict one another; report it.");
  }
}

static void run(const Manifest& manifest, const Program& program) {
  const auto device = open_host();
  Scratch scratch([&](std::size_t bytes) { return device->allocate(bytes); });
  Engines engines;
  for (const auto& [model, unused] : program.engines) {
    engines[model] = open_engine(manifest, manifest.models.at(model), *device, scratch, 1);
  }
  const auto binding = bind_program(program, manifest, engines, *device);
  for (const BoundInput& input : binding->inputs) {
    auto bytes = static_cast<std::size_t>(fb::size_of(input.info.dtype));
    for (const auto size : input.info.shape) bytes *= static_cast<std::size_t>(size);
    const std::vector<unsigned char> zeros(bytes);
    for (void* place : input.places) device->copy(place, zeros.data(), bytes);
  }
  const auto count = static_cast<std::size_t>(elements(program.latent_shape));
  const std::vector<float> noise(count, 1.0f);
  device->copy(binding->slots[0], noise.data(), count * sizeof(float));
  for (BoundStep& step : binding->steps) {
    for (auto& each : step.instructions) {
      enqueue(each, *binding, *device);
      if (const auto* call = std::get_if<BoundCall>(&each)) device->look(call->velocity, call->count, 0);
    }
  }
}

int main(int count, char** words) {
  if (count != 5) return 2;
  const std::string folder = words[1];
  const Original manifest_source(read_file(folder + "/manifest.json", 1 << 24));
  const Original program_source(read_file(words[2], 1 << 26));
  const long files = std::atol(words[3]);
  Random random(static_cast<Random::result_type>(std::atol(words[4])));
  std::map<std::string, long> outcomes;
  for (long file = 0; file < files; ++file) {
    // Mostly only one of the two, so that a mutation is not hidden behind another.
    const bool both = below(random, 8) == 0, first = both || below(random, 2) == 0;
    const std::string manifest_file = first ? mutate(manifest_source, random) : manifest_source.text;
    const std::string program_file = both || !first ? mutate(program_source, random) : program_source.text;
    const fb::Status status = guarded([&] {
      Manifest manifest = parse_manifest(manifest_file, "manifest.json");
      manifest.folder = folder;
      const Program program = parse_program(program_file, "program.json");
      check_sizes(manifest, program);
      check_program(program, manifest, "program.json");
      if (small(manifest, program)) run(manifest, program);
    });
    const std::string& message = status.message();
    const bool plain = status.ok() || (!message.empty() && message.back() == '.');
    if (!plain || message.find("report it") != std::string::npos) {
      std::fprintf(stderr, "not a plain refusal: %s\n%s\n%s\n", message.c_str(), manifest_file.c_str(),
                   program_file.c_str());
      return 1;
    }
    const bool text = message.find("is no valid JSON") != std::string::npos;
    const bool size = message.find("none of the bundle's profiles") != std::string::npos;
    ++outcomes[status.ok() ? "accepted"
               : text      ? "refused as text"
               : size      ? "refused for its size"
                           : "refused by a check"];
  }
  for (const auto& [outcome, times] : outcomes) std::printf("%s %ld\n", outcome.c_str(), times);
  return 0;
}
