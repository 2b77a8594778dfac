// Reading manifest.json and program files. Both come from disks that others write to: everything is checked here, so
// that no later code needs to doubt an index, a size or a name.
#include <algorithm>
#include <limits>
#include <set>

#include "failure.hpp"
#include "instructions.hpp"
#include "node.hpp"
#include "profiles.hpp"
#include "spec.hpp"

namespace flowblending::detail {
namespace {

constexpr std::int64_t kManifestFormat = 4;
// Programs of format 1 had no rescaling, and those of format 2 held no latents.
constexpr std::int64_t kProgramFormat = 3;
constexpr std::int64_t kLargestFile = std::int64_t{1} << 50;

const std::map<std::string, DType> kTypes = {
    {"float32", DType::float32}, {"float16", DType::float16}, {"int64", DType::int64}, {"int32", DType::int32}};
const std::map<std::string, Source> kSources = {
    {"latents", Source::latents}, {"timestep", Source::timestep}, {"condition", Source::condition}};
const std::set<std::string> kSymbols = {"batch", "frames", "height", "width"};

std::int64_t read_format(const Node& root, std::int64_t latest, const std::string& where) {
  const std::int64_t found = root.at("format").integer(1, std::numeric_limits<std::int64_t>::max());
  if (found > latest) {
    fail(Code::bad_file, where, " has format ", found, ", but this library reads formats up to ", latest,
         "; build a later version of it, or write the file again with the FlowBlending that this one came with.");
  }
  return found;
}

Dim dim(const Node& node) {
  if (node.is_integer()) return node.integer(1, kLargestSize);
  const std::string& symbol = node.text();
  if (kSymbols.count(symbol) == 0) node.damaged("a size, or one of batch, frames, height and width was expected");
  return symbol;
}

TensorSpec tensor(const Node& node) {
  TensorSpec spec;
  spec.name = node.at("name").text();
  const Node type = node.at("dtype");
  const auto found = kTypes.find(type.text());
  if (found == kTypes.end()) type.damaged("one of float32, float16, int64 and int32 was expected");
  spec.dtype = found->second;
  const Node shape = node.at("shape");
  if (shape.size() > 8) shape.damaged("at most eight dimensions were expected");
  std::int64_t product = 1;
  shape.each([&](const Node& each) {
    spec.shape.push_back(dim(each));
    if (const auto* size = std::get_if<std::int64_t>(&spec.shape.back())) {
      if (*size > kMostElements / product) shape.damaged("the sizes are too large");
      product *= *size;
    }
  });
  return spec;
}

// A word as a shell takes it, whatever it holds.
std::string quoted(const std::string& word) {
  const char* const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string text = "'";
  for (const char letter : word) text += letter == '\'' ? std::string("'\"'\"'") : std::string(1, letter);
  return text + "'";
}

// A file of the bundle; never one outside it.
File file(const Node& node) {
  File found;
  const Node path = node.at("path");
  found.path = path.text();
  const std::string framed = "/" + found.path + "/";
  if (found.path.empty() || framed.find("/../") != std::string::npos || framed.find("//") != std::string::npos) {
    path.damaged("a path inside the bundle was expected");
  }
  found.bytes = node.at("bytes").integer(0, kLargestFile);
  found.sha256 = node.at("sha256").text();
  return found;
}

Component component(const Node& node) {
  Component found;
  const Node spec = node.at("spec");
  found.spec.name = spec.at("name").text();
  found.spec.precision = spec.at("precision").text();
  spec.at("inputs").each([&](const Node& each) { found.spec.inputs.push_back(tensor(each)); });
  spec.at("outputs").each([&](const Node& each) { found.spec.outputs.push_back(tensor(each)); });
  found.backend = node.at("backend").text();
  if (node.has("targets")) found.targets = texts(node.at("targets"));
  const Node files = node.at("files");
  files.each([&](const Node& each) { found.files.push_back(file(each)); });
  if (found.files.empty()) files.damaged("at least one file was expected");
  return found;
}

std::vector<InputBinding> bindings(const Node& engine, std::int64_t format) {
  const Node output = engine.at("output");
  if (output.text() != "velocity") output.damaged("the output velocity was expected");
  std::vector<InputBinding> inputs;
  const Node node = engine.at("inputs");
  node.each([&](const Node& each) {
    const Node source = each.at("source");
    const auto found = kSources.find(source.text());
    if (found == kSources.end()) source.damaged("one of latents, timestep and condition was expected");
    TensorSpec spec = tensor(each);
    const std::string key = format < 3 ? spec.name : each.at("key").text();
    // Back ends know the two by name, too.
    if ((found->second == Source::latents) != (spec.name == "latents") ||
        (found->second == Source::timestep) != (spec.name == "timestep")) {
      each.damaged("latents and timestep come from the source of their name, and nothing else does");
    }
    inputs.push_back({std::move(spec), found->second, key});
  });
  return inputs;
}

// What programs say since the third format of latents that are held.
void read_held(const Node& root, Program& program) {
  const std::int64_t frames = program.latent_shape[1];
  program.extra = root.at("extra").integer(0, frames - 1);
  const auto slot = [&](const Node& where, const std::string& name) {
    const auto found = std::find(program.slots.begin() + 1, program.slots.end(), name);
    if (found == program.slots.end()) where.damaged("another slot of the list than latents was expected");
    return static_cast<int>(found - program.slots.begin());
  };
  root.at("partial").members([&](const std::string& name, const Node& node) {
    std::vector<std::int64_t> held;
    node.each([&](const Node& each) { held.push_back(each.integer(held.empty() ? 0 : held.back() + 1, frames - 1)); });
    if (held.empty()) node.damaged("at least one latent frame was expected");
    program.partial[slot(node, name)] = std::move(held);
  });
  root.at("given").each([&](const Node& each) {
    const int number = slot(each, each.text());
    if (program.partial.count(number) == 0) each.damaged("a slot of some latent frames was expected");
    program.given.insert(number);
  });
}

// The components that models run: one each, or two experts. Before the third format there were two models.
std::set<std::string> engines_of(const Node& models) {
  std::set<std::string> engines;
  models.each([&](const Node& model) {
    for (const std::string& name : texts(model.at("components"))) engines.insert(name);
  });
  return engines;
}

}  // namespace

std::int64_t elements(const LatentShape& latent_shape) {
  return latent_shape[0] * latent_shape[1] * latent_shape[2] * latent_shape[3];
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  const Document document(text, where);
  const Node root = document.root();
  const std::int64_t format = read_format(root, kManifestFormat, where);
  Manifest manifest;
  manifest.id = root.at("id").text();
  // A bundle of the first format makes one video.
  manifest.profiles = format == 1 ? one_profile(root.at("geometry")) : read_profiles(root.at("profiles"));
  const std::set<std::string> engines =
      format < 3 ? std::set<std::string>{"large", "small"} : engines_of(root.at("models"));
  root.at("components").members([&](const std::string& name, const Node& node) {
    node.at("files").each([&](const Node& each) { manifest.files.push_back(file(each)); });
    if (engines.count(name) != 0) manifest.models.emplace(name, component(node));
  });
  root.at("tokenizer").each([&](const Node& each) { manifest.files.push_back(file(each)); });
  root.at("rebuild").each(
      [&](const Node& each) { manifest.rebuild += (manifest.rebuild.empty() ? "" : " ") + quoted(each.text()); });
  return manifest;
}

Program parse_program(const std::string& text, const std::string& where) {
  const Document document(text, where);
  const Node root = document.root();
  const std::int64_t format = read_format(root, kProgramFormat, where);
  Program program;
  program.bundle = root.at("bundle").text();
  program.latent_shape = read_latent_shape(root.at("latent_shape"));
  const Node slots = root.at("slots");
  program.slots = texts(slots);
  if (program.slots.empty() || program.slots.front() != "latents") slots.damaged("the slot latents was expected first");
  root.at("engines").members(
      [&](const std::string& name, const Node& node) { program.engines.emplace(name, bindings(node, format)); });
  if (format >= 3) read_held(root, program);
  Instructions instructions(program, slots);
  root.at("steps").each([&](const Node& node) {
    Step step;
    step.model = node.at("model").text();
    step.timestep = node.at("timestep").single();
    if (node.has("frame_timesteps")) {
      const Node each_frame = node.at("frame_timesteps");
      each_frame.each([&](const Node& each) { step.frame_timesteps.push_back(each.single()); });
      if (step.frame_timesteps.size() != static_cast<std::size_t>(program.latent_shape[1]))
        each_frame.damaged("a timestep for every latent frame was expected");
    }
    node.at("instructions").each([&](const Node& each) { step.instructions.push_back(instructions.read(each)); });
    program.steps.push_back(std::move(step));
  });
  return program;
}

}  // namespace flowblending::detail
