// What the files say, as plain data: engines, bundles and programs.
#pragma once

#include <array>
#include <cstdint>
#include <map>
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

// A size, or one of the symbols batch, frames, height, width.
using Dim = std::variant<std::int64_t, std::string>;

struct TensorSpec {
  std::string name;
  DType dtype = DType::float32;
  std::vector<Dim> shape;

  // Whether a call on several rows takes this tensor's rows one after the other; if not, all rows share it.
  bool batched() const { return !shape.empty() && std::holds_alternative<std::string>(shape.front()); }
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

using Instruction = std::variant<Run, Mix, Rescale>;

struct Step {
  std::string model;
  float timestep = 0;
  std::vector<Instruction> instructions;
};

enum class Source { latents, timestep, condition };

struct Program {
  std::string bundle;
  LatentShape latent_shape{};
  std::vector<std::string> slots;  // the first is `latents`
  std::map<std::string, std::vector<std::pair<TensorSpec, Source>>> engines;
  std::vector<Step> steps;
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
