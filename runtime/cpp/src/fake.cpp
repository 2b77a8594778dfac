// An engine that is a formula, for tests without a model:
// velocity = gain * latents + drift * timestep / 1000 + condition * sum of the means of the row's conditions, with the
// mean of timesteps of the latent frames.
#include "engine.hpp"
#include "failure.hpp"
#include "node.hpp"

namespace flowblending::detail {
namespace {

struct Formula {
  float gain, drift, condition;
};

double mean(const BoundTensor& tensor, std::int64_t row) {
  std::int64_t count = 1;
  for (std::size_t axis = tensor.spec->batched() ? 1 : 0; axis < tensor.shape.size(); ++axis)
    count *= tensor.shape[axis];
  const std::int64_t start = tensor.spec->batched() ? row * count : 0;
  double sum = 0;
  for (std::int64_t index = start; index < start + count; ++index) {
    sum += tensor.spec->dtype == DType::float32
               ? static_cast<const float*>(tensor.data)[index]
               : static_cast<double>(static_cast<const std::int64_t*>(tensor.data)[index]);
  }
  return sum / static_cast<double>(count);
}

class FakeCall : public Call {
 public:
  FakeCall(const Formula& formula, std::vector<BoundTensor> tensors)
      : formula_(formula), tensors_(std::move(tensors)) {}

  void enqueue() override {
    const float* latents = nullptr;
    const BoundTensor* timestep = nullptr;
    for (const BoundTensor& each : tensors_) {
      if (each.spec->name == "latents") latents = static_cast<const float*>(each.data);
      if (each.spec->name == "timestep") timestep = &each;
    }
    const BoundTensor& velocity = tensors_.back();
    std::int64_t count = 1;
    for (std::size_t axis = 1; axis < velocity.shape.size(); ++axis) count *= velocity.shape[axis];
    for (std::int64_t row = 0; row < velocity.shape[0]; ++row) {
      double shift = static_cast<double>(formula_.drift) * mean(*timestep, row) / 1000.0;
      for (std::size_t index = 0; index + 1 < tensors_.size(); ++index) {
        const std::string& name = tensors_[index].spec->name;
        if (name != "latents" && name != "timestep") shift += formula_.condition * mean(tensors_[index], row);
      }
      const float rounded = static_cast<float>(shift);
      float* out = static_cast<float*>(velocity.data) + row * count;
      for (std::int64_t i = 0; i < count; ++i) out[i] = formula_.gain * latents[row * count + i] + rounded;
    }
  }

 private:
  Formula formula_;
  std::vector<BoundTensor> tensors_;
};

class FakeEngine : public Engine {
 public:
  explicit FakeEngine(const Formula& formula) : formula_(formula) {}
  std::unique_ptr<Call> bind(std::vector<BoundTensor> tensors) override {
    return std::make_unique<FakeCall>(formula_, std::move(tensors));
  }

 private:
  Formula formula_;
};

}  // namespace

std::unique_ptr<Engine> open_fake(const std::string& path, const GraphSpec& spec, DeviceMemory& device) {
  bool latents = false, timestep = false;
  for (const TensorSpec& each : spec.inputs) {
    latents = latents || each.name == "latents";
    timestep = timestep || each.name == "timestep";
    if (each.dtype != DType::float32 && each.dtype != DType::int64) {
      fail(Code::bad_file, "A formula takes float32 and int64, but input ", each.name, " is ", name_of(each.dtype),
           "; write the bundle again.");
    }
  }
  if (!latents || !timestep || device.kind() != Device::cpu) {
    fail(Code::invalid_argument,
         "A formula takes latents and a timestep, and runs on the CPU only; use another bundle.");
  }
  const Document document(read_file(path, 1 << 16), path);
  const Node root = document.root();
  return std::make_unique<FakeEngine>(
      Formula{root.at("gain").single(), root.at("drift").single(), root.at("condition").single()});
}

}  // namespace flowblending::detail
