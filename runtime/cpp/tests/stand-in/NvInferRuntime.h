// In place of TensorRT's header of this name, as much of it as src/tensorrt.cpp calls: a plan is what `stand_in::plan`
// says, every call that changes something is noted in `stand_in::journal`, and calls in a wrong order are refused as
// the comments in TensorRT's own header say (setOptimizationProfileAsync, setInputShape, enqueueV3).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

using cudaStream_t = struct CUstream_st*;

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3, kINT64 = 8 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };

struct Dims {
  std::int32_t nbDims;
  std::int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, const char* message) noexcept = 0;

 protected:
  virtual ~ILogger() = default;
};

}  // namespace nvinfer1

namespace stand_in {

using Sizes = std::vector<std::int64_t>;

struct Range {
  Sizes min, max;
};

struct Plan {
  std::map<std::string, Sizes> inputs;                 // -1 where a profile says more
  std::vector<std::map<std::string, Range>> profiles;  // of the inputs with a -1
  Sizes output;
  std::vector<std::int64_t> scratch;  // bytes of each profile
};

inline Plan plan;
inline std::vector<std::string> journal;
inline bool refuse_profiles = false;
inline nvinfer1::ILogger* logger = nullptr;

inline bool error(const std::string& message) {
  logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
  return false;
}

inline nvinfer1::Dims dims(const Sizes& sizes) {
  nvinfer1::Dims made{static_cast<std::int32_t>(sizes.size()), {}};
  std::copy(sizes.begin(), sizes.end(), made.d);
  return made;
}

template <typename... Parts>
void note(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  journal.push_back(text.str());
}

}  // namespace stand_in

namespace nvinfer1 {

class IExecutionContext {
 public:
  bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t stream) noexcept {
    stand_in::note("profile ", index);
    if (stand_in::refuse_profiles || index < 0 || index >= static_cast<std::int32_t>(stand_in::plan.profiles.size()))
      return stand_in::error("no such profile");
    profile_ = static_cast<std::size_t>(index);
    switched_on_ = stream;
    shapes_.clear();
    scratch_ = 0;
    return true;
  }

  bool setInputShape(const char* name, const Dims& dims) noexcept {
    const stand_in::Sizes sizes(dims.d, dims.d + dims.nbDims);
    std::string text;
    for (const std::int64_t size : sizes) text += " " + std::to_string(size);
    stand_in::note("shape ", name, text);
    const auto& whole = stand_in::plan.inputs.at(name);
    const auto& ranges = stand_in::plan.profiles.at(profile_);
    const auto range = ranges.find(name);
    for (std::size_t axis = 0; axis < whole.size(); ++axis) {
      const bool fixed = whole[axis] >= 0;
      const std::int64_t min = fixed ? whole[axis] : range->second.min[axis];
      const std::int64_t max = fixed ? whole[axis] : range->second.max[axis];
      if (sizes.size() != whole.size() || sizes[axis] < min || sizes[axis] > max)
        return stand_in::error("the shape is not in the profile");
    }
    shapes_[name] = sizes;
    return true;
  }

  bool setTensorAddress(const char* name, void* data) noexcept {
    stand_in::note("address ", name);
    addresses_[name] = data;
    return true;
  }

  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept {
    stand_in::note("scratch ", size);
    scratch_ = memory == nullptr ? 0 : size;
  }

  bool enqueueV3(cudaStream_t stream) noexcept {
    stand_in::note("enqueue");
    if (scratch_ < stand_in::plan.scratch.at(profile_)) return stand_in::error("the scratch memory is too small");
    for (const auto& [name, whole] : stand_in::plan.inputs) {
      const bool dynamic = std::count(whole.begin(), whole.end(), -1) != 0;
      if (dynamic && shapes_.count(name) == 0) return stand_in::error("an input has no shape");
    }
    if (addresses_.size() != stand_in::plan.inputs.size() + 1) return stand_in::error("a tensor has no memory");
    return stream == switched_on_ || switched_on_ == nullptr || stand_in::error("another stream than the profile's");
  }

 private:
  std::size_t profile_ = 0;
  cudaStream_t switched_on_ = nullptr;
  std::int64_t scratch_ = 0;
  std::map<std::string, stand_in::Sizes> shapes_;
  std::map<std::string, void*> addresses_;
};

class ICudaEngine {
 public:
  std::int32_t getNbIOTensors() const noexcept { return static_cast<std::int32_t>(stand_in::plan.inputs.size()) + 1; }
  std::int32_t getNbOptimizationProfiles() const noexcept {
    return static_cast<std::int32_t>(stand_in::plan.profiles.size());
  }
  TensorIOMode getTensorIOMode(const char* name) const noexcept {
    return stand_in::plan.inputs.count(name) != 0 ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char*) const noexcept { return DataType::kFLOAT; }
  Dims getTensorShape(const char* name) const noexcept {
    const auto found = stand_in::plan.inputs.find(name);
    return stand_in::dims(found == stand_in::plan.inputs.end() ? stand_in::plan.output : found->second);
  }
  Dims getProfileShape(const char* name, std::int32_t index, OptProfileSelector select) const noexcept {
    const auto& ranges = stand_in::plan.profiles.at(static_cast<std::size_t>(index));
    const auto range = ranges.find(name);
    if (range == ranges.end()) return Dims{-1, {}};
    return stand_in::dims(select == OptProfileSelector::kMIN ? range->second.min : range->second.max);
  }
  std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t index) const noexcept {
    return stand_in::plan.scratch.at(static_cast<std::size_t>(index));
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
    return strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new IExecutionContext : nullptr;
  }
};

class IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(const void*, std::size_t) noexcept { return new ICudaEngine; }
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept {
  stand_in::logger = &logger;
  return new IRuntime;
}

}  // namespace nvinfer1

inline std::int32_t getInferLibMajorVersion() noexcept { return 0; }
inline std::int32_t getInferLibMinorVersion() noexcept { return 0; }
inline std::int32_t getInferLibPatchVersion() noexcept { return 0; }
