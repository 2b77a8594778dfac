// The C interface: every function catches everything, and leaves its reason in a text of the calling thread.
#include <algorithm>
#include <new>
#include <string>

#include "failure.hpp"
#include "flowblending/flowblending.h"
#include "flowblending/flowblending.hpp"

using flowblending::Code;
using flowblending::Status;

struct fb_bundle {
  flowblending::Bundle bundle;
};
struct fb_sampler {
  flowblending::Sampler sampler;
};

namespace {

constexpr int kMostDimensions = 8;

thread_local std::string last_error;

int report(const Status& status) noexcept {
  try {
    last_error = status.message();
  } catch (...) {
    last_error.clear();
  }
  return static_cast<int>(status.code());
}

template <typename Action>
int call(Action&& action) noexcept {
  return report(flowblending::detail::guarded(std::forward<Action>(action)));
}

void check(const Status& status) {
  if (!status.ok()) throw flowblending::detail::Failure(status.code(), status.message());
}

void need(bool given, const char* what) {
  if (!given)
    flowblending::detail::fail(Code::invalid_argument, what,
                               " was expected, but the pointer is null or the number unknown.");
}

int tell_shape(const fb_sampler* sampler, int64_t shape[4],
               std::array<std::int64_t, 4> (flowblending::Sampler::*which)() const noexcept) {
  return call([&] {
    need(sampler != nullptr && shape != nullptr, "A sampler and memory for four sizes");
    const auto sizes = (sampler->sampler.*which)();
    if (sizes[0] == 0)
      flowblending::detail::fail(Code::invalid_argument, "No program was loaded; call fb_sampler_load first.");
    std::copy(sizes.begin(), sizes.end(), shape);
  });
}

}  // namespace

int fb_abi_version(void) { return FB_ABI_VERSION; }

const char* fb_last_error(void) { return last_error.c_str(); }

fb_bundle* fb_open(const char* folder, int verify) {
  fb_bundle* made = nullptr;
  (void)call([&] {
    need(folder != nullptr, "A folder");
    need(verify == FB_VERIFY_SIZES || verify == FB_VERIFY_CHECKSUMS, "A kind of verification");
    auto bundle = flowblending::Bundle::open(
        folder, verify == FB_VERIFY_SIZES ? flowblending::Verify::sizes : flowblending::Verify::checksums);
    check(bundle.status());
    made = new fb_bundle{std::move(*bundle)};
  });
  return made;
}

const char* fb_bundle_id(const fb_bundle* bundle) {
  const char* id = nullptr;
  (void)call([&] {
    need(bundle != nullptr, "A bundle");
    id = bundle->bundle.id().c_str();
  });
  return id;
}

int fb_latent_shape(const fb_bundle* bundle, int64_t shape[4]) {
  return call([&] {
    need(bundle != nullptr && shape != nullptr, "A bundle and memory for four sizes");
    const auto sizes = bundle->bundle.latent_shape();
    std::copy(sizes.begin(), sizes.end(), shape);
  });
}

void fb_close(fb_bundle* bundle) { delete bundle; }

fb_sampler* fb_sampler_create(const fb_bundle* bundle, int device, void* stream, int threads) {
  fb_sampler* made = nullptr;
  (void)call([&] {
    need(bundle != nullptr, "A bundle");
    need(device == FB_CPU || device == FB_CUDA, "A device");
    flowblending::SamplerOptions options;
    options.device = device == FB_CPU ? flowblending::Device::cpu : flowblending::Device::cuda;
    options.stream = stream;
    options.threads = threads;
    auto sampler = flowblending::Sampler::create(bundle->bundle, options);
    check(sampler.status());
    made = new fb_sampler{std::move(*sampler)};
  });
  return made;
}

int fb_sampler_load(fb_sampler* sampler, const char* program) {
  return call([&] {
    need(sampler != nullptr && program != nullptr, "A sampler and a program");
    check(sampler->sampler.load(program));
  });
}

int fb_sampler_latent_shape(const fb_sampler* sampler, int64_t shape[4]) {
  return tell_shape(sampler, shape, &flowblending::Sampler::latent_shape);
}

int fb_sampler_result_shape(const fb_sampler* sampler, int64_t shape[4]) {
  return tell_shape(sampler, shape, &flowblending::Sampler::result_shape);
}

int fb_sampler_inputs(const fb_sampler* sampler) {
  int count = -1;
  (void)call([&] {
    need(sampler != nullptr, "A sampler");
    count = static_cast<int>(sampler->sampler.inputs().size());
  });
  return count;
}

int fb_sampler_input(const fb_sampler* sampler, int index, const char** branch, const char** name, int* dtype,
                     int64_t* shape, int* rank) {
  return call([&] {
    need(sampler != nullptr && branch && name && dtype && shape && rank, "A sampler and memory for every answer");
    const auto& inputs = sampler->sampler.inputs();
    need(index >= 0 && static_cast<std::size_t>(index) < inputs.size(), "The index of an input");
    const auto& input = inputs[static_cast<std::size_t>(index)];
    *branch = input.branch.c_str();
    *name = input.name.c_str();
    *dtype = static_cast<int>(input.dtype);
    *rank = static_cast<int>(input.shape.size());
    std::copy(input.shape.begin(), input.shape.end(), shape);
  });
}

int fb_sampler_set(fb_sampler* sampler, const char* branch, const char* name, const void* data, int dtype,
                   const int64_t* shape, int rank) {
  return call([&] {
    need(sampler != nullptr && branch && name && shape, "A sampler, a branch, a name and a shape");
    need(rank >= 0 && rank <= kMostDimensions, "A number of dimensions up to 8");
    need(dtype >= FB_FLOAT32 && dtype <= FB_INT32, "A type");
    const flowblending::TensorView view{data, static_cast<flowblending::DType>(dtype), {shape, shape + rank}};
    check(sampler->sampler.set_input(branch, name, view));
  });
}

int fb_sample(fb_sampler* sampler, const float* noise, float* latents, fb_on_step on_step, void* user) {
  return call([&] {
    need(sampler != nullptr, "A sampler");
    flowblending::OnStep told;
    if (on_step != nullptr) {
      told = [on_step, user](const flowblending::StepEvent& step) {
        return on_step(step.index, step.steps, step.model, step.seconds, user) == 0;
      };
    }
    check(sampler->sampler.sample(noise, latents, told));
  });
}

void fb_sampler_destroy(fb_sampler* sampler) { delete sampler; }
