// One compiled model behind one interface, whatever library runs it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device.hpp"
#include "scratch.hpp"
#include "spec.hpp"

namespace flowblending::detail {

// Memory for an input or output of an engine, with its place in the specification.
struct BoundTensor {
  const TensorSpec* spec;
  Shape shape;
  void* data;
};

// A call whose memory is known: made once, enqueued any number of times.
class Call {
 public:
  virtual ~Call() = default;
  // Allocates nothing, waits for nothing.
  virtual void enqueue() = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  // `tensors` holds every input, then the output. The engine and all memory live as long as the call.
  virtual std::unique_ptr<Call> bind(std::vector<BoundTensor> tensors) = 0;
};

// Opens the engine of a component on a device, which lives as long as it, and so does the scratch memory of all engines.
std::unique_ptr<Engine> open_engine(const Manifest& manifest, const Component& component, DeviceMemory& device,
                                    Scratch& scratch, int threads);

std::unique_ptr<Engine> open_fake(const std::string& path, const GraphSpec& spec, DeviceMemory& device);
std::unique_ptr<Engine> open_onnxruntime(const std::string& path, const GraphSpec& spec, DeviceMemory& device,
                                         int threads);
// `stream` is a cudaStream_t.
std::unique_ptr<Engine> open_tensorrt(const std::string& path, const GraphSpec& spec, void* stream, Scratch& scratch);

std::vector<std::string> backend_names();

}  // namespace flowblending::detail
