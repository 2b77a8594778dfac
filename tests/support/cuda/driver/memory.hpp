// Device memory. A device address is one that the host cannot touch; what lies there is host memory elsewhere, its alias.
//
// Every block has pages of its own, ends where its last page ends (but for alignment), and is followed by a page that
// nobody may touch. Addresses are never given out twice, and a block that has been freed cannot be touched any more. New
// memory is full of 0xFF: NaN for every floating-point type, -1 for integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda.hpp"

namespace stand_in {

constexpr int kDevices = 2;
constexpr std::size_t kAlignment = 512;  // of addresses, as real GPUs give them

// A stream-ordered pool: memory that it once took stays reserved until it is trimmed, or, above `threshold`, until the
// host waits for something.
struct Pool {
  int device = 0;
  std::uint64_t threshold = 0;
  std::uint64_t used = 0, used_high = 0;
  std::uint64_t reserved = 0, reserved_high = 0;
};

Pool* default_pool(int device);
Pool* make_pool(int device);
bool is_pool(const Pool* pool);
void destroy_pool(Pool* pool);
void trim(Pool* pool, std::uint64_t keep);
// What the driver does when the host has waited: pools give back what is above their thresholds.
void trim_all();

// CUDA_ERROR_OUT_OF_MEMORY where the device's limit does not allow it. `pool` is null for memory that is in none.
CUresult take(int device, std::size_t bytes, Pool* pool, CUdeviceptr* address);
// Whether there was such a block.
bool give(CUdeviceptr address);

bool on_device(CUdeviceptr address);
// The device of an address inside a living block, or -1.
int device_of(CUdeviceptr address);
// The living block around an address: its first address and size, or false.
bool block_of(CUdeviceptr address, CUdeviceptr* first, std::size_t* bytes);

// The alias of [address, address + bytes), or null with a fault said if it is not in one living block of the device.
void* alias(CUdeviceptr address, std::size_t bytes, int device, const std::string& user);

// For the handler of memory that may not be touched: whether a host address lies in the aliases.
bool is_alias(const void* address);

std::uint64_t used(int device);
std::uint64_t reserved(int device);
std::uint64_t used_high(int device);
std::uint64_t limit(int device);
void set_limit(int device, std::uint64_t bytes);
void forget_high(int device);

}  // namespace stand_in
