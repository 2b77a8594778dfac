// Reading manifest.json and program files. Both come from disks that others write to: everything is checked here, so
// that no later code needs to doubt an index, a size or a name.
#include <limits>
#include <set>

#include "failure.hpp"
#include "node.hpp"
#include "profiles.hpp"
#include "spec.hpp"

namespace flowblending::detail {
namespace {

constexpr std::int64_t kManifestFormat = 4;
// Programs of format 1 had no rescaling, and are otherwise the same.
constexpr std::int64_t kProgramFormat = 2;
constexpr std::int64_t kLargestFile = std::int64_t{1} << 50;
constexpr std::size_t kMostBranches = 16;

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

std::vector<std::string> texts(const Node& node) {
  std::vector<std::string> found;
  node.each([&](const Node& each) { found.push_back(each.text()); });
  return found;
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

// The rows of one call have to lie side by side, so no slot may be wanted at two places.
class Places {
 public:
  void check(const std::vector<int>& out, const Node& node) {
    if (out.size() == 1) return;
    for (std::size_t row = 0; row < out.size(); ++row) {
      const auto place = std::make_pair(out, row);
      if (!places_.emplace(out[row], place).second && places_.at(out[row]) != place) {
        node.damaged("its slots cannot lie side by side, because one lies beside others already");
      }
    }
  }

 private:
  std::map<int, std::pair<std::vector<int>, std::size_t>> places_;
};

class Instructions {
 public:
  Instructions(const Program& program, const Node& slots) : program_(program) {
    for (std::size_t index = 0; index < program.slots.size(); ++index) {
      if (!numbers_.emplace(program.slots[index], static_cast<int>(index)).second)
        slots[index].damaged("it occurs twice");
    }
    written_.insert(0);
  }

  Instruction read(const Node& node) {
    if (node.has("terms")) return mix(node);
    if (node.has("share")) return rescale(node);
    if (node.has("branches")) return run(node);
    node.damaged("a run, a mix or a rescaling was expected; a newer version may know others");
  }

 private:
  int slot(const Node& node) const {
    const auto found = numbers_.find(node.text());
    if (found == numbers_.end()) node.damaged("the slot is not in the list of slots");
    return found->second;
  }

  Run run(const Node& node) {
    Run run;
    const Node model = node.at("model");
    run.model = model.text();
    if (program_.engines.count(run.model) == 0) model.damaged("the model is not in the list of engines");
    run.branches = texts(node.at("branches"));
    const Node out = node.at("out");
    out.each([&](const Node& each) { run.out.push_back(slot(each)); });
    const std::size_t count = run.branches.size();
    if (count == 0 || count > kMostBranches || run.out.size() != count ||
        std::set<std::string>(run.branches.begin(), run.branches.end()).size() != count ||
        std::set<int>(run.out.begin(), run.out.end()).size() != count) {
      node.damaged("different branches, and a different slot for each were expected");
    }
    if (std::set<int>(run.out.begin(), run.out.end()).count(0) != 0) out.damaged("a run may not write to latents");
    places_.check(run.out, out);
    written_.insert(run.out.begin(), run.out.end());
    return run;
  }

  Mix mix(const Node& node) {
    Mix mix;
    const Node out = node.at("out");
    mix.out = slot(out);
    std::set<int> seen;
    const Node terms = node.at("terms");
    terms.each([&](const Node& term) {
      if (term.size() != 2) term.damaged("a coefficient and a slot were expected");
      const int from = slot(term[1]);
      if (written_.count(from) == 0) term.damaged("the slot is read before anything was written to it");
      if (!seen.insert(from).second) term.damaged("a slot may occur once");
      if (from == mix.out && !mix.terms.empty()) term.damaged("the slot that is written has to come first");
      mix.terms.emplace_back(term[0].single(), from);
    });
    if (mix.terms.empty()) terms.damaged("at least one term was expected");
    written_.insert(mix.out);
    return mix;
  }

  Rescale rescale(const Node& node) {
    const Node out = node.at("out"), reference = node.at("reference"), share = node.at("share");
    Rescale rescale{slot(out), slot(reference), share.number()};
    for (const auto& [number, where] : {std::make_pair(rescale.out, &out), std::make_pair(rescale.reference, &reference)}) {
      if (written_.count(number) == 0) where->damaged("the slot is read before anything was written to it");
    }
    if (rescale.out == rescale.reference) reference.damaged("another slot than the one that is written was expected");
    if (!(rescale.share > 0 && rescale.share <= 1)) share.damaged("a number above 0 and at most 1 was expected");
    return rescale;
  }

  const Program& program_;
  std::map<std::string, int> numbers_;
  std::set<int> written_;
  Places places_;
};

std::vector<std::pair<TensorSpec, Source>> bindings(const Node& engine) {
  const Node output = engine.at("output");
  if (output.text() != "velocity") output.damaged("the output velocity was expected");
  std::vector<std::pair<TensorSpec, Source>> inputs;
  const Node node = engine.at("inputs");
  node.each([&](const Node& each) {
    const Node source = each.at("source");
    const auto found = kSources.find(source.text());
    if (found == kSources.end()) source.damaged("one of latents, timestep and condition was expected");
    inputs.emplace_back(tensor(each), found->second);
    const TensorSpec& spec = inputs.back().first;
    // Back ends know the two by name, too.
    if ((found->second == Source::latents) != (spec.name == "latents") ||
        (found->second == Source::timestep) != (spec.name == "timestep")) {
      each.damaged("latents and timestep come from the source of their name, and nothing else does");
    }
  });
  return inputs;
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
  read_format(root, kProgramFormat, where);
  Program program;
  program.bundle = root.at("bundle").text();
  program.latent_shape = read_latent_shape(root.at("latent_shape"));
  const Node slots = root.at("slots");
  program.slots = texts(slots);
  if (program.slots.empty() || program.slots.front() != "latents") slots.damaged("the slot latents was expected first");
  root.at("engines").members(
      [&](const std::string& name, const Node& node) { program.engines.emplace(name, bindings(node)); });
  Instructions instructions(program, slots);
  root.at("steps").each([&](const Node& node) {
    Step step;
    step.model = node.at("model").text();
    step.timestep = node.at("timestep").single();
    node.at("instructions").each([&](const Node& each) { step.instructions.push_back(instructions.read(each)); });
    program.steps.push_back(std::move(step));
  });
  return program;
}

}  // namespace flowblending::detail
