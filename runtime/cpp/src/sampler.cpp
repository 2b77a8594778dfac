// The loop over a program's instructions, and the public Sampler around it.
#include <functional>

#include "binding.hpp"
#include "failure.hpp"

namespace flowblending::detail {
namespace {

constexpr std::int64_t kLargestProgram = 64 << 20;

// With a callback, how many steps are enqueued before the oldest of them is waited for: enough that the GPU always has
// work, few enough that a cancel is soon heard.
constexpr std::size_t kAhead = 2;

// What to do about a velocity that is not finite, by the precision of the model that gave it. The same words as in
// Python (runtime/refusals.py), which a test holds side by side.
const char* remedy(const std::string& precision) {
  if (precision == "fp16") return "build it in fp16-mixed, bf16 or fp32";
  if (precision == "fp16-mixed") return "build it in bf16 or fp32";
  if (precision == "fp8") return "build it in bf16 or fp32, or calibrate it with more prompts";
  if (precision == "fp32") return "check its checkpoint and the initial latents";
  return "build it in fp32";
}

}  // namespace

class Sampling {
 public:
  Sampling(std::shared_ptr<const Manifest> manifest, const SamplerOptions& options)
      : manifest_(std::move(manifest)), threads_(options.threads), device_(open(options)), start_(device_->mark()) {}

  Sampling(const Sampling&) = delete;
  Sampling& operator=(const Sampling&) = delete;

  ~Sampling() {
    // Neither engines nor memory may go before the work that uses them.
    (void)guarded([this] { device_->wait(); });
  }

  void load(const std::string& path) {
    check_idle();
    const Program program = parse_program(read_file(path, kLargestProgram), path);
    check_program(program, *manifest_, path);
    for (const auto& [model, bindings] : program.engines) {
      std::unique_ptr<Engine>& engine = engines_[model];
      if (engine == nullptr) engine = open_engine(*manifest_, manifest_->models.at(model), *device_, scratch_, threads_);
    }
    binding_ = bind_program(program, *manifest_, engines_, *device_);
  }

  const std::vector<InputInfo>& inputs() const {
    static const std::vector<InputInfo> none;
    return binding_ == nullptr ? none : binding_->infos;
  }

  LatentShape latent_shape() const { return binding_ == nullptr ? LatentShape{} : binding_->latent_shape; }
  LatentShape result_shape() const { return binding_ == nullptr ? LatentShape{} : binding_->result_shape; }

  void set_input(const std::string& branch, const std::string& name, const TensorView& tensor) {
    check_idle();
    if (binding_ == nullptr) fail(Code::invalid_argument, "No program was loaded; call load first.");
    for (BoundInput& each : binding_->inputs) {
      if (each.info.branch != branch || each.info.name != name) continue;
      if (tensor.data == nullptr || tensor.dtype != each.info.dtype || tensor.shape != each.info.shape) {
        fail(Code::invalid_argument, "Input ", name, " of branch ", branch, " is ", name_of(tensor.dtype), " ",
             brackets(tensor.shape), tensor.data == nullptr ? " without data" : "", ", but ", name_of(each.info.dtype),
             " ", brackets(each.info.shape), " was expected; give a tensor of that type and shape.");
      }
      auto bytes = static_cast<std::size_t>(size_of(tensor.dtype));
      for (const std::int64_t size : tensor.shape) bytes *= static_cast<std::size_t>(size);
      for (void* place : each.places) device_->copy(place, tensor.data, bytes);
      each.given = true;
      return;
    }
    fail(Code::invalid_argument, "The program has no input ", name, " of branch ", branch,
         "; inputs() tells which it has.");
  }

  void sample(const float* noise, float* latents, const OnStep& on_step) {
    check_idle();
    check_ready(noise, latents);
    const Running running(running_);
    const std::size_t bytes = binding_->count * sizeof(float);
    try {
      device_->copy(binding_->slots[0], noise, bytes);
      device_->forget_bad();
      start_->record();
      for (std::size_t index = 0, told = 0; index < binding_->steps.size(); ++index) {
        enqueue(binding_->steps[index]);
        if (const auto bad = device_->bad(false)) complain(*bad);
        if (on_step) tell(on_step, index, told);
      }
      if (const auto bad = device_->bad(true)) complain(*bad);
      copy_result(*binding_, latents, *device_);
      device_->wait();
    } catch (...) {
      // The caller may free the noise as soon as this returns.
      (void)guarded([this] { device_->wait(); });
      throw;
    }
  }

 private:
  // While it exists, the callback cannot pull the memory from under the loop.
  class Running {
   public:
    explicit Running(bool& flag) : flag_(flag) { flag_ = true; }
    ~Running() { flag_ = false; }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

   private:
    bool& flag_;
  };

  static std::unique_ptr<DeviceMemory> open(const SamplerOptions& options) {
    if (options.threads < 0) {
      fail(Code::invalid_argument, options.threads, " threads were asked for; give 0 for all cores, or more.");
    }
    if (options.device == flowblending::Device::cpu) {
      if (options.stream != nullptr) {
        fail(Code::invalid_argument, "A stream was given for the CPU, which has none; leave it out or choose cuda.");
      }
      return open_host();
    }
#ifdef FLOWBLENDING_CUDA
    return open_cuda(options.stream);
#else
    fail(Code::unavailable, "This library was built without CUDA; build it where the CUDA toolkit is, or use the CPU.");
#endif
  }

  void check_idle() const {
    if (running_) fail(Code::invalid_argument, "The sampler is running; use another one inside the callback.");
  }

  void check_ready(const float* noise, const float* latents) const {
    if (binding_ == nullptr) fail(Code::invalid_argument, "No program was loaded; call load first.");
    if (noise == nullptr || latents == nullptr) {
      fail(Code::invalid_argument, "Noise and latents were expected, but a pointer is null; give memory for both.");
    }
    for (const BoundInput& each : binding_->inputs) {
      if (!each.given) {
        fail(Code::invalid_argument, "Input ", each.info.name, " of branch ", each.info.branch,
             " was not given; call set_input for it.");
      }
    }
  }

  void enqueue(BoundStep& step) {
    for (auto& each : step.instructions) {
      detail::enqueue(each, *binding_, *device_);
      if (const auto* call = std::get_if<BoundCall>(&each)) {
        device_->look(call->velocity, call->count, static_cast<std::uint32_t>(call->step));
      }
    }
    step.stop->record();
  }

  // Tells of the steps up to `index` that have finished; waits only where the GPU has fallen too far behind, or at the
  // last step.
  void tell(const OnStep& on_step, std::size_t index, std::size_t& told) {
    const std::size_t steps = binding_->steps.size();
    const bool last = index + 1 == steps;
    while (told <= index) {
      Mark& stop = *binding_->steps[told].stop;
      if (!stop.reached()) {
        if (!last && index - told < kAhead) return;
        stop.wait();
      }
      const Mark& before = told == 0 ? *start_ : *binding_->steps[told - 1].stop;
      const StepEvent event{static_cast<int>(told), static_cast<int>(steps), binding_->steps[told].model.c_str(),
                            stop.seconds_since(before)};
      ++told;
      if (!on_step(event)) {
        fail(Code::cancelled, "Cancelled by the progress callback after step ", told, " of ", steps, ".");
      }
    }
  }

  [[noreturn]] void complain(std::uint32_t step) const {
    std::string model = "unknown";
    for (const auto& each : binding_->steps[step - 1].instructions) {
      if (const auto* call = std::get_if<BoundCall>(&each)) model = call->model;
    }
    const std::string& precision = manifest_->models.at(model).spec.precision;
    fail(Code::failed, "The ", model, " model gave a non-finite velocity at step ", step, " of ",
         binding_->steps.size(), "; it was built in ", precision, ": ", remedy(precision), ".");
  }

  std::shared_ptr<const Manifest> manifest_;
  int threads_;
  bool running_ = false;
  // Destroyed last to first: calls and memory, then engines, then what both live on.
  std::unique_ptr<DeviceMemory> device_;
  Scratch scratch_{[this](std::size_t bytes) { return device_->allocate(bytes); }};
  std::unique_ptr<Mark> start_;
  Engines engines_;
  std::unique_ptr<Binding> binding_;
};

}  // namespace flowblending::detail

namespace flowblending {

Sampler::Sampler(std::unique_ptr<detail::Sampling> sampling) : sampling_(std::move(sampling)) {}
Sampler::Sampler(Sampler&&) noexcept = default;
Sampler& Sampler::operator=(Sampler&&) noexcept = default;
Sampler::~Sampler() = default;

Result<Sampler> Sampler::create(const Bundle& bundle, const SamplerOptions& options) noexcept {
  return detail::guarded_result<Sampler>(
      [&] { return Sampler(std::make_unique<detail::Sampling>(bundle.manifest_, options)); });
}

Status Sampler::load(const std::string& program) noexcept {
  return detail::guarded([&] { sampling_->load(program); });
}

const std::vector<InputInfo>& Sampler::inputs() const noexcept { return sampling_->inputs(); }

std::array<std::int64_t, 4> Sampler::latent_shape() const noexcept { return sampling_->latent_shape(); }

std::array<std::int64_t, 4> Sampler::result_shape() const noexcept { return sampling_->result_shape(); }

Status Sampler::set_input(const std::string& branch, const std::string& name, const TensorView& tensor) noexcept {
  return detail::guarded([&] { sampling_->set_input(branch, name, tensor); });
}

Status Sampler::sample(const float* noise, float* latents, const OnStep& on_step) noexcept {
  return detail::guarded([&] { sampling_->sample(noise, latents, on_step); });
}

}  // namespace flowblending
