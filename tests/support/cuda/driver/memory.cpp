#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "journal.hpp"

namespace stand_in {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kSpace = std::size_t{1} << 40;  // of addresses, for as long as the process lives

struct Block {
  std::size_t bytes;
  std::size_t taken;  // rounded up
  int device;
  Pool* pool;
  char* pages;  // of the alias
  std::size_t length;
};

struct Spaces {
  char* device;
  char* host;
  std::size_t next = kPage;
};

std::recursive_mutex mutex;
std::map<CUdeviceptr, Block> blocks;
std::set<Pool*> pools;
std::uint64_t plain[kDevices], high[kDevices];
std::uint64_t limits[kDevices] = {std::uint64_t{8} << 30, std::uint64_t{8} << 30};

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

char* reserve() {
  void* found = mmap(nullptr, kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) {
    std::perror("stand-in: no address space");
    std::abort();
  }
  return static_cast<char*>(found);
}

Spaces& spaces() {
  static Spaces both{reserve(), reserve()};
  return both;
}

Pool* new_pool(int device) {
  Pool* made = new Pool;
  made->device = device;
  pools.insert(made);
  return made;
}

// The block around an address, or null.
const std::pair<const CUdeviceptr, Block>* find(CUdeviceptr address) {
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return nullptr;
  const auto& found = *std::prev(after);
  return address < found.first + found.second.bytes ? &found : nullptr;
}

std::string hex(CUdeviceptr address) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", address);
  return text;
}

}  // namespace

Pool* default_pool(int device) {
  static Pool* const made[kDevices] = {new_pool(0), new_pool(1)};
  return made[device];
}

Pool* make_pool(int device) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  return new_pool(device);
}

bool is_pool(const Pool* pool) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  return pools.count(const_cast<Pool*>(pool)) != 0;
}

void destroy_pool(Pool* pool) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  // What is allocated from it lives on, and is given back one by one.
  pool->threshold = 0;
  trim(pool, 0);
  if (pool->used == 0) {
    pools.erase(pool);
    delete pool;
  }
}

void trim(Pool* pool, std::uint64_t keep) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  pool->reserved = std::max(pool->used, std::min(pool->reserved, keep));
}

void trim_all() {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  for (Pool* each : pools) trim(each, each->threshold);
}

CUresult take(int device, std::size_t bytes, Pool* pool, CUdeviceptr* address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const std::size_t taken = round_up(bytes, kAlignment);
  const std::uint64_t spare = pool ? pool->reserved - pool->used : 0;
  const std::uint64_t more = taken > spare ? taken - spare : 0;
  if (reserved(device) + more > limits[device]) return CUDA_ERROR_OUT_OF_MEMORY;
  Spaces& space = spaces();
  const std::size_t length = round_up(taken, kPage);
  if (space.next + length + kPage > kSpace) return CUDA_ERROR_OUT_OF_MEMORY;
  char* pages = space.host + space.next;
  if (mprotect(pages, length, PROT_READ | PROT_WRITE)) return CUDA_ERROR_OUT_OF_MEMORY;
  const std::size_t offset = space.next + length - taken;
  *address = reinterpret_cast<CUdeviceptr>(space.device) + offset;
  std::memset(pages, 0xFF, length);
  blocks[*address] = {bytes, taken, device, pool, pages, length};
  space.next += length + kPage;
  if (pool) {
    pool->used += taken;
    pool->used_high = std::max(pool->used_high, pool->used);
    pool->reserved += more;
    pool->reserved_high = std::max(pool->reserved_high, pool->reserved);
  } else {
    plain[device] += taken;
  }
  high[device] = std::max(high[device], used(device));
  return CUDA_SUCCESS;
}

bool give(CUdeviceptr address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto found = blocks.find(address);
  if (found == blocks.end()) return false;
  const Block block = found->second;
  blocks.erase(found);
  madvise(block.pages, block.length, MADV_DONTNEED);
  mprotect(block.pages, block.length, PROT_NONE);
  if (block.pool)
    block.pool->used -= block.taken;
  else
    plain[block.device] -= block.taken;
  return true;
}

bool on_device(CUdeviceptr address) {
  const auto first = reinterpret_cast<CUdeviceptr>(spaces().device);
  return address >= first && address < first + kSpace;
}

int device_of(CUdeviceptr address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto* found = find(address);
  return found ? found->second.device : -1;
}

bool block_of(CUdeviceptr address, CUdeviceptr* first, std::size_t* bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto* found = find(address);
  if (!found) return false;
  *first = found->first;
  *bytes = found->second.bytes;
  return true;
}

void* alias(CUdeviceptr address, std::size_t bytes, int device, const std::string& user) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto* found = on_device(address) ? find(address) : nullptr;
  std::string why;
  if (!on_device(address))
    why = "is not memory of a device";
  else if (!found)
    why = "is not in a living block";
  else if (address + bytes > found->first + found->second.bytes)
    why = "goes beyond its block of " + std::to_string(found->second.bytes) + " bytes at " + hex(found->first);
  else if (found->second.device != device)
    why = "is on GPU " + std::to_string(found->second.device) + ", and the stream on GPU " + std::to_string(device);
  if (!why.empty()) {
    fault(user + ": [" + hex(address) + ", +" + std::to_string(bytes) + ") " + why);
    return nullptr;
  }
  return spaces().host + (address - reinterpret_cast<CUdeviceptr>(spaces().device));
}

bool is_alias(const void* address) {
  const char* host = spaces().host;
  return address >= host && address < host + kSpace;
}

std::uint64_t used(int device) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  std::uint64_t sum = plain[device];
  for (const Pool* each : pools)
    if (each->device == device) sum += each->used;
  return sum;
}

std::uint64_t reserved(int device) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  std::uint64_t sum = plain[device];
  for (const Pool* each : pools)
    if (each->device == device) sum += each->reserved;
  return sum;
}

std::uint64_t used_high(int device) { return high[device]; }
std::uint64_t limit(int device) { return limits[device]; }

void set_limit(int device, std::uint64_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  for (Pool* each : pools) trim(each, 0);
  limits[device] = bytes;
}

void forget_high(int device) { high[device] = used(device); }

}  // namespace stand_in
