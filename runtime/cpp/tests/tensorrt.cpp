// What the TensorRT back end says without a GPU, and of a bad plan: tensorrt FILE
#include <cstdio>

#include "engine.hpp"
#include "failure.hpp"

using namespace flowblending::detail;

int main(int count, char** words) {
  if (count != 2) return 2;
  GraphSpec spec;
  spec.name = "large";
  Scratch scratch([](std::size_t) { return Memory(); });
  const auto plan = guarded([&] { (void)open_tensorrt(words[1], spec, nullptr, scratch); });
  std::printf("plan: %s\n", plan.message().c_str());
  const auto device = guarded([&] { (void)open_cuda(nullptr); });
  std::printf("device: %s\n", device.message().c_str());
  return 0;
}
