// Kernels: the source that NVRTC compiles for a GPU, compiled for the CPU (`device_code.hpp`), by name.
#pragma once

#include <functional>
#include <string>
#include <tuple>
#include <type_traits>

#include "memory.hpp"

namespace stand_in {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

extern Index threadIdx, blockIdx, blockDim, gridDim;

// Returns when every thread of the block has called it, or has ended.
void wait_for_block();

// What one thread of a launch runs; empty if an argument points to no living memory of the device.
using Thread = std::function<void()>;
// A launch with its arguments read, to be resolved when its turn comes: memory may have been freed until then.
using Launch = std::function<Thread(int device)>;

struct Kernel {
  std::string name;
  std::function<Launch(void** arguments)> read;
};

// Null if there is none of this name.
const Kernel* find_kernel(const std::string& name);

// False, with a fault said, if a thread touches memory that it may not.
bool run_grid(const std::string& name, unsigned grid, unsigned block, const Thread& thread);

void add_kernel(Kernel kernel);

template <class Value>
bool resolve(Value& value, int device, const std::string& name) {
  if constexpr (std::is_pointer_v<Value>) {
    if (value == nullptr) return true;
    const auto address = reinterpret_cast<CUdeviceptr>(value);
    value = static_cast<Value>(alias(address, sizeof(*value), device, "kernel " + name));
    return value != nullptr;
  }
  return true;
}

// Makes a kernel of a function, whose parameters are those of a launch.
struct Registered {
  template <class... Values>
  Registered(const char* name, void (*function)(Values...)) {
    add_kernel({name, [name = std::string(name), function](void** arguments) -> Launch {
                  std::tuple<Values...> values;
                  read(values, arguments, std::index_sequence_for<Values...>());
                  return [=](int device) -> Thread {
                    auto resolved = values;
                    const auto each = [&](auto&... value) { return (resolve(value, device, name) & ...); };
                    if (!std::apply(each, resolved)) return {};
                    return [function, resolved] { std::apply(function, resolved); };
                  };
                }});
  }

 private:
  template <class Tuple, std::size_t... places>
  static void read(Tuple& values, void** arguments, std::index_sequence<places...>) {
    ((std::get<places>(values) = *static_cast<std::tuple_element_t<places, Tuple>*>(arguments[places])), ...);
  }
};

}  // namespace stand_in
