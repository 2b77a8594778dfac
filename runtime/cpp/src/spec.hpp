// What the files say, as plain data: engines, bundles and programs.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "flowblending/flowblending.hpp"

namespace flowblending::detail {

using Shape = std::vector<std::int64_t>;

// [C, F, H, W]
using LatentShape = std::array<std::int64_t, 4>;

// Most that a file may say: of one size, and of numbers in a tensor.
constexpr std::int64_t kLargestSize = 1 << 20;
constexpr std::int64_t kMostElements = std::int64_t{1} << 40;

// What stands in the place of a branch where a slot is given.
constexpr const char* kGiven = "given";

// A size, or one of the symbols batch, frames, height, width.
using Dim = std::variant<std::int64_t, std::string>;

struct TensorSpec {
  std::string name;
  DType dtype = DType::float32;
  std::vector<Dim> shape;

  // Whether a call on several rows takes this tensor's rows one after the other; if not, all rows share it.
  bool batched() const { return !shape.empty() && shape.front() == Dim(std::string("batch")); }
};

inline bool operator==(const TensorSpec& a, const TensorSpec& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape;
}

struct GraphSpec {
  std::string name;
  std::string precision;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

struct File {
  std::string path;
  std::int64_t bytes = 0;
  std::string sha256;
};

struct Component {
  GraphSpec spec;
  std::string backend;
  std::vector<std::string> targets;
  std::vector<File> files;
};

// A size of videos: in pixels, frames, and latents.
struct Geometry {
  std::int64_t width = 0;
  std::int64_t height = 0;
  std::int64_t frames = 0;
  LatentShape latent_shape{};
};

// Sizes that a bundle makes: every one from `min` to `max`. `opt` is what its engines were tuned for.
struct Profile {
  Geometry min, opt, max;
};

// manifest.json, as much of it as sampling needs. `models` are the components that a program can run.
struct Manifest {
  std::string folder;
  std::string id;
  std::vector<Profile> profiles;  // never empty
  std::map<std::string, Component> models;
  std::vector<File> files;
  std::string rebuild;

  // Of a video whose size nobody asked for.
  const LatentShape& latent_shape() const { return profiles.front().opt.latent_shape; }
};

struct Run {
  std::string model;
  std::vector<std::string> branches;
  std::vector<int> out;  // a slot per branch, neighbours in memory
};

struct Mix {
  int out = 0;
  std::vector<std::pair<float, int>> terms;
};

// out *= share * std(reference) / std(out) + 1 - share
struct Rescale {
  int out = 0;
  int reference = 0;
  double share = 0;
};

// out becomes source in the latent frames that source has
struct Place {
  int out = 0;
  int source = 0;
};

using Instruction = std::variant<Run, Mix, Rescale, Place>;

struct Step {
  std::string model;
  float timestep = 0;
  std::vector<float> frame_timesteps;  // of every latent frame; empty where one counts for all
  std::vector<Instruction> instructions;
};

enum class Source { latents, timestep, condition };

// Where an input comes from; a condition is given under the name `key`.
struct InputBinding {
  TensorSpec spec;
  Source source = Source::condition;
  std::string key;
};

struct Program {
  std::string bundle;
  LatentShape latent_shape{};
  std::vector<std::string> slots;  // the first is `latents`
  // The latent frames of slots that hold some alone, rising; by slot, and others are not here.
  std::map<int, std::vector<std::int64_t>> partial;
  std::set<int> given;     // slots that are filled before the first step
  std::int64_t extra = 0;  // latent frames before the video's own
  std::map<std::string, std::vector<InputBinding>> engines;
  std::vector<Step> steps;

  // [C, F, H, W] of a slot.
  LatentShape slot_shape(int slot) const {
    const auto found = partial.find(slot);
    LatentShape shape = latent_shape;
    if (found != partial.end()) shape[1] = static_cast<std::int64_t>(found->second.size());
    return shape;
  }
  // [C, F, H, W] of the video's own latents.
  LatentShape result_shape() const {
    return {latent_shape[0], latent_shape[1] - extra, latent_shape[2], latent_shape[3]};
  }
};

// Numbers in a slot.
std::int64_t elements(const LatentShape& latent_shape);

// Reads the text of manifest.json, and program files. `where` is the file's name in messages.
Manifest parse_manifest(const std::string& text, const std::string& where);
Program parse_program(const std::string& text, const std::string& where);

// Reads a bundle's manifest and verifies its files.
Manifest open_bundle(const std::string& folder, Verify verify);

// Reads a whole file of at most `limit` bytes.
std::string read_file(const std::string& path, std::int64_t limit);

// Hexadecimal SHA-256 of a file; fails if this build has no libcrypto.
std::string sha256_of(const std::string& path);

const char* name_of(DType dtype);

}  // namespace flowblending::detail
