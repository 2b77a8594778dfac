// Reads mutated manifests and programs: fuzz BUNDLE PROGRAM COUNT SEED
//
// Every file is either refused with a message or accepted; what is accepted and small is run. A crash, or an error that
// a sanitizer finds, ends the program. A document is changed as bytes (flipped, removed, doubled), and as JSON (values
// and members replaced by others, by strange ones, or removed), so that the later checks are reached as well.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "binding.hpp"
#include "failure.hpp"

namespace fb = flowblending;
using namespace fb::detail;
using Random = std::mt19937;

static std::size_t below(Random& random, std::size_t count) { return random() % count; }

// A text, and the places of all its JSON values and members, each as first and end.
struct Original {
  using Place = std::pair<std::size_t, std::size_t>;

  explicit Original(std::string content) : text(std::move(content)) {
    std::size_t at = 0;
    value(at);
  }

  std::string text;
  std::vector<Place> values;
  std::vector<Place> members;  // with the comma that follows or precedes

 private:
  void skip(std::size_t& at) const {
    while (at < text.size() && std::string(" \n\t\r").find(text[at]) != std::string::npos) ++at;
  }

  void value(std::size_t& at) {
    skip(at);
    const std::size_t start = at;
    if (text[at] == '{' || text[at] == '[') {
      list(at, text[at] == '{');
    } else if (text[at] == '"') {
      for (++at; text[at] != '"'; ++at) at += text[at] == '\\';
      ++at;
    } else {
      at = text.find_first_of(",]} \n\t\r", at);
    }
    values.emplace_back(start, at);
  }

  void list(std::size_t& at, bool object) {
    skip(++at);
    std::size_t comma = 0;
    while (text[at] != '}' && text[at] != ']') {
      std::size_t start = at;
      if (object) {
        value(at);
        values.pop_back();  // a key
        at = text.find(':', at) + 1;
      }
      value(at);
      skip(at);
      if (text[at] == ',') {
        skip(++at);
      } else if (comma != 0) {
        start = comma;  // the last member goes with the comma before it
      }
      members.emplace_back(start, at);
      comma = text.rfind(',', at);
    }
    ++at;
  }
};

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

static void mutate_json(const Original& source, std::string& text, Random& random) {
  // From the end on, so that the places before stay right.
  std::map<Original::Place, std::string, std::greater<Original::Place>> changes;
  for (std::size_t times = 1 + below(random, 3); times-- > 0;) {
    const Original::Place value = source.values[below(random, source.values.size())];
    const Original::Place other = source.values[below(random, source.values.size())];
    switch (below(random, 4)) {
      case 0: changes[source.members[below(random, source.members.size())]] = ""; break;
      case 1: changes[value] = source.text.substr(other.first, other.second - other.first); break;
      default: changes[value] = strange(random); break;
    }
  }
  std::size_t limit = text.size();
  for (const auto& [place, with] : changes) {
    if (place.second > limit) continue;
    text.replace(place.first, place.second - place.first, with);
    limit = place.first;
  }
}

static std::string mutate(const Original& source, Random& random) {
  std::string text = source.text;
  if (below(random, 5) == 0) {
    mutate_bytes(text, random);
  } else {
    mutate_json(source, text, random);
  }
  return text;
}

static bool small(const Manifest& manifest, const Program& program) {
  std::size_t inputs = 0;
  for (const auto& [name, model] : manifest.models) {
    for (const TensorSpec& input : model.spec.inputs) {
      double size = 1;
      for (const Dim& dim : input.shape) {
        const auto* number = std::get_if<std::int64_t>(&dim);
        size *= number == nullptr ? 64.0 : static_cast<double>(*number);
      }
      if (size > 1e5) return false;
      ++inputs;
    }
  }
  return elements(manifest.latent_shape) < 10000 && program.slots.size() < 100 && program.steps.size() < 100 &&
         inputs < 100;
}

static void run(const Manifest& manifest, const Program& program) {
  const auto device = open_host();
  Engines engines;
  for (const auto& [model, unused] : program.engines) {
    engines[model] = open_engine(manifest, manifest.models.at(model), *device, 1);
  }
  const auto binding = bind_program(program, manifest, engines, *device);
  for (const BoundInput& input : binding->inputs) {
    auto bytes = static_cast<std::size_t>(fb::size_of(input.info.dtype));
    for (const auto size : input.info.shape) bytes *= static_cast<std::size_t>(size);
    const std::vector<unsigned char> zeros(bytes);
    for (void* place : input.places) device->copy(place, zeros.data(), bytes);
  }
  const auto count = static_cast<std::size_t>(elements(manifest.latent_shape));
  const std::vector<float> noise(count, 1.0f);
  device->copy(binding->slots[0], noise.data(), count * sizeof(float));
  for (BoundStep& step : binding->steps) {
    for (auto& each : step.instructions) {
      if (auto* call = std::get_if<BoundCall>(&each)) {
        for (float* copy : call->copies) device->copy(copy, binding->slots[0], count * sizeof(float));
        call->call->enqueue();
        device->look(call->velocity, call->count, 0);
      } else {
        device->mix(std::get_if<BoundMix>(&each)->out, count, std::get_if<BoundMix>(&each)->terms);
      }
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
    ++outcomes[status.ok() ? "accepted" : text ? "refused as text" : "refused by a check"];
  }
  for (const auto& [outcome, times] : outcomes) std::printf("%s %ld\n", outcome.c_str(), times);
  return 0;
}
