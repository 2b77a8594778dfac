// What the public interface promises beside numbers: behaviour BUNDLE CASE OTHER SCRATCH RESCALED HELD
//
// CASE is of the bundle's default size, OTHER of another one of a profile that is a range, and HELD holds latents.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "expect.hpp"
#include "flowblending/files.hpp"
#include "flowblending/flowblending.hpp"

namespace fb = flowblending;

static void give_inputs(fb::Sampler& sampler, const std::string& folder) {
  for (const fb::InputInfo& input : sampler.inputs()) {
    auto array = fb::read_npy(folder + "/" + input.branch + "." + input.name + ".npy");
    expect(array.ok(), "inputs can be read");
    expect(sampler.set_input(input.branch, input.name, array->view()).ok(), "inputs are taken");
  }
}

static void sampling(const std::string& bundle_path, const std::string& folder) {
  auto bundle = fb::Bundle::open(bundle_path, fb::Verify::checksums);
  expect(bundle.ok(), bundle.status().message());
  fb::SamplerOptions options;
  options.stream = &options;
  refused(fb::Sampler::create(*bundle, options).status(), fb::Code::invalid_argument, "stream was given for the CPU");
  auto made = fb::Sampler::create(*bundle);
  fb::Sampler sampler = std::move(*made);
  auto noise = fb::read_npy(folder + "/latents.npy");
  const std::size_t count = noise->bytes.size() / sizeof(float);
  std::vector<float> latents(count, 7.0f), again(count), cancelled(count, 7.0f);

  refused(sampler.sample(noise->floats(), latents.data()), fb::Code::invalid_argument, "No program was loaded");
  expect(sampler.load(folder + "/program.json").ok(), "a program is loaded");
  refused(sampler.sample(noise->floats(), latents.data()), fb::Code::invalid_argument, "was not given");
  give_inputs(sampler, folder);
  refused(sampler.sample(nullptr, latents.data()), fb::Code::invalid_argument, "pointer is null");
  refused(sampler.set_input("cond", "colour", {}), fb::Code::invalid_argument, "no input colour of branch cond");
  refused(sampler.set_input("cond", "text", {latents.data(), fb::DType::float32, {1, 2}}), fb::Code::invalid_argument,
          "float32 [1, 2], but float32 [1, 3, 6] was expected");

  int told = 0, steps = 0;
  refused(sampler.sample(noise->floats(), cancelled.data(),
                         [&](const fb::StepEvent& step) {
                           expect(step.index == told++, "steps are told in order");
                           steps = step.steps;
                           refused(sampler.load("x"), fb::Code::invalid_argument, "is running");
                           return told < 2;
                         }),
          fb::Code::cancelled, "after step 2 of");
  expect(told == 2 && cancelled == std::vector<float>(count, 7.0f), "a cancelled run stops and leaves latents alone");
  refused(sampler.sample(noise->floats(), cancelled.data(),
                         [](const fb::StepEvent&) -> bool { throw std::runtime_error("x"); }),
          fb::Code::failed, "unexpected error");
  refused(sampler.sample(noise->floats(), cancelled.data(), [](const fb::StepEvent&) -> bool { throw 1; }),
          fb::Code::failed, "progress callback");

  told = 0;
  expect(sampler.sample(noise->floats(), latents.data(), [&](const fb::StepEvent&) { return ++told > 0; }).ok(),
         "runs after a cancel");
  expect(told == steps, "every step is told");
  again.assign(noise->floats(), noise->floats() + count);
  expect(sampler.sample(again.data(), again.data()).ok() && again == latents,
         "runs again, in place, with the same result");

  std::vector<float> bad(noise->floats(), noise->floats() + count);
  bad[3] = std::numeric_limits<float>::quiet_NaN();
  refused(sampler.sample(bad.data(), again.data()), fb::Code::failed,
          "The large model gave a non-finite velocity at step 1 of");
  refused(sampler.load(folder + "/none.json"), fb::Code::bad_file, "cannot be read");
  expect(sampler.sample(noise->floats(), again.data()).ok() && again == latents,
         "a program that cannot be loaded leaves the old one");
}

static std::size_t numbers(const std::array<std::int64_t, 4>& shape) {
  return static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]);
}

static std::vector<float> sampled(fb::Sampler& sampler, const std::string& folder) {
  expect(sampler.load(folder + "/program.json").ok(), "a program is loaded");
  give_inputs(sampler, folder);
  auto noise = fb::read_npy(folder + "/latents.npy");
  expect(noise->shape.size() == 5 && noise->bytes.size() == numbers(sampler.latent_shape()) * sizeof(float),
         "the sampler has the program's size");
  std::vector<float> latents(numbers(sampler.latent_shape()));
  expect(sampler.sample(noise->floats(), latents.data()).ok(), "a program of any size of the bundle's runs");
  return latents;
}

// One sampler, programs of two sizes in turn.
static void sizes(const std::string& bundle_path, const std::string& folder, const std::string& other) {
  using Shape = std::array<std::int64_t, 4>;
  auto bundle = fb::Bundle::open(bundle_path);
  expect(bundle->latent_shape() == Shape{4, 3, 2, 5}, "the default size is the first profile's");
  auto sampler = fb::Sampler::create(*bundle);
  expect(sampler->latent_shape() == Shape{}, "there is no size before a program");
  const auto first = sampled(*sampler, folder);
  expect(sampler->latent_shape() == Shape{4, 3, 2, 5}, "a program of the default size");
  const auto second = sampled(*sampler, other);
  expect(sampler->latent_shape() == Shape{4, 4, 3, 7}, "a program of another size");
  expect(bundle->latent_shape() == Shape{4, 3, 2, 5}, "the default size stays");
  expect(sampled(*sampler, folder) == first && sampled(*sampler, other) == second, "sizes do not disturb one another");
}

static void bundles(const std::string& bundle, const std::string& scratch) {
  const std::string manifest = compact(bundle + "/manifest.json");
  const auto open = [&](const std::string& content) {
    write(scratch + "/manifest.json", content);
    return fb::Bundle::open(scratch, fb::Verify::checksums).status();
  };
  for (const char* name : {"large.json", "small.json", "duo_high.json", "duo_low.json", "still.json", "moving.json"})
    write(scratch + "/" + name, text_of(bundle + "/" + name));
  expect(open(manifest).ok(), "a copy is a bundle");
  refused(open(with(manifest, R"("format":4)", R"("format":5)")), fb::Code::bad_file,
          "has format 5, but this library reads formats up to 4");
  expect(open(with(manifest, R"("format":4)", R"("format":3)")).ok(), "a bundle of the format before is read");
  refused(open(with(manifest, R"("format":4)", R"("format":0)")), fb::Code::bad_file, "damaged at format");
  // The first format had one size in place of profiles.
  const std::string first = with(manifest, R"("format":4)", R"("format":1)");
  refused(open(first), fb::Code::bad_file, "at geometry (it is missing)");
  const std::string one = R"("geometry":{"width":40,"height":16,"frames":9,"latent_shape":[4,3,2,5]},"profiles":[)";
  write(scratch + "/manifest.json", with(first, R"("profiles":[)", one));
  auto old = fb::Bundle::open(scratch, fb::Verify::checksums);
  const std::array<std::int64_t, 4> shape{4, 3, 2, 5};
  expect(old.ok() && old->latent_shape() == shape, "a bundle of the first format makes one size");
  refused(open(with(manifest, "\"large.json", "\"../bundle/large.json")), fb::Code::bad_file, "path inside the bundle");
  refused(open(with(manifest, "\"inputs\"", "\"outputs\"")), fb::Code::bad_file,
          "damaged at components.large.spec.inputs (it is missing)");
  expect(open(with(manifest, "\"fake\"", "\"tensorrt\"")).ok(), "a bundle of plans can be opened");
  refused(fb::Bundle::open(scratch + "/none").status(), fb::Code::bad_file, "is no bundle");

  const std::string altered = with(text_of(bundle + "/small.json"), "8", "7");
  write(scratch + "/small.json", altered);
  refused(open(manifest), fb::Code::bad_file, "was altered");
  expect(fb::Bundle::open(scratch, fb::Verify::sizes).ok(), "sizes alone do not show it");
  write(scratch + "/small.json", altered + " ");
  refused(open(manifest), fb::Code::bad_file, "were expected; rebuild with: python -m");
  refused(open(with(manifest, "\"DIR\"", "\"it's a DIR\"")), fb::Code::bad_file, "--out 'it'\"'\"'s a DIR'");
  std::remove((scratch + "/small.json").c_str());
  refused(open(manifest), fb::Code::bad_file, "is missing from the bundle");

  write(scratch + "/manifest.json", std::string(200000, '['));
  refused(fb::Bundle::open(scratch).status(), fb::Code::bad_file, "no valid JSON");
}

// Two profiles: one size alone, [4, 3, 2, 5], then a range from [4, 1, 2, 2] to [4, 5, 4, 8].
static void profiles(const std::string& bundle, const std::string& scratch) {
  const std::string manifest = compact(bundle + "/manifest.json");
  const auto open = [&](const std::string& words, const std::string& others) {
    write(scratch + "/manifest.json", with(manifest, words, others));
    return fb::Bundle::open(scratch).status();
  };
  const std::string start = R"("profiles":[)", largest = R"("latent_shape":[4,5,4,8])";
  refused(open(start, R"("profiles":[],"x":[)"), fb::Code::bad_file, "at profiles (at least one profile");
  refused(open(start, R"("geometry":[)"), fb::Code::bad_file, "at profiles (it is missing)");
  refused(open(start, R"("profiles":[{},)"), fb::Code::bad_file, "at profiles.0.min (it is missing)");
  refused(open(largest, R"("latent_shape":[4,5,4])"), fb::Code::bad_file, "at profiles.1.max.latent_shape (four sizes");
  refused(open(largest, R"("latent_shape":[4,5,4,3])"), fb::Code::bad_file, "at profiles.1 (no size of min above");
  refused(open(largest, R"("latent_shape":[5,5,4,8])"), fb::Code::bad_file, "at profiles.1 (the same number");
  refused(open(R"("width":64,)", R"("width":31,)"), fb::Code::bad_file, "at profiles.1 (no size of min above");
  refused(open(R"("width":64,)", ""), fb::Code::bad_file, "at profiles.1.max.width (it is missing)");
}

static void programs(const std::string& bundle_path, const std::string& folder, const std::string& scratch) {
  auto bundle = fb::Bundle::open(bundle_path);
  auto sampler = fb::Sampler::create(*bundle);
  const std::string program = compact(folder + "/program.json");
  const auto load = [&](const std::string& words, const std::string& others) {
    write(scratch + "/program.json", with(program, words, others));
    return sampler->load(scratch + "/program.json");
  };
  expect(load(R"("solver")", R"("created_by":"x","solver")").ok(), "what is not known does no harm");
  refused(load(R"("format":3)", R"("format":9)"), fb::Code::bad_file, "has format 9");
  expect(load(R"("format":3)", R"("format":2)").ok(), "a program of the format before is read");
  refused(load(R"("bundle":")", R"("bundle":"other)"), fb::Code::bad_file, "was written for bundle other");
  const std::string size = R"("latent_shape":[4,3,2,5])";
  const auto sized = [&](const std::string& shape) { return load(size, R"("latent_shape":)" + shape); };
  expect(sized("[4,1,2,2]").ok() && sized("[4,5,4,8]").ok() && sized("[4,2,3,3]").ok(), "a range has all between");
  refused(sized("[4,6,2,5]"), fb::Code::bad_file,
          "was written for latents [4, 6, 2, 5], which none of the bundle's profiles holds; write it again for 40x16 "
          "and 17 frames, whose latents [4, 5, 2, 5] are the nearest that fit");
  refused(sized("[4,1,1,1]"), fb::Code::bad_file, "for 16x16 and 1 frame, whose latents [4, 1, 2, 2]");
  refused(sized("[4,2,3,9]"), fb::Code::bad_file, "for 64x24 and 5 frames, whose latents [4, 2, 3, 8]");
  refused(sized("[1048576,3,2,5]"), fb::Code::bad_file, "for 40x16 and 9 frames, whose latents [4, 3, 2, 5]");
  refused(load("[4,", "[0,"), fb::Code::bad_file, "damaged at latent_shape.0");
  refused(load(R"("latents","cond")", R"("latents","latents")"), fb::Code::bad_file, "slots.1 (it occurs twice)");
  refused(load(R"("name":"text")", R"("name":"colour")"), fb::Code::bad_file,
          "other inputs than the bundle's manifest");
  refused(load(R"("out":["cond"])", R"("out":["latents"])"), fb::Code::bad_file, "may not write to latents");
  refused(load(R"("model":"large","branches")", R"("model":"huge","branches")"), fb::Code::bad_file,
          "steps.0.instructions.0.model");
  refused(load(R"("branches")", R"("scale")"), fb::Code::bad_file, "a newer version");
  refused(load(R"("instructions":[)", R"("instructions":[{"out":"cond","terms":[[1.0,"uncond"]]},)"),
          fb::Code::bad_file, "before anything was written");
  refused(load(R"("timestep":)", R"("timestep":1e300,"x":)"), fb::Code::bad_file, "range of float32");
}

// What a program of the folder's may not say of a rescaling.
static void rescalings(const std::string& bundle_path, const std::string& folder, const std::string& scratch) {
  auto bundle = fb::Bundle::open(bundle_path);
  auto sampler = fb::Sampler::create(*bundle);
  const std::string program = compact(folder + "/program.json");
  const std::string good = R"({"out":"guided","reference":"cond","share":0.7})";
  const auto load = [&](const std::string& rescale) {
    write(scratch + "/program.json", with(program, good, rescale));
    return sampler->load(scratch + "/program.json");
  };
  expect(load(good).ok(), "a rescaling is read");
  for (const char* share : {"0", "-0.1", "1.01", "1e300"}) {
    refused(load(R"({"out":"guided","reference":"cond","share":)" + std::string(share) + "}"), fb::Code::bad_file,
            "share (a number above 0 and at most 1");
  }
  refused(load(R"({"out":"guided","reference":"cond","share":"half"})"), fb::Code::bad_file, "a number was expected");
  refused(load(R"({"out":"guided","reference":"guided","share":0.7})"), fb::Code::bad_file, "another slot than");
  refused(load(R"({"out":"guided","reference":"else","share":0.7})"), fb::Code::bad_file, "not in the list of slots");
  refused(load(R"({"out":"guided","share":0.7})"), fb::Code::bad_file, "reference (it is missing)");
  write(scratch + "/program.json", with(program, R"("instructions":[)", R"("instructions":[)" + good + ","));
  refused(sampler->load(scratch + "/program.json"), fb::Code::bad_file, "before anything was written");
}

// What the folder's program, which holds latent frames, gives and asks for, and what it may not say.
static void held(const std::string& bundle_path, const std::string& folder, const std::string& scratch) {
  using Shape = std::array<std::int64_t, 4>;
  auto bundle = fb::Bundle::open(bundle_path);
  auto sampler = fb::Sampler::create(*bundle);
  expect(sampler->result_shape() == Shape{}, "there is no size before a program");
  expect(sampler->load(folder + "/program.json").ok(), "a program that holds latents is loaded");
  expect(sampler->latent_shape() == Shape{4, 5, 2, 5} && sampler->result_shape() == Shape{4, 3, 2, 5},
         "its result has fewer frames than its noise");
  auto noise = fb::read_npy(folder + "/latents.npy");
  std::vector<float> latents(numbers(sampler->result_shape()), 7.0f);
  refused(sampler->sample(noise->floats(), latents.data()), fb::Code::invalid_argument, "was not given");
  give_inputs(*sampler, folder);
  refused(sampler->set_input("given", "held_0", {latents.data(), fb::DType::float32, {1, 4, 3, 2, 5}}),
          fb::Code::invalid_argument, "float32 [1, 4, 2, 2, 5] was expected");
  refused(sampler->set_input("given", "held_noised", {}), fb::Code::invalid_argument, "no input held_noised of branch");
  expect(sampler->sample(noise->floats(), latents.data()).ok(), "it runs");
  std::vector<float> again(noise->floats(), noise->floats() + numbers(sampler->latent_shape()));
  expect(sampler->sample(again.data(), again.data()).ok(), "and runs in place");
  expect(std::equal(latents.begin(), latents.end(), again.begin()), "with the same result");

  const std::string program = compact(folder + "/program.json");
  const auto load = [&](const std::string& words, const std::string& others) {
    write(scratch + "/program.json", with(program, words, others));
    return sampler->load(scratch + "/program.json");
  };
  const std::string extra = R"("extra":2)", partial = R"("held_0":[2,3])", given = R"("given":["held_0",)";
  refused(load(extra, R"("extra":5)"), fb::Code::bad_file, "damaged at extra");
  refused(load(extra, R"("extra":-1)"), fb::Code::bad_file, "damaged at extra");
  refused(load(R"("latent_shape":[4,5,2,5])", R"("latent_shape":[4,8,2,5])"), fb::Code::bad_file,
          "a timestep for every latent frame was expected");
  refused(load(partial, R"("held_0":[3,2])"), fb::Code::bad_file, "damaged at partial.held_0.1");
  refused(load(partial, R"("held_0":[2,5])"), fb::Code::bad_file, "damaged at partial.held_0.1");
  refused(load(partial, R"("held_0":[])"), fb::Code::bad_file, "at least one latent frame");
  refused(load(partial, R"("latents":[2,3])"), fb::Code::bad_file, "another slot of the list than latents");
  refused(load(partial, R"("held_0":[1,3])"), fb::Code::bad_file, "other latent frames than the slot that is written");
  refused(load(given, R"("given":["cond",)"), fb::Code::bad_file, "a slot of some latent frames was expected");
  refused(load(given, R"("given":[)"), fb::Code::bad_file, "before anything was written");
  refused(load(R"("out":"held_noised","terms")", R"("out":"held_0","terms")"), fb::Code::bad_file,
          "a slot that is given may not be written");
  refused(load(R"({"out":"latents","source":"held_noised"})", R"({"out":"latents","source":"latents"})"),
          fb::Code::bad_file, "a slot of some latent frames was expected");
  refused(load(R"("frame_timesteps":[)", R"("frame_timesteps":[1.0,)"), fb::Code::bad_file,
          "a timestep for every latent frame was expected");
  refused(load(R"("branches":["uncond",)", R"("branches":["given",)"), fb::Code::bad_file, "another branch than given");
  refused(load(R"("key":"still.scale")", R"("key":"moving.scale")"), fb::Code::bad_file, "but both get the same");
}

static void files(const std::string& scratch) {
  const std::string npy = scratch + "/a.npy", tensors = scratch + "/a.safetensors";
  const float values[6] = {1, 2, 3, 4, 5, 6};
  expect(fb::write_npy(npy, values, {2, 3}).ok(), "an array is written");
  auto array = fb::read_npy(npy);
  expect(array.ok() && array->shape == std::vector<std::int64_t>{2, 3} && array->floats()[5] == 6, "and read again");
  refused(fb::write_npy(scratch + "/none/a.npy", values, {6}), fb::Code::bad_file, "Cannot write");
  refused(fb::read_npy(scratch).status(), fb::Code::bad_file, "cannot be read");
  const auto npy_of = [&](const std::string& header, std::size_t length, const std::string& data) {
    write(npy, std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(length) + '\0' + header + data);
    return fb::read_npy(npy);
  };
  const auto refused_npy = [&](const std::string& header, const char* words) {
    refused(npy_of(header, header.size(), "12345678").status(), fb::Code::bad_file, words);
  };
  const std::string good_header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
  expect(npy_of(good_header, good_header.size(), "12345678").ok(), "a .npy is read");
  refused(npy_of(good_header, good_header.size() + 9, "12345678").status(), fb::Code::bad_file,
          "ends inside its header");
  refused(npy_of(good_header, good_header.size(), "1234567").status(), fb::Code::bad_file, "does not have the size");
  refused_npy("{}", "without a descr");
  refused_npy("{'descr': , 'fortran_order': False, 'shape': (2,), }", "without a descr");
  refused_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", "is not float32");
  refused_npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", "is not float32");
  refused_npy("{'descr': '<f4', 'fortran_order': False, 'shape': ), }", "without a shape");
  refused_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (x,), }", "damaged shape");
  for (const char* text : {"", "\x93NUMPY", "{}"}) {
    write(npy, text);
    refused(fb::read_npy(npy).status(), fb::Code::bad_file, "is no .npy file");
  }
  const auto tensors_of = [&](const std::string& header, const std::string& data) {
    std::string text(8, '\0');
    text[0] = static_cast<char>(header.size());
    write(tensors, text + header + data);
    return fb::read_safetensors(tensors);
  };
  auto good = tensors_of(R"({"a":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]}})", "12345678");
  expect(good.ok() && good->at("a").dtype == fb::DType::int32 && good->at("a").bytes.size() == 8,
         "safetensors are read");
  refused(tensors_of(R"({"a":{"dtype":"I32","shape":[3],"data_offsets":[0,8]}})", "12345678").status(),
          fb::Code::bad_file, "do not fit");
  refused(tensors_of(R"({"a":{"dtype":"I32","shape":[2],"data_offsets":[8,0]}})", "12345678").status(),
          fb::Code::bad_file, "damaged at a.data_offsets");
  refused(tensors_of(R"({"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}})", "12345678").status(),
          fb::Code::bad_file, "one of F32");
  refused(tensors_of("{", "").status(), fb::Code::bad_file, "no valid JSON");
  write(tensors, std::string(8, '\xff'));
  refused(fb::read_safetensors(tensors).status(), fb::Code::bad_file, "no safetensors file");
}

int main(int count, char** words) {
  if (count != 7) return 2;
  sampling(words[1], words[2]);
  sizes(words[1], words[2], words[3]);
  bundles(words[1], words[4]);
  profiles(words[1], words[4]);
  programs(words[1], words[2], words[4]);
  rescalings(words[1], words[5], words[4]);
  held(words[1], words[6], words[4]);
  files(words[4]);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
