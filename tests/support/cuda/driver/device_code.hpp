// CUDA C++ for a CPU: as much of the dialect as this project's kernels use. `kernels.cpp` runs the threads of a block in
// turns, each up to the next __syncthreads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"

#define __global__
#define __device__ static
#define __shared__ static  // blocks run one after the other

using stand_in::blockDim;
using stand_in::blockIdx;
using stand_in::gridDim;
using stand_in::threadIdx;

inline void __syncthreads() { stand_in::wait_for_block(); }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline unsigned atomicMin(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address = std::min(before, value);
  return before;
}

using std::sqrt;
