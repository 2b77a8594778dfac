// Arrays in files: what `fb-run --emit-inputs` writes (safetensors), and numpy's .npy.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "flowblending/flowblending.hpp"

namespace flowblending {

// An array that owns its memory.
struct Array {
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  std::vector<unsigned char> bytes;

  TensorView view() const { return {bytes.data(), dtype, shape}; }
  const float* floats() const noexcept { return reinterpret_cast<const float*>(bytes.data()); }
};

// All arrays of a safetensors file by name. Types other than DType's are refused.
Result<std::map<std::string, Array>> read_safetensors(const std::string& path) noexcept;

// An array that numpy.save wrote: little-endian, in C order.
Result<Array> read_npy(const std::string& path) noexcept;

// float32 only; numpy.load reads it.
Status write_npy(const std::string& path, const float* data, const std::vector<std::int64_t>& shape) noexcept;

}  // namespace flowblending
