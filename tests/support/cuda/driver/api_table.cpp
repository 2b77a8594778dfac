// Entry points by name, which is how cuda-bindings finds them; and what the driver calls its errors.
#include <cstring>
#include <string>

#include "handles.hpp"

// Their types do not matter here.
#define FUNCTIONS(each)                                                                                             \
  each(cuInit) each(cuDriverGetVersion) each(cuDeviceGetCount) each(cuDeviceGet) each(cuDeviceGetName)              \
  each(cuDeviceGetUuid_v2) each(cuDeviceTotalMem_v2) each(cuDeviceGetAttribute) each(cuDevicePrimaryCtxRetain)      \
  each(cuDevicePrimaryCtxRelease_v2) each(cuDevicePrimaryCtxGetState) each(cuCtxGetCurrent) each(cuCtxSetCurrent)   \
  each(cuCtxPushCurrent_v2) each(cuCtxPopCurrent_v2) each(cuCtxGetDevice) each(cuCtxGetStreamPriorityRange)         \
  each(cuCtxSynchronize) each(cuGetExportTable) each(cuMemGetInfo_v2) each(cuMemAlloc_v2) each(cuMemFree_v2)        \
  each(cuMemAllocFromPoolAsync) each(cuMemAllocAsync) each(cuMemFreeAsync) each(cuMemHostAlloc) each(cuMemFreeHost) \
  each(cuDeviceGetDefaultMemPool) each(cuDeviceGetMemPool) each(cuMemPoolCreate) each(cuMemPoolDestroy)             \
  each(cuMemPoolTrimTo) each(cuMemPoolSetAccess) each(cuMemPoolSetAttribute) each(cuMemPoolGetAttribute) each(cuPointerGetAttribute)         \
  each(cuMemGetAddressRange_v2) each(cuMemcpyHtoDAsync_v2) each(cuMemcpyDtoHAsync_v2) each(cuMemcpyDtoDAsync_v2)    \
  each(cuMemcpyAsync) each(cuMemcpyHtoD_v2) each(cuMemcpyDtoH_v2) each(cuMemcpyDtoD_v2) each(cuMemsetD32Async)      \
  each(cuStreamCreateWithPriority) each(cuStreamCreate) each(cuStreamDestroy_v2) each(cuStreamSynchronize)          \
  each(cuStreamQuery) each(cuStreamGetFlags) each(cuStreamGetPriority) each(cuStreamGetCtx) each(cuStreamGetDevice) \
  each(cuStreamWaitEvent) each(cuStreamIsCapturing) each(cuStreamBeginCapture_v2) each(cuStreamEndCapture)          \
  each(cuGraphInstantiateWithFlags) each(cuGraphInstantiateWithParams) each(cuGraphLaunch) each(cuGraphDestroy)     \
  each(cuGraphExecDestroy) each(cuGraphGetNodes) each(cuGraphNodeGetType) each(cuGraphEventRecordNodeGetEvent)      \
  each(cuGraphExecEventRecordNodeSetEvent) each(cuEventCreate) each(cuEventDestroy_v2)                              \
  each(cuEventRecordWithFlags) each(cuEventRecord) each(cuEventQuery) each(cuEventSynchronize)                      \
  each(cuEventElapsedTime_v2)                                                                                       \
  each(cuLibraryLoadData) each(cuLibraryUnload) each(cuLibraryGetKernel) each(cuKernelGetFunction)                  \
  each(cuLaunchKernelEx) each(cuLaunchKernel) each(cuLaunchHostFunc)

#define DECLARE(name) extern "C" void name();
FUNCTIONS(DECLARE)

namespace stand_in {
namespace {

struct Function {
  const char* name;
  void (*address)();
};

#define ROW(name) {#name, name},
const Function kFunctions[] = {FUNCTIONS(ROW)};

// CUDA's names have versions (cuMemAlloc_v2), which callers ask for without.
bool is_named(const Function& function, const std::string& name) {
  const std::string own = function.name;
  return own == name || own == name + "_v2";
}

struct Error {
  CUresult code;
  const char* name;
};

#define ERROR(name) {name, #name}
const Error kErrors[] = {ERROR(CUDA_SUCCESS), ERROR(CUDA_ERROR_INVALID_VALUE), ERROR(CUDA_ERROR_OUT_OF_MEMORY),
                         ERROR(CUDA_ERROR_NOT_INITIALIZED), ERROR(CUDA_ERROR_NO_DEVICE),
                         ERROR(CUDA_ERROR_INVALID_DEVICE), ERROR(CUDA_ERROR_INVALID_CONTEXT),
                         ERROR(CUDA_ERROR_INVALID_HANDLE), ERROR(CUDA_ERROR_ILLEGAL_STATE), ERROR(CUDA_ERROR_NOT_FOUND),
                         ERROR(CUDA_ERROR_NOT_READY), ERROR(CUDA_ERROR_ILLEGAL_ADDRESS),
                         ERROR(CUDA_ERROR_NOT_SUPPORTED), ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
                         ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED), ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
                         ERROR(CUDA_ERROR_CAPTURED_EVENT)};

}  // namespace

STAND_IN_API CUresult cuGetErrorName(CUresult code, const char** name) {
  for (const Error& each : kErrors) {
    if (each.code != code) continue;
    *name = each.name;
    return CUDA_SUCCESS;
  }
  *name = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}

STAND_IN_API CUresult cuGetErrorString(CUresult code, const char** text) { return cuGetErrorName(code, text); }

STAND_IN_API CUresult cuGetProcAddress_v2(const char* name, void** address, int, std::uint64_t,
                                          CUdriverProcAddressQueryResult* result) {
  *address = nullptr;
  const auto as_pointer = [](auto* function) { return reinterpret_cast<void*>(function); };
  if (std::strcmp(name, "cuGetProcAddress") == 0) *address = as_pointer(cuGetProcAddress_v2);
  if (std::strcmp(name, "cuGetErrorName") == 0) *address = as_pointer(cuGetErrorName);
  if (std::strcmp(name, "cuGetErrorString") == 0) *address = as_pointer(cuGetErrorString);
  for (const Function& each : kFunctions)
    if (is_named(each, name)) *address = as_pointer(each.address);
  if (result) *result = *address ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *address ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

STAND_IN_API CUresult cuGetProcAddress(const char* name, void** address, int version, std::uint64_t flags) {
  return cuGetProcAddress_v2(name, address, version, flags, nullptr);
}

}  // namespace stand_in
