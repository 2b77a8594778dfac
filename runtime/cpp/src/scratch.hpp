// Memory that the engines of one stream use in turns: calls follow one another, and none finds anything there that
// another has left. As large as the call that takes the most.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "device.hpp"

namespace flowblending::detail {

class Scratch {
 public:
  // `allocate` gives memory that goes, like what follows, in the stream's order.
  explicit Scratch(std::function<Memory(std::size_t)> allocate) : allocate_(std::move(allocate)) {}

  // Has at least so many bytes. The memory moves where it was smaller: whoever has its address asks for it again.
  void reserve(std::size_t bytes) {
    if (bytes <= size_) return;
    size_ = 0;
    memory_.reset();  // before, not beside, what takes its place
    memory_ = allocate_(bytes);
    size_ = bytes;
  }

  void* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  std::function<Memory(std::size_t)> allocate_;
  Memory memory_;
  std::size_t size_ = 0;
};

}  // namespace flowblending::detail
