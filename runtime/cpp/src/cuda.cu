// A GPU as a device: the caller's stream, memory in that stream's order, and a few kernels.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "device.hpp"
#include "failure.hpp"

namespace flowblending::detail {
namespace {

constexpr int kTerms = 8;  // of one kernel; longer sums take several
constexpr unsigned int kThreads = 256;
constexpr std::size_t kMostBlocks = 4096;
constexpr std::uint32_t kNone = 0xffffffffu;
constexpr unsigned int kMoments = 4;  // numbers that a block of moments_kernel leaves

struct Terms {
  float factor[kTerms];
  const float* values[kTerms];
};

// One pass over memory for the whole sum. The output may be the first term, so nothing is __restrict__; products and
// sums are rounded apart, as on the CPU.
template <int Count>
__global__ void mix_kernel(float* out, std::size_t count, Terms terms) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    float sum = __fmul_rn(terms.factor[0], terms.values[0][i]);
#pragma unroll
    for (int term = 1; term < Count; ++term) {
      sum = __fadd_rn(sum, __fmul_rn(terms.factor[term], terms.values[term][i]));
    }
    out[i] = sum;
  }
}

__global__ void look_kernel(const float* values, std::size_t count, std::uint32_t index, std::uint32_t* bad) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  bool found = false;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    found = found || !isfinite(values[i]);
  }
  if (found) atomicMin(bad, index);
}

// The sum over a block of kThreads threads, told to all of them.
__device__ double block_sum(double value) {
  __shared__ double part[kThreads];
  part[threadIdx.x] = value;
  __syncthreads();
  for (unsigned int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  const double total = part[0];
  __syncthreads();
  return total;
}

// Of each block, for either slot: the sum and the sum of squares of the distances to its first number.
__global__ void moments_kernel(double* sums, std::size_t count, const float* a, const float* b) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  double found[kMoments] = {};
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const double x = static_cast<double>(a[i]) - static_cast<double>(a[0]);
    const double y = static_cast<double>(b[i]) - static_cast<double>(b[0]);
    found[0] += x;
    found[1] += x * x;
    found[2] += y;
    found[3] += y * y;
  }
  for (unsigned int each = 0; each < kMoments; ++each) {
    const double total = block_sum(found[each]);
    if (threadIdx.x == 0) sums[kMoments * blockIdx.x + each] = total;
  }
}

// Every block adds up the sums of kThreads blocks in the same order, so that all arrive at one factor.
__global__ void rescale_kernel(float* out, std::size_t count, const double* sums, double share) {
  double total[kMoments];
  for (unsigned int each = 0; each < kMoments; ++each) total[each] = block_sum(sums[kMoments * threadIdx.x + each]);
  const double spread = total[1] - total[0] * total[0] / static_cast<double>(count);
  const double wanted = total[3] - total[2] * total[2] / static_cast<double>(count);
  if (!(spread > 0)) return;
  const auto factor = static_cast<float>(share * sqrt((wanted > 0 ? wanted : 0.0) / spread) + 1.0 - share);
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    out[i] = __fmul_rn(factor, out[i]);
  }
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next call would report it again
  const bool memory = status == cudaErrorMemoryAllocation;
  fail(memory ? Code::unavailable : Code::failed, "The GPU failed while ", what, " (", cudaGetErrorString(status),
       memory ? "); stop other programs on it, or use a bundle for a smaller size."
              : "); run again, and look at the system's log.");
}

class CudaMark : public Mark {
 public:
  explicit CudaMark(cudaStream_t stream) : stream_(stream) {
    check(cudaEventCreateWithFlags(&event_, cudaEventBlockingSync), "making an event");
  }
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;
  ~CudaMark() override { (void)cudaEventDestroy(event_); }

  void record() override { check(cudaEventRecord(event_, stream_), "recording an event"); }
  bool reached() override {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    check(status, "sampling");
    return true;
  }
  void wait() override { check(cudaEventSynchronize(event_), "sampling"); }
  double seconds_since(const Mark& earlier) const override {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, static_cast<const CudaMark&>(earlier).event_, event_),
          "reading its clock");
    return static_cast<double>(milliseconds) / 1000.0;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t event_ = nullptr;
};

class Cuda : public DeviceMemory {
 public:
  explicit Cuda(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
      (void)cudaGetLastError();
      fail(Code::unavailable, "This needs an NVIDIA GPU, but none was found (",
           status == cudaSuccess ? "no device" : cudaGetErrorString(status),
           "); run it on a machine with one, or use an onnxruntime bundle on the CPU.");
    }
    int major = 0, minor = 0;
    check(cudaGetDevice(&device_), "choosing a device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "telling its kind");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), "telling its kind");
    architecture_ = "sm" + std::to_string(major) + std::to_string(minor);
    bad_ = allocate(sizeof(std::uint32_t));
    moments_ = allocate(kMoments * kThreads * sizeof(double));
  }

  flowblending::Device kind() const override { return flowblending::Device::cuda; }
  int index() const override { return device_; }
  void* stream() const override { return stream_; }
  std::string architecture() const override { return architecture_; }

  Memory allocate(std::size_t bytes) override {
    void* memory = nullptr;
    check(cudaMallocAsync(&memory, std::max<std::size_t>(bytes, 1), stream_), "reserving memory");
    const cudaStream_t stream = stream_;
    return Memory(memory, [stream](void* each) { (void)cudaFreeAsync(each, stream); });
  }

  void copy(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying");
  }

  void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes,
                 std::size_t rows) override {
    check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, rows, cudaMemcpyDefault, stream_), "copying");
  }

  void mix(float* out, std::size_t count, const std::vector<std::pair<float, const float*>>& terms) override {
    Terms some{};
    int held = 0;
    for (std::size_t next = 0; next < terms.size();) {
      for (; held < kTerms && next < terms.size(); ++held, ++next) {
        some.factor[held] = terms[next].first;
        some.values[held] = terms[next].second;
      }
      launch(out, count, some, held);
      // What was summed so far is the first term of what follows.
      some.factor[0] = 1.0f;
      some.values[0] = out;
      held = 1;
    }
  }

  void rescale(float* out, const float* reference, std::size_t count, double share) override {
    auto* sums = static_cast<double*>(moments_.get());
    moments_kernel<<<kThreads, kThreads, 0, stream_>>>(sums, count, out, reference);
    check(cudaGetLastError(), "starting a kernel");
    rescale_kernel<<<blocks(count), kThreads, 0, stream_>>>(out, count, sums, share);
    check(cudaGetLastError(), "starting a kernel");
  }

  std::unique_ptr<Mark> mark() override { return std::make_unique<CudaMark>(stream_); }

  void forget_bad() override {
    check(cudaMemsetAsync(bad_.get(), 0xff, sizeof(std::uint32_t), stream_), "clearing memory");
  }
  void look(const float* values, std::size_t count, std::uint32_t index) override {
    look_kernel<<<blocks(count), kThreads, 0, stream_>>>(values, count, index, static_cast<std::uint32_t*>(bad_.get()));
    check(cudaGetLastError(), "starting a kernel");
  }
  std::optional<std::uint32_t> bad(bool waiting) override {
    if (!waiting) return std::nullopt;
    std::uint32_t found = kNone;
    check(cudaMemcpyAsync(&found, bad_.get(), sizeof found, cudaMemcpyDeviceToHost, stream_), "copying");
    wait();
    return found == kNone ? std::nullopt : std::optional<std::uint32_t>(found);
  }
  void wait() override { check(cudaStreamSynchronize(stream_), "sampling"); }

 private:
  static unsigned int blocks(std::size_t count) {
    return static_cast<unsigned int>(std::clamp<std::size_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
  }

  void launch(float* out, std::size_t count, const Terms& terms, int held) {
    using Kernel = void (*)(float*, std::size_t, Terms);
    static constexpr Kernel kKernels[kTerms] = {mix_kernel<1>, mix_kernel<2>, mix_kernel<3>, mix_kernel<4>,
                                                mix_kernel<5>, mix_kernel<6>, mix_kernel<7>, mix_kernel<8>};
    const Kernel kernel = kKernels[held - 1];
    kernel<<<blocks(count), kThreads, 0, stream_>>>(out, count, terms);
    check(cudaGetLastError(), "starting a kernel");
  }

  cudaStream_t stream_;
  int device_ = 0;
  std::string architecture_;
  Memory bad_;
  Memory moments_;
};

}  // namespace

std::unique_ptr<DeviceMemory> open_cuda(void* stream) { return std::make_unique<Cuda>(stream); }

}  // namespace flowblending::detail
