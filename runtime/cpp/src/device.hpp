// Where latents live and how time is told there. Everything is enqueued on one stream and finishes in the order in
// which it was asked for; on the host it has finished when the call returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flowblending/flowblending.hpp"

namespace flowblending::detail {

// Memory that goes back to its device with this pointer, whose device must live as long.
using Memory = std::unique_ptr<void, std::function<void(void*)>>;

// Alignment of every allocation: what TensorRT asks of inputs and outputs (NvInferRuntime.h, setTensorAddress).
constexpr std::size_t kAlignment = 256;

// A moment in the order of the stream.
class Mark {
 public:
  virtual ~Mark() = default;
  virtual void record() = 0;
  virtual bool reached() = 0;
  virtual void wait() = 0;
  // From another mark to this one; both were reached.
  virtual double seconds_since(const Mark& earlier) const = 0;
};

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual flowblending::Device kind() const = 0;
  // Which GPU; 0 on the host.
  virtual int index() const = 0;
  virtual void* stream() const = 0;
  // "sm89"; empty on the host.
  virtual std::string architecture() const = 0;
  virtual Memory allocate(std::size_t bytes) = 0;
  // Either side may be on the host or on the device.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  // Rows of so many bytes, each `to_pitch` and `from_pitch` bytes behind the one before; either side as for copy.
  virtual void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes,
                         std::size_t rows) = 0;
  // out = sum of coefficient * slot in fp32, in order, without fused multiply-adds. `out` may be the first slot.
  virtual void mix(float* out, std::size_t count, const std::vector<std::pair<float, const float*>>& terms) = 0;
  // out *= share * std(reference) / std(out) + 1 - share, in double until the factor; a constant `out` is left alone.
  virtual void rescale(float* out, const float* reference, std::size_t count, double share) = 0;
  virtual std::unique_ptr<Mark> mark() = 0;
  // Non-finite values: forget them; look for them, under an index; the lowest index that had some, if it is known yet,
  // or, `waiting` for the stream, for certain.
  virtual void forget_bad() = 0;
  virtual void look(const float* values, std::size_t count, std::uint32_t index) = 0;
  virtual std::optional<std::uint32_t> bad(bool waiting) = 0;
  virtual void wait() = 0;
};

std::unique_ptr<DeviceMemory> open_host();
// Defined where this library was built with CUDA.
std::unique_ptr<DeviceMemory> open_cuda(void* stream);

}  // namespace flowblending::detail
