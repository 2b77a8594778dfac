// From a bundle, a program and an embeddings file to latents:
//
//     fb-run BUNDLE --prompt "A cat" --emit-program program.json --emit-inputs inputs.safetensors
//     sample BUNDLE program.json inputs.safetensors latents.npy [--cuda]
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "flowblending/files.hpp"
#include "flowblending/flowblending.hpp"

namespace fb = flowblending;

static void check(const fb::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

int main(int count, char** words) {
  if (count < 5) {
    std::fprintf(stderr, "usage: %s BUNDLE PROGRAM INPUTS LATENTS [--cuda]\n", words[0]);
    return 2;
  }
  auto bundle = fb::Bundle::open(words[1]);
  check(bundle.status());
  auto arrays = fb::read_safetensors(words[3]);
  check(arrays.status());

  fb::SamplerOptions options;
  if (count > 5 && std::strcmp(words[5], "--cuda") == 0) options.device = fb::Device::cuda;
  auto sampler = fb::Sampler::create(*bundle, options);
  check(sampler.status());
  check(sampler->load(words[2]));

  for (const fb::InputInfo& input : sampler->inputs()) {
    const auto found = arrays->find(input.branch + "." + input.name);
    if (found == arrays->end()) {
      std::fprintf(stderr, "%s holds no %s.%s\n", words[3], input.branch.c_str(), input.name.c_str());
      return 1;
    }
    check(sampler->set_input(input.branch, input.name, found->second.view()));
  }

  const auto [channels, frames, height, width] = sampler->latent_shape();
  const std::vector<std::int64_t> shape = {1, channels, frames, height, width};
  const std::vector<std::int64_t> own = {1, channels, sampler->result_shape()[1], height, width};
  const auto noise = arrays->find("latents");
  if (noise == arrays->end() || noise->second.dtype != fb::DType::float32 || noise->second.shape != shape) {
    std::fprintf(stderr, "%s holds no float32 latents of the program's size\n", words[3]);
    return 1;
  }
  std::vector<float> latents(static_cast<std::size_t>(channels * own[2] * height * width));
  check(sampler->sample(noise->second.floats(), latents.data(), [](const fb::StepEvent& step) {
    std::printf("step %d/%d  %s  %.3f s\n", step.index + 1, step.steps, step.model, step.seconds);
    return true;
  }));
  check(fb::write_npy(words[4], latents.data(), own));
  return 0;
}
