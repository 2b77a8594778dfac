// Entry points: memory, pools and copies.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "handles.hpp"

namespace stand_in {
namespace {

std::mutex pinned_mutex;
std::map<CUdeviceptr, std::size_t> pinned;

bool is_pinned(CUdeviceptr address) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  const auto after = pinned.upper_bound(address);
  return after != pinned.begin() && address < std::prev(after)->first + std::prev(after)->second;
}

Pool* pool_of(CUmemoryPool handle) { return reinterpret_cast<Pool*>(handle); }

// What has been freed in some stream's order may still be held: everything runs before the memory is said to be full.
CUresult take_or_wait(int device, std::size_t bytes, Pool* pool, CUdeviceptr* address) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (take(device, bytes, pool, address) == CUDA_SUCCESS) return CUDA_SUCCESS;
  finish_device(device);
  if (pool) trim(pool, 0);
  return take(device, bytes, pool, address);
}

// A copy between any two places. Pageable host memory is read before the call returns, and written when it returns, as
// the documentation of the driver API says of it ("API synchronization behavior").
CUresult copy(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return CUDA_SUCCESS;
  const bool to_device = on_device(to), from_device = on_device(from);
  const std::string direction = std::string(from_device ? "D" : "H") + "to" + (to_device ? "D" : "H");
  const bool pageable_source = !from_device && !is_pinned(from), pageable_target = !to_device && !is_pinned(to);
  if (stream.graph && (pageable_source || pageable_target)) {
    stream.broken = true;
    fault("a copy of pageable memory while a stream is captured");
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  std::shared_ptr<std::vector<char>> staged;
  if (pageable_source) {
    const char* first = reinterpret_cast<const char*>(from);
    staged = std::make_shared<std::vector<char>>(first, first + bytes);
  }
  Operation operation;
  operation.entry = entry("copy", direction, bytes, to);
  operation.run = [=, &stream] {
    // A copy may go from one GPU to the other.
    const auto place = [&](CUdeviceptr address, bool device) {
      return device ? alias(address, bytes, device_of(address), "copy " + direction) : reinterpret_cast<void*>(address);
    };
    const void* source = staged ? staged->data() : place(from, from_device);
    void* target = place(to, to_device);
    if (source && target) std::memmove(target, source, bytes);
    return source && target;
  };
  if (const CUresult bad = push(stream, std::move(operation))) return bad;
  if (pageable_target) finish(stream);
  return sticky();
}

CUresult copy_async(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  return stream ? copy(to, from, bytes, *stream) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult copy_now(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
  if (const CUresult bad = ready()) return bad;
  if (const CUresult bad = unsafe_call("cuMemcpy")) return bad;
  Stream& stream = *stream_of(nullptr, current_device());
  const CUresult result = copy(to, from, bytes, stream);
  finish(stream);
  return result;
}

}  // namespace

STAND_IN_API CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  if (const CUresult bad = ready()) return bad;
  *total = limit(current_device());
  *free = *total - reserved(current_device());
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
  if (const CUresult bad = ready()) return bad;
  if (const CUresult bad = unsafe_call("cuMemAlloc")) return bad;
  const CUresult result = take_or_wait(current_device(), bytes, nullptr, address);
  write(entry("alloc", "device", bytes, result ? 0 : *address));
  return result;
}

STAND_IN_API CUresult cuMemFree_v2(CUdeviceptr address) {
  if (address == 0) return CUDA_SUCCESS;
  if (const CUresult bad = unsafe_call("cuMemFree")) return bad;
  for (int device = 0; device < kDevices; ++device) finish_device(device);
  write(entry("freed", "", 0, address));
  return give(address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

STAND_IN_API CUresult cuMemAllocFromPoolAsync(CUdeviceptr* address, std::size_t bytes, CUmemoryPool handle,
                                              CUstream stream_handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(stream_handle, current_device());
  if (!stream || !is_pool(pool_of(handle))) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->device != current_device()) return CUDA_ERROR_INVALID_CONTEXT;
  if (stream->graph) {  // CUDA would make it a node of the graph, with an address of its own: nothing here wants that
    stream->broken = true;
    fault("an allocation while its stream is captured");
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  const CUresult result = take_or_wait(pool_of(handle)->device, bytes, pool_of(handle), address);
  Entry made = entry("alloc", "pool", bytes, result ? 0 : *address);
  made.device = stream->device;
  made.stream = stream->id;
  write(made);
  return result;
}

STAND_IN_API CUresult cuMemAllocAsync(CUdeviceptr* address, std::size_t bytes, CUstream stream) {
  if (const CUresult bad = ready()) return bad;
  return cuMemAllocFromPoolAsync(address, bytes, reinterpret_cast<CUmemoryPool>(default_pool(current_device())), stream);
}

STAND_IN_API CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  if (sticky()) return sticky();
  Stream* stream = stream_of(handle, std::max(current_device(), 0));
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->graph) {  // CUDA would make it a node of the graph, which frees the memory again with every launch
    stream->broken = true;
    fault("memory is freed while its stream is captured");
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  Operation operation;
  operation.entry = entry("free", "", 0, address);
  operation.run = [=] {
    write(entry("freed", "", 0, address));
    const bool good = give(address);
    if (!good) fault("memory that is not allocated is freed");
    return good;
  };
  return push(*stream, std::move(operation));
}

STAND_IN_API CUresult cuMemHostAlloc(void** address, std::size_t bytes, unsigned) {
  *address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  write(entry("alloc", "pinned", bytes, reinterpret_cast<CUdeviceptr>(*address)));
  std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned[reinterpret_cast<CUdeviceptr>(*address)] = bytes;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemFreeHost(void* address) {
  for (int device = 0; device < kDevices; ++device) finish_device(device);
  std::lock_guard<std::mutex> lock(pinned_mutex);
  if (!pinned.erase(reinterpret_cast<CUdeviceptr>(address))) return CUDA_ERROR_INVALID_VALUE;
  std::free(address);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  *pool = reinterpret_cast<CUmemoryPool>(default_pool(device));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) {
  return cuDeviceGetDefaultMemPool(pool, device);
}

STAND_IN_API CUresult cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* properties) {
  if (properties->location.id < 0 || properties->location.id >= kDevices) return CUDA_ERROR_INVALID_VALUE;
  *pool = reinterpret_cast<CUmemoryPool>(make_pool(properties->location.id));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemPoolDestroy(CUmemoryPool pool) {
  if (!is_pool(pool_of(pool))) return CUDA_ERROR_INVALID_VALUE;
  destroy_pool(pool_of(pool));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemPoolTrimTo(CUmemoryPool pool, std::size_t keep) {
  if (!is_pool(pool_of(pool))) return CUDA_ERROR_INVALID_VALUE;
  write(entry("trim", "", keep));
  trim(pool_of(pool), keep);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  if (!is_pool(pool_of(pool))) return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
    pool_of(pool)->threshold = *static_cast<std::uint64_t*>(value);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  if (!is_pool(pool_of(handle))) return CUDA_ERROR_INVALID_VALUE;
  const Pool& pool = *pool_of(handle);
  const auto tell = [value](std::uint64_t bytes) { *static_cast<std::uint64_t*>(value) = bytes; };
  switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: tell(pool.threshold); break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: tell(pool.reserved); break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: tell(pool.reserved_high); break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: tell(pool.used); break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: tell(pool.used_high); break;
    default: *static_cast<int*>(value) = 1;
  }
  return CUDA_SUCCESS;
}

// Every GPU may use its own memory, and none another's.
STAND_IN_API CUresult cuMemPoolSetAccess(CUmemoryPool pool, const void*, std::size_t) {
  return is_pool(pool_of(pool)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

STAND_IN_API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  const int device = device_of(address);
  if (device < 0 && !is_pinned(address)) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(value) = device < 0 ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(value) = std::max(device, 0); break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *static_cast<unsigned*>(value) = 0; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr*>(value) = address; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuMemGetAddressRange_v2(CUdeviceptr* first, std::size_t* bytes, CUdeviceptr address) {
  return block_of(address, first, bytes) ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

STAND_IN_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
  return copy_async(to, reinterpret_cast<CUdeviceptr>(from), bytes, stream);
}
STAND_IN_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  return copy_async(reinterpret_cast<CUdeviceptr>(to), from, bytes, stream);
}
STAND_IN_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  return copy_async(to, from, bytes, stream);
}
STAND_IN_API CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  return copy_async(to, from, bytes, stream);
}
STAND_IN_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t bytes) {
  return copy_now(to, reinterpret_cast<CUdeviceptr>(from), bytes);
}
STAND_IN_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, std::size_t bytes) {
  return copy_now(reinterpret_cast<CUdeviceptr>(to), from, bytes);
}
STAND_IN_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
  return copy_now(to, from, bytes);
}

STAND_IN_API CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, std::size_t count, CUstream handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  Operation operation;
  operation.entry = entry("memset", "", 4 * count, address);
  operation.run = [=] {
    void* found = alias(address, 4 * count, stream->device, "memset");
    if (found) std::fill_n(static_cast<unsigned*>(found), count, value);
    return found != nullptr;
  };
  return push(*stream, std::move(operation));
}

}  // namespace stand_in
