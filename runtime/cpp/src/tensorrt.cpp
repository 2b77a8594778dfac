// Plans of TensorRT 10.15 to 11 and of TensorRT-RTX, whichever of the two this library was built with
// (FLOWBLENDING_TENSORRT is its back end's name). Their run-time interfaces are the same.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>

#include "failure.hpp"
#include "mapping.hpp"
#include "plan_profiles.hpp"

namespace flowblending::detail {
namespace {

constexpr const char* kTitle = std::string_view(FLOWBLENDING_TENSORRT) == "tensorrt" ? "TensorRT" : "TensorRT-RTX";

// The library says why a call failed here and nowhere else. It keeps the first logger of a process, so there is one,
// and it is never destroyed: engines may outlive every other static.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      if (first_.empty()) first_ = message;  // those after it are its consequences
    } catch (...) {
      first_.clear();
    }
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    first_.clear();
  }
  std::string error() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return first_.empty() ? "it gave no reason" : first_;
  }

 private:
  std::mutex mutex_;
  std::string first_;
};

Logger& logger() {
  static Logger* const one = new Logger;
  return *one;
}

[[noreturn]] void failure(Code code, const std::string& what, const char* remedy) {
  const std::string reason = logger().error();
  const bool memory =
      reason.find("out of memory") != std::string::npos || reason.find("OutOfMemory") != std::string::npos;
  const bool cuda = reason.find("cudaError") != std::string::npos;
  fail(memory || cuda ? Code::unavailable : code, kTitle, " ", getInferLibMajorVersion(), ".",
       getInferLibMinorVersion(), ".", getInferLibPatchVersion(), " ", what, " (", reason, "); ",
       memory ? "stop other programs on the GPU, or build a bundle for a smaller size"
       : cuda ? "check the GPU and its driver"
              : remedy,
       ".");
}

nvinfer1::DataType type_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return nvinfer1::DataType::kFLOAT;
    case DType::float16: return nvinfer1::DataType::kHALF;
    case DType::int64: return nvinfer1::DataType::kINT64;
    case DType::int32: return nvinfer1::DataType::kINT32;
  }
  return nvinfer1::DataType::kFLOAT;
}

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  for (std::size_t axis = 0; axis < shape.size(); ++axis) dims.d[axis] = shape[axis];
  return dims;
}

Shape shape_of(const nvinfer1::Dims& dims) { return Shape(dims.d, dims.d + std::max(dims.nbDims, 0)); }

class TrtEngine : public Engine {
 public:
  TrtEngine(const std::string& path, const GraphSpec& spec, void* stream, Scratch& scratch)
      : name_(spec.name), stream_(static_cast<cudaStream_t>(stream)), scratch_(scratch) {
    logger().clear();
    runtime_.reset(nvinfer1::createInferRuntime(logger()));
    if (runtime_ == nullptr)
      failure(Code::unavailable, "cannot start", "install a version that this library was built for");
    const Mapping plan(path);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (engine_ == nullptr) {
      failure(Code::bad_file, "cannot load " + path,
              "if it is damaged, or of another version or GPU, build the bundle again");
    }
    check_plan(path, spec);
    read_profiles(spec);
    context_.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (context_ == nullptr)
      failure(Code::bad_file, "cannot prepare " + path + " for running", "build the bundle again");
  }

  std::unique_ptr<Call> bind(std::vector<BoundTensor> tensors) override;

  // Tells the context what has changed since the last call, and enqueues it.
  void run(const std::vector<BoundTensor>& tensors, int profile) {
    if (last_ != &tensors) tell(tensors, profile);
    if (memory_ != scratch_.data()) take_scratch();
    if (!context_->enqueueV3(stream_)) {
      logged_failure("failed to run " + name_, "check the GPU and its driver");
    }
  }

  // A call that goes must not be taken for one that is made later at its address.
  void forget(const std::vector<BoundTensor>& tensors) {
    if (last_ == &tensors) last_ = nullptr;
  }

 private:
  // A plan of another graph would read and write beyond the memory that it is given.
  void check_plan(const std::string& path, const GraphSpec& spec) const {
    const auto expected = static_cast<std::int32_t>(spec.inputs.size() + spec.outputs.size());
    bool same = engine_->getNbIOTensors() == expected;
    const auto fits = [&](const TensorSpec& tensor, nvinfer1::TensorIOMode mode) {
      const char* name = tensor.name.c_str();
      return engine_->getTensorIOMode(name) == mode && engine_->getTensorDataType(name) == type_of(tensor.dtype) &&
             engine_->getTensorShape(name).nbDims == static_cast<std::int32_t>(tensor.shape.size());
    };
    for (const TensorSpec& each : spec.inputs) same = same && fits(each, nvinfer1::TensorIOMode::kINPUT);
    for (const TensorSpec& each : spec.outputs) same = same && fits(each, nvinfer1::TensorIOMode::kOUTPUT);
    if (!same) {
      fail(Code::bad_file, "The plan ", path, " has other inputs and outputs than the manifest's for engine ",
           spec.name, "; build the bundle again.");
    }
  }

  void read_profiles(const GraphSpec& spec) {
    for (int index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
      PlanProfile profile;
      for (const TensorSpec& input : spec.inputs) profile.push_back(bounds(input.name.c_str(), index));
      profiles_.push_back(std::move(profile));
    }
  }

  Bounds bounds(const char* name, int profile) const {
    const Shape shape = shape_of(engine_->getTensorShape(name));
    if (std::all_of(shape.begin(), shape.end(), [](std::int64_t size) { return size >= 0; })) return {shape, shape};
    return {shape_of(engine_->getProfileShape(name, profile, nvinfer1::OptProfileSelector::kMIN)),
            shape_of(engine_->getProfileShape(name, profile, nvinfer1::OptProfileSelector::kMAX))};
  }

  void tell(const std::vector<BoundTensor>& tensors, int profile) {
    last_ = nullptr;  // what the context knows is in doubt until all of it has been told
    logger().clear();
    shapes_.resize(tensors.size() - 1);
    if (profile != profile_) use(profile);
    for (std::size_t index = 0; index < shapes_.size(); ++index) set_shape(tensors[index], shapes_[index]);
    for (const BoundTensor& each : tensors) {
      if (!context_->setTensorAddress(each.spec->name.c_str(), each.data)) {
        logged_failure("refused the memory of " + each.spec->name, "report it");
      }
    }
    last_ = &tensors;
  }

  // Other engines may have been opened since, whose calls take more.
  void take_scratch() {
    memory_ = scratch_.data();
    context_->setDeviceMemoryV2(memory_, static_cast<std::int64_t>(scratch_.size()));
  }

  // What the switch copies is ordered before the run only because both are on one stream; and shapes have to be told
  // after it (NvInferRuntime.h, setOptimizationProfileAsync).
  void use(int profile) {
    profile_ = -1;
    memory_ = nullptr;
    std::fill(shapes_.begin(), shapes_.end(), std::nullopt);
    if (!context_->setOptimizationProfileAsync(profile, stream_)) {
      logged_failure("refused optimization profile " + std::to_string(profile) + " of " + name_,
                     "build the bundle again");
    }
    profile_ = profile;
  }

  // Telling the context a shape, even the same one, makes it work out all others again.
  void set_shape(const BoundTensor& tensor, std::optional<Shape>& told) {
    if (told == tensor.shape) return;
    told.reset();
    if (!context_->setInputShape(tensor.spec->name.c_str(), dims_of(tensor.shape))) {
      logged_failure("refused the shape " + brackets(tensor.shape) + " of " + tensor.spec->name,
                     "build the bundle again");
    }
    told = tensor.shape;
  }

  [[noreturn]] void logged_failure(const std::string& what, const char* remedy) { failure(Code::failed, what, remedy); }

  std::string name_;
  cudaStream_t stream_;
  Scratch& scratch_;
  // Destroyed last to first, as TensorRT asks.
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::vector<PlanProfile> profiles_;
  // What the context was told last.
  const std::vector<BoundTensor>* last_ = nullptr;
  int profile_ = 0;  // of a new context
  void* memory_ = nullptr;
  std::vector<std::optional<Shape>> shapes_;
};

class TrtCall : public Call {
 public:
  TrtCall(TrtEngine& engine, std::vector<BoundTensor> tensors, int profile)
      : engine_(engine), tensors_(std::move(tensors)), profile_(profile) {}
  TrtCall(const TrtCall&) = delete;
  TrtCall& operator=(const TrtCall&) = delete;
  ~TrtCall() override { engine_.forget(tensors_); }

  void enqueue() override { engine_.run(tensors_, profile_); }

 private:
  TrtEngine& engine_;
  std::vector<BoundTensor> tensors_;
  int profile_;
};

std::unique_ptr<Call> TrtEngine::bind(std::vector<BoundTensor> tensors) {
  for (const BoundTensor& each : tensors) {
    if (reinterpret_cast<std::uintptr_t>(each.data) % kAlignment != 0) {
      fail(Code::bad_file, "Tensor ", each.spec->name, " of engine ", name_, " does not lie at a multiple of ",
           kAlignment, " bytes, which ", kTitle,
           " needs; compile the program so that a batch's slots are not used alone.");
    }
  }
  const int profile = choose_profile(profiles_, tensors, name_);
  // Now, so that nothing is allocated between two steps.
  scratch_.reserve(static_cast<std::size_t>(engine_->getDeviceMemorySizeForProfileV2(profile)));
  return std::make_unique<TrtCall>(*this, std::move(tensors), profile);
}

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const std::string& path, const GraphSpec& spec, void* stream, Scratch& scratch) {
  return std::make_unique<TrtEngine>(path, spec, stream, scratch);
}

}  // namespace flowblending::detail
