// ONNX Runtime: runs the exported ONNX file itself, on the CPU, or on a GPU through its CUDA provider.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <thread>

#include "engine.hpp"
#include "failure.hpp"

namespace flowblending::detail {
namespace {

Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "flowblending");
  return env;
}

std::string first_line(const char* text) { return std::string(text).substr(0, std::string(text).find('\n')); }

ONNXTensorElementDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::int32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// Idle threads do not spin: here another engine's call comes next, and needs the cores. See engine/backends/onnxruntime/run.py.
Ort::SessionOptions options(const DeviceMemory& device, int threads) {
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(3);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  options.SetIntraOpNumThreads(threads > 0 ? threads : std::max(cores, 1));
  options.AddConfigEntry("session.force_spinning_stop", "1");
  options.AddConfigEntry("session.intra_op.spin_duration_us", "20");
  if (device.kind() == Device::cuda) {
    const OrtApi& api = Ort::GetApi();
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    Ort::ThrowOnError(api.CreateCUDAProviderOptions(&cuda));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> owner(
        cuda, api.ReleaseCUDAProviderOptions);
    const std::string index = std::to_string(device.index());
    const char* const key = "device_id";
    const char* const value = index.c_str();
    Ort::ThrowOnError(api.UpdateCUDAProviderOptions(cuda, &key, &value, 1));
    Ort::ThrowOnError(api.UpdateCUDAProviderOptionsWithValue(cuda, "user_compute_stream", device.stream()));
    options.AppendExecutionProvider_CUDA_V2(*cuda);
  }
  return options;
}

class OrtCall : public Call {
 public:
  OrtCall(Ort::Session& session, const Ort::RunOptions& options, const DeviceMemory& device, const std::string& name,
          const std::vector<BoundTensor>& tensors)
      : session_(session), options_(options), name_(name), binding_(session) {
    const Ort::MemoryInfo info = device.kind() == Device::cuda
                                     ? Ort::MemoryInfo("Cuda", OrtDeviceAllocator, device.index(), OrtMemTypeDefault)
                                     : Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    for (const BoundTensor& each : tensors) {
      auto bytes = static_cast<std::size_t>(size_of(each.spec->dtype));
      for (const std::int64_t size : each.shape) bytes *= static_cast<std::size_t>(size);
      const Ort::Value value = Ort::Value::CreateTensor(info, each.data, bytes, each.shape.data(), each.shape.size(),
                                                        type_of(each.spec->dtype));
      if (&each == &tensors.back()) {
        binding_.BindOutput(each.spec->name.c_str(), value);
      } else {
        binding_.BindInput(each.spec->name.c_str(), value);
      }
    }
  }

  void enqueue() override {
    try {
      session_.Run(options_, binding_);
    } catch (const Ort::Exception& error) {
      fail(Code::failed, "ONNX Runtime failed in engine ", name_, " (", first_line(error.what()),
           "); if memory ran out, build a smaller size.");
    }
  }

 private:
  Ort::Session& session_;
  const Ort::RunOptions& options_;
  const std::string& name_;
  Ort::IoBinding binding_;
};

class OrtEngine : public Engine {
 public:
  OrtEngine(const std::string& path, const GraphSpec& spec, DeviceMemory& device, int threads)
      : name_(spec.name), device_(device), session_(environment(), path.c_str(), options(device, threads)) {
    // Waiting is the sampler's business; on the CPU there is nothing to wait for.
    if (device.kind() == Device::cuda) run_.AddConfigEntry("disable_synchronize_execution_providers", "1");
  }

  std::unique_ptr<Call> bind(std::vector<BoundTensor> tensors) override {
    try {
      return std::make_unique<OrtCall>(session_, run_, device_, name_, tensors);
    } catch (const Ort::Exception& error) {
      fail(Code::bad_file, "Engine ", name_, " does not take what its manifest says (", first_line(error.what()),
           "); build the bundle again.");
    }
  }

 private:
  std::string name_;
  DeviceMemory& device_;
  Ort::RunOptions run_;
  Ort::Session session_;
};

}  // namespace

std::unique_ptr<Engine> open_onnxruntime(const std::string& path, const GraphSpec& spec, DeviceMemory& device,
                                         int threads) {
  if (device.kind() == Device::cpu && spec.precision == "bf16") {
    fail(Code::invalid_argument, "Engine ", spec.name,
         " is bf16, which ONNX Runtime's CPU kernels cannot run; build it with --precision fp32, fp16-mixed or fp16.");
  }
  try {
    return std::make_unique<OrtEngine>(path, spec, device, threads);
  } catch (const Ort::Exception& error) {
    fail(Code::bad_file, "ONNX Runtime cannot load ", path, " (", first_line(error.what()),
         "); build the bundle again.");
  }
}

}  // namespace flowblending::detail
