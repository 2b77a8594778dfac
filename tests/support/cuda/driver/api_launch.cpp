// Entry points: libraries, kernels and functions of the host.
#include <cstring>
#include <set>

#include "handles.hpp"
#include "kernels.hpp"

namespace stand_in {
namespace {

// A loaded cubin: the names of its kernels, which are those of the sections with their code.
struct Library {
  std::set<std::string> kernels;
};

Handles<CUlibrary, Library> libraries;

template <class Value>
Value read(const unsigned char* bytes) {
  Value value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// Names of the sections of an ELF file of 64 bits (System V ABI, chapter 4); its size is not told.
std::set<std::string> kernels_of(const unsigned char* elf) {
  const auto table = read<std::uint64_t>(elf + 40);
  const auto size = read<std::uint16_t>(elf + 58), count = read<std::uint16_t>(elf + 60), names = read<std::uint16_t>(elf + 62);
  const auto section = [&](unsigned index) { return elf + table + std::uint64_t{size} * index; };
  const unsigned char* strings = elf + read<std::uint64_t>(section(names) + 24);
  std::set<std::string> found;
  for (unsigned index = 0; index < count; ++index) {
    const std::string name = reinterpret_cast<const char*>(strings + read<std::uint32_t>(section(index)));
    if (name.rfind(".text.", 0) == 0) found.insert(name.substr(6));
  }
  return found;
}

CUresult enqueue(const Kernel& kernel, unsigned grid, unsigned block, void** arguments, CUstream handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->device != current_device()) return CUDA_ERROR_INVALID_CONTEXT;
  if (grid == 0 || block == 0 || block > 1024) return CUDA_ERROR_INVALID_VALUE;
  Operation operation;
  operation.entry = entry("launch", kernel.name);
  operation.run = [name = kernel.name, launch = kernel.read(arguments), grid, block, device = stream->device] {
    const Thread thread = launch(device);
    return thread && run_grid(name, grid, block, thread);
  };
  return push(*stream, std::move(operation));
}

}  // namespace

STAND_IN_API CUresult cuLibraryLoadData(CUlibrary* library, const void* code, void*, void**, unsigned, void*, void**,
                                        unsigned) {
  const auto* elf = static_cast<const unsigned char*>(code);
  if (std::memcmp(elf, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_VALUE;
  auto loaded = std::make_shared<Library>();
  loaded->kernels = kernels_of(elf);
  *library = libraries.add(loaded);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuLibraryUnload(CUlibrary library) {
  return libraries.remove(library) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_API CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  const auto loaded = libraries.find(library);
  if (!loaded) return CUDA_ERROR_INVALID_HANDLE;
  const Kernel* found = loaded->kernels.count(name) ? find_kernel(name) : nullptr;
  if (!found) return CUDA_ERROR_NOT_FOUND;
  *kernel = reinterpret_cast<CUkernel>(const_cast<Kernel*>(found));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void**) {
  return enqueue(*reinterpret_cast<Kernel*>(function), config->gridDimX, config->blockDimX, arguments, config->hStream);
}

STAND_IN_API CUresult cuLaunchKernel(CUfunction function, unsigned grid, unsigned, unsigned, unsigned block, unsigned,
                                     unsigned, unsigned, CUstream stream, void** arguments, void**) {
  return enqueue(*reinterpret_cast<Kernel*>(function), grid, block, arguments, stream);
}

STAND_IN_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  Operation operation;
  operation.entry = entry("host");
  operation.run = [=] {
    function(data);
    return true;
  };
  return push(*stream, std::move(operation));
}

}  // namespace stand_in
