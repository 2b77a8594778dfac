// The CPU as a device.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "device.hpp"
#include "failure.hpp"

namespace flowblending::detail {
namespace {

// Numbers worked on at a time: few enough to stay in the first cache.
constexpr std::size_t kBlock = 4096;

class HostMark : public Mark {
 public:
  void record() override { time_ = std::chrono::steady_clock::now(); }
  bool reached() override { return true; }
  void wait() override {}
  double seconds_since(const Mark& earlier) const override {
    return std::chrono::duration<double>(time_ - static_cast<const HostMark&>(earlier).time_).count();
  }

 private:
  std::chrono::steady_clock::time_point time_;
};

// The sum of squared distances to the mean, in one pass: distances are taken to the first number, which is as near to the
// mean as the others are, and the sum is exactly 0 where all are equal.
double spread_of(const float* values, std::size_t count) {
  double total = 0, squares = 0;
  for (std::size_t start = 0; start < count; start += kBlock) {
    double part = 0, part_squares = 0;
    for (std::size_t i = start; i < std::min(count, start + kBlock); ++i) {
      const double distance = static_cast<double>(values[i]) - static_cast<double>(values[0]);
      part += distance;
      part_squares += distance * distance;
    }
    total += part;
    squares += part_squares;
  }
  return squares - total * total / static_cast<double>(count);
}

class Host : public DeviceMemory {
 public:
  flowblending::Device kind() const override { return flowblending::Device::cpu; }
  int index() const override { return 0; }
  void* stream() const override { return nullptr; }
  std::string architecture() const override { return ""; }

  Memory allocate(std::size_t bytes) override {
    const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    void* memory = rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
    if (memory == nullptr) {
      fail(Code::unavailable, "There is not enough memory for ", bytes, " bytes; use a bundle for a smaller size.");
    }
    return Memory(memory, &std::free);
  }

  void copy(void* to, const void* from, std::size_t bytes) override {
    if (to != from) std::memmove(to, from, bytes);
  }

  void copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes,
                 std::size_t rows) override {
    for (std::size_t row = 0; row < rows; ++row)
      copy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, bytes);
  }

  void mix(float* out, std::size_t count, const std::vector<std::pair<float, const float*>>& terms) override {
    for (std::size_t start = 0; start < count; start += kBlock) {
      const std::size_t size = std::min(kBlock, count - start);
      float* block = out + start;
      const auto& [first, from] = terms.front();
      for (std::size_t i = 0; i < size; ++i) block[i] = first * from[start + i];
      for (std::size_t term = 1; term < terms.size(); ++term) {
        const auto& [factor, values] = terms[term];
        for (std::size_t i = 0; i < size; ++i) block[i] += factor * values[start + i];
      }
    }
  }

  void rescale(float* out, const float* reference, std::size_t count, double share) override {
    const double spread = spread_of(out, count);
    if (!(spread > 0)) return;
    const double ratio = std::sqrt(std::max(spread_of(reference, count), 0.0) / spread);
    const auto factor = static_cast<float>(share * ratio + 1.0 - share);
    for (std::size_t i = 0; i < count; ++i) out[i] *= factor;
  }

  std::unique_ptr<Mark> mark() override { return std::make_unique<HostMark>(); }

  void forget_bad() override { bad_.reset(); }
  void look(const float* values, std::size_t count, std::uint32_t index) override {
    if (bad_) return;
    if (!std::all_of(values, values + count, [](float value) { return std::isfinite(value); })) bad_ = index;
  }
  std::optional<std::uint32_t> bad(bool) override { return bad_; }
  void wait() override {}

 private:
  std::optional<std::uint32_t> bad_;
};

}  // namespace

std::unique_ptr<DeviceMemory> open_host() { return std::make_unique<Host>(); }

}  // namespace flowblending::detail
