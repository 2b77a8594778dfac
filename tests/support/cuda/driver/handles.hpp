// The entry points' common ground: contexts, and handles to what is behind them.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "cuda.hpp"
#include "memory.hpp"
#include "streams.hpp"

#define STAND_IN_API extern "C" __attribute__((visibility("default")))

namespace stand_in {

// Compute capability: sm_89.
constexpr int kMajor = 8, kMinor = 9;

// The current device of this thread, or -1: CUDA's current context, of which every device has one here.
int current_device();

// For calls that need a context: CUDA_ERROR_NOT_INITIALIZED, CUDA_ERROR_INVALID_CONTEXT, that of a lost context, or
// success.
CUresult ready();

// Objects that are shared with what is under way, by the handles that callers have of them.
template <class Handle, class Value>
class Handles {
 public:
  Handle add(std::shared_ptr<Value> value) {
    std::lock_guard<std::mutex> lock(mutex_);
    Handle handle = reinterpret_cast<Handle>(value.get());
    values_[handle] = std::move(value);
    return handle;
  }
  std::shared_ptr<Value> find(Handle handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find(handle);
    return found == values_.end() ? nullptr : found->second;
  }
  template <class Function>
  void each(const Function& function) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& one : values_) function(one.second);
  }
  bool remove(Handle handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.erase(handle) != 0;
  }

 private:
  std::mutex mutex_;
  std::map<Handle, std::shared_ptr<Value>> values_;
};

inline Entry entry(const char* what, std::string name = {}, std::uint64_t bytes = 0, CUdeviceptr address = 0) {
  Entry made;
  made.what = what;
  made.name = std::move(name);
  made.bytes = bytes;
  made.address = address;
  return made;
}

}  // namespace stand_in
