// Entry points: devices and contexts.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <vector>

#include "handles.hpp"

namespace stand_in {
namespace {

bool initialised = false;
int retained[kDevices];
char contexts[kDevices];  // their addresses are the primary contexts' handles

thread_local std::vector<CUcontext> stack;

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(&contexts[device]); }
int device_of_context(CUcontext context) { return static_cast<int>(reinterpret_cast<char*>(context) - contexts); }
bool is_context(CUcontext context) {
  const int device = device_of_context(context);
  return device >= 0 && device < kDevices;
}

// How many GPUs CUDA_VISIBLE_DEVICES shows: those before the first that is none. They are all alike, so that it does not
// matter which.
int count_visible() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) return kDevices;
  std::istringstream list(visible);
  int count = 0;
  for (std::string number; std::getline(list, number, ',') && count < kDevices; ++count)
    if (number.size() != 1 || number[0] < '0' || number[0] >= '0' + kDevices) break;
  return count;
}

int visible_devices() {
  static const int count = count_visible();
  return count;
}

bool is_device(CUdevice device) { return device >= 0 && device < visible_devices(); }

}  // namespace

int current_device() { return stack.empty() ? -1 : device_of_context(stack.back()); }

CUresult ready() {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  return sticky();
}

STAND_IN_API CUresult cuInit(unsigned) {
  if (visible_devices() == 0) return CUDA_ERROR_NO_DEVICE;
  initialised = true;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDeviceGetCount(int* count) {
  *count = visible_devices();
  return initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

STAND_IN_API CUresult cuDeviceGet(CUdevice* device, int index) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (!is_device(index)) return CUDA_ERROR_INVALID_DEVICE;
  *device = index;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  std::snprintf(name, static_cast<std::size_t>(length), "Stand-in %d", device);
  return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

STAND_IN_API CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  std::memset(uuid, 0, sizeof *uuid);
  uuid->bytes[0] = static_cast<char>(device + 1);
  return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

STAND_IN_API CUresult cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = limit(device);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = kMajor; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = kMinor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = 0x7fffffff; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 128; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  retained[device] += 1;
  *context = context_of(device);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  if (!is_device(device) || retained[device] == 0) return CUDA_ERROR_INVALID_CONTEXT;
  retained[device] -= 1;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *flags = 0;
  *active = retained[device] > 0;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxGetCurrent(CUcontext* context) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  *context = stack.empty() ? nullptr : stack.back();
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxSetCurrent(CUcontext context) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (context && !is_context(context)) return CUDA_ERROR_INVALID_CONTEXT;
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(context);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxPushCurrent_v2(CUcontext context) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (!context || !is_context(context)) return CUDA_ERROR_INVALID_CONTEXT;
  stack.push_back(context);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxGetDevice(CUdevice* device) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *device = current_device();
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxSynchronize() {
  if (const CUresult bad = ready()) return bad;
  if (const CUresult bad = unsafe_call("cuCtxSynchronize")) return bad;
  write(entry("sync", "context"));
  finish_device(current_device());
  trim_all();
  return sticky();
}

// The tables behind it are private to NVIDIA's libraries: whoever needs them (libcudart does) does not run here.
STAND_IN_API CUresult cuGetExportTable(const void** table, const CUuuid*) {
  static const std::size_t empty[64] = {16};
  *table = empty;
  return CUDA_SUCCESS;
}

}  // namespace stand_in
