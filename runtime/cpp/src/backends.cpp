// One door to all back ends.
#include <algorithm>

#include "engine.hpp"
#include "failure.hpp"

namespace flowblending::detail {
namespace {

#ifdef FLOWBLENDING_TENSORRT
constexpr bool kTensorrt = true;
#else
constexpr bool kTensorrt = false;
#endif

void check_device(const Component& component, const DeviceMemory& device) {
  const bool plan = component.backend == "tensorrt" || component.backend == "tensorrt-rtx";
  if (plan && device.kind() != Device::cuda) {
    fail(
        Code::invalid_argument, "Engine ", component.spec.name, " is a plan of ", component.backend,
        ", which runs on an NVIDIA GPU and not on the CPU; create the sampler on a CUDA stream, or build a bundle with "
        "--backend onnxruntime.");
  }
  const auto& targets = component.targets;
  if (plan && !targets.empty() && std::find(targets.begin(), targets.end(), device.architecture()) == targets.end()) {
    fail(Code::unavailable, "Engine ", component.spec.name, " was compiled for ", brackets(targets),
         ", but this GPU is ", device.architecture(), "; build the bundle again with --target ", device.architecture(),
         ".");
  }
}

}  // namespace

std::vector<std::string> backend_names() {
  std::vector<std::string> names = {"fake"};
#ifdef FLOWBLENDING_ONNXRUNTIME
  names.emplace_back("onnxruntime");
#endif
#ifdef FLOWBLENDING_TENSORRT
  names.emplace_back(FLOWBLENDING_TENSORRT);
#endif
  return names;
}

std::unique_ptr<Engine> open_engine(const Manifest& manifest, const Component& component, DeviceMemory& device,
                                    [[maybe_unused]] Scratch& scratch, [[maybe_unused]] int threads) {
  check_device(component, device);
  const std::vector<std::string> known = backend_names();
  if (std::find(known.begin(), known.end(), component.backend) == known.end()) {
    fail(Code::unavailable, "Engine ", component.spec.name, " needs the back end ", component.backend,
         ", but this library was built with ", brackets(known), "; build it where that library and its headers are.");
  }
  const std::string path = manifest.folder + "/" + component.files.front().path;
  if (component.backend == "fake") return open_fake(path, component.spec, device);
#ifdef FLOWBLENDING_ONNXRUNTIME
  if (component.backend == "onnxruntime") return open_onnxruntime(path, component.spec, device, threads);
#endif
  if constexpr (kTensorrt) return open_tensorrt(path, component.spec, device.stream(), scratch);
  fail(Code::unavailable, "The back end ", component.backend, " cannot be opened; build the library again.");
}

}  // namespace flowblending::detail

namespace flowblending {

std::vector<std::string> backends() { return detail::backend_names(); }

}  // namespace flowblending
