// FlowBlending for C++17 programs: a bundle, a sampling program, embeddings and noise in; latents out.
//
// Nothing here throws: what can fail returns a Status, or a Result, whose message is one plain sentence. An object is
// used by one thread at a time; different objects by any. Video files and text encoders are not this library's
// business: `fb-run --emit-inputs` writes a prompt's embeddings and what is made of images, and any VAE decodes the
// latents.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace flowblending {

enum class Code {
  ok = 0,
  invalid_argument = 1,  // the caller's: a null pointer, an unknown name, a wrong shape or type
  bad_file = 2,          // a file is missing, damaged, of another version, or belongs to another bundle
  unavailable = 3,       // this build or this machine lacks the back end, the GPU, or the memory
  failed = 4,            // a model gave a non-finite velocity, or a back end failed while running
  cancelled = 5,         // the progress callback asked for it
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const noexcept { return code_ == Code::ok; }
  Code code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

// Either a value or the Status that says why there is none. Look at ok() before the value.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::move(value)) {}
  Result(Status status) : content_(std::move(status)) {}

  bool ok() const noexcept { return std::holds_alternative<T>(content_); }
  Status status() const { return ok() ? Status() : *std::get_if<Status>(&content_); }
  T& operator*() noexcept { return *std::get_if<T>(&content_); }
  T* operator->() noexcept { return std::get_if<T>(&content_); }

 private:
  std::variant<Status, T> content_;
};

enum class DType { float32 = 0, float16 = 1, int64 = 2, int32 = 3 };

// Bytes of one element.
std::int64_t size_of(DType dtype) noexcept;

// Dense row-major memory of the caller's: on the host, or, for a sampler on a GPU, on its device as well.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
};

// A condition that a program's engines ask for, or latent frames of images that the program holds.
struct InputInfo {
  std::string branch;  // "cond" or "uncond"; "given" for what is held
  std::string name;    // "text", "large.control_scale" if each model has its own, "held_0"
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;  // of one branch: [1, ...], or what all rows share
};

// A step has finished.
struct StepEvent {
  int index;          // from 0 on
  int steps;          // of how many
  const char* model;  // the engine, such as "large"
  double seconds;     // that it took
};

// Told of every finished step, in order, on the thread that called sample(); false cancels.
using OnStep = std::function<bool(const StepEvent&)>;

enum class Verify {
  sizes,      // every file is there and has its size
  checksums,  // and its SHA-256, which reads all of it
};

namespace detail {
struct Manifest;
class Sampling;
}  // namespace detail

// A folder that fb-build-engines wrote. Copies share what was read.
class Bundle {
 public:
  static Result<Bundle> open(const std::string& folder, Verify verify = Verify::sizes) noexcept;

  const std::string& id() const noexcept;
  // [C, F, H, W] of the bundle's default size. It may make others: a program's own size is Sampler::latent_shape().
  std::array<std::int64_t, 4> latent_shape() const noexcept;

 private:
  friend class Sampler;
  explicit Bundle(std::shared_ptr<const detail::Manifest> manifest) : manifest_(std::move(manifest)) {}
  std::shared_ptr<const detail::Manifest> manifest_;
};

enum class Device { cpu, cuda };

struct SamplerOptions {
  Device device = Device::cpu;
  // cudaStream_t of the current CUDA device; null is the default stream. It outlives the sampler.
  void* stream = nullptr;
  // Of ONNX Runtime on the CPU; 0 takes every core that this process may use.
  int threads = 0;
};

// Both engines of a bundle on one device, and the program that they are to run.
class Sampler {
 public:
  // Opens no engine yet. The sampler keeps what it needs of the bundle.
  static Result<Sampler> create(const Bundle& bundle, const SamplerOptions& options = {}) noexcept;

  // Reads a file of `fb-run --emit-program`, opens the engines that it runs, and allocates all memory. Another program
  // may be loaded later: engines stay open, inputs have to be given again.
  Status load(const std::string& program) noexcept;

  // [C, F, H, W] of the noise of the loaded program; zeros before load().
  std::array<std::int64_t, 4> latent_shape() const noexcept;

  // [C, F, H, W] of its latents, which one of the bundle's profiles holds. They have fewer frames than the noise where
  // images were given for later frames: their latent frames are put before the video's own.
  std::array<std::int64_t, 4> result_shape() const noexcept;

  // What set_input has to give before sample().
  const std::vector<InputInfo>& inputs() const noexcept;

  // Copies a condition in. Device and page-locked memory must stay until sample() has returned.
  Status set_input(const std::string& branch, const std::string& name, const TensorView& tensor) noexcept;

  // From noise, float32 [1, C, F, H, W] of latent_shape(), to latents, likewise of result_shape(), on the host or on
  // the sampler's device; they may be the same. Everything is enqueued on the stream, and nothing waits until the end;
  // with a callback, enqueuing stays at most two steps ahead of the GPU, so that a cancel is heard. Returns when the
  // latents are there. If it fails or is cancelled, `latents` is untouched, and the sampler may be used again.
  Status sample(const float* noise, float* latents, const OnStep& on_step = nullptr) noexcept;

  Sampler(Sampler&&) noexcept;
  Sampler& operator=(Sampler&&) noexcept;
  ~Sampler();

 private:
  explicit Sampler(std::unique_ptr<detail::Sampling> sampling);
  std::unique_ptr<detail::Sampling> sampling_;
};

// The back ends that this library was built with, such as "fake", "onnxruntime", "tensorrt".
std::vector<std::string> backends();

}  // namespace flowblending
