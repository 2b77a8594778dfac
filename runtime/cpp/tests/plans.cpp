// What the TensorRT back end tells a context, and in which order, against stand-in/NvInferRuntime.h: plans SCRATCH
//
// The plan: `latents` [batch, 4, F, H, W] with three profiles, `text` [1, 3], which is in no profile, and `velocity`.
#include <NvInferRuntime.h>

#include "engine.hpp"
#include "expect.hpp"
#include "failure.hpp"

namespace fb = flowblending;
using namespace fb::detail;
using Journal = std::vector<std::string>;

// What was noted since the last look.
static void noted(const Journal& expected, const std::string& when) {
  std::string found;
  for (const std::string& each : stand_in::journal) found += " '" + each + "'";
  expect(stand_in::journal == expected, when + " there was" + found);
  stand_in::journal.clear();
}

class Calls {
 public:
  Calls(const std::string& path, Scratch& scratch)
      : spec_{"large", "fp16", {tensor("latents", 5), tensor("text", 2)}, {tensor("velocity", 5)}},
        // Any address will do for a stream that nothing runs on.
        engine_(open_tensorrt(path, spec_, memory_, scratch)) {}

  std::unique_ptr<Call> bind(const Shape& latents) {
    return engine_->bind({{&spec_.inputs[0], latents, memory_},
                          {&spec_.inputs[1], {1, 3}, memory_},
                          {&spec_.outputs[0], latents, memory_}});
  }

 private:
  static TensorSpec tensor(const char* name, std::size_t rank) {
    return {name, fb::DType::float32, std::vector<Dim>(rank, Dim(std::int64_t{1}))};
  }

  alignas(kAlignment) unsigned char memory_[kAlignment]{};
  GraphSpec spec_;
  std::unique_ptr<Engine> engine_;
};

static Memory allocate(std::size_t bytes) {
  return {new unsigned char[bytes], [](void* memory) { delete[] static_cast<unsigned char*>(memory); }};
}

// The calls that tell a context everything but its profile, for one shape of the latents.
static Journal all(const std::string& latents, int scratch) {
  return {"shape latents " + latents, "shape text 1 3",   "address latents",
          "address text",             "address velocity", "scratch " + std::to_string(scratch),
          "enqueue"};
}

static Journal after_profile(int profile, const std::string& latents, int scratch) {
  Journal journal = all(latents, scratch);
  journal.insert(journal.begin(), "profile " + std::to_string(profile));
  return journal;
}

static void one_profile(const std::string& path) {
  stand_in::plan.profiles = {{{"latents", {{1, 4, 3, 2, 5}, {2, 4, 3, 2, 5}}}}};
  stand_in::plan.scratch = {100};
  Scratch scratch(allocate);
  Calls calls(path, scratch);
  const auto pair = calls.bind({2, 4, 3, 2, 5}), single = calls.bind({1, 4, 3, 2, 5});
  noted({}, "binding");
  pair->enqueue();
  noted(all("2 4 3 2 5", 100), "the first call");
  pair->enqueue();
  noted({"enqueue"}, "the same call again");
  single->enqueue();
  noted({"shape latents 1 4 3 2 5", "address latents", "address text", "address velocity", "enqueue"}, "one branch");
  scratch.reserve(300);  // by another engine, whose calls take more
  single->enqueue();
  noted({"scratch 300", "enqueue"}, "scratch memory that has moved");
  refused(guarded([&] { (void)calls.bind({1, 4, 3, 2, 6}); }), fb::Code::bad_file,
          "Input latents of engine large has shape [1, 4, 3, 2, 6], but it was compiled for [1, 4, 3, 2, 5] to "
          "[2, 4, 3, 2, 5]; build the bundle for this size.");
}

// A range; one size, twice that of the range's largest; and a narrower range inside the first.
static void several_profiles(const std::string& path) {
  stand_in::plan.profiles = {{{"latents", {{1, 4, 1, 2, 2}, {2, 4, 8, 8, 8}}}},
                             {{"latents", {{1, 4, 8, 8, 16}, {2, 4, 8, 8, 16}}}},
                             {{"latents", {{1, 4, 3, 4, 4}, {2, 4, 3, 6, 6}}}}};
  stand_in::plan.scratch = {100, 300, 200};
  Scratch scratch(allocate);
  Calls calls(path, scratch);
  const auto wide = calls.bind({1, 4, 2, 2, 2}), fixed = calls.bind({2, 4, 8, 8, 16});
  const auto narrow = calls.bind({2, 4, 3, 4, 6}), other = calls.bind({2, 4, 3, 6, 4});
  noted({}, "binding");
  wide->enqueue();
  noted(all("1 4 2 2 2", 300), "a new context has the first profile");
  fixed->enqueue();
  noted(after_profile(1, "2 4 8 8 16", 300), "a size of another profile");
  narrow->enqueue();
  noted(after_profile(2, "2 4 3 4 6", 300), "a size of two profiles goes to the smaller");
  other->enqueue();
  noted({"shape latents 2 4 3 6 4", "address latents", "address text", "address velocity", "enqueue"},
        "another size of the same profile");
  wide->enqueue();
  noted(after_profile(0, "1 4 2 2 2", 300), "back to the first profile");
  refused(guarded([&] { (void)calls.bind({1, 4, 8, 8, 12}); }), fb::Code::bad_file,
          "compiled for [1, 4, 1, 2, 2] to [2, 4, 8, 8, 8] or [1, 4, 8, 8, 16] to [2, 4, 8, 8, 16] or [1, 4, 3, 4, 4] "
          "to [2, 4, 3, 6, 6]; build");

  stand_in::refuse_profiles = true;
  refused(guarded([&] { fixed->enqueue(); }), fb::Code::failed,
          "TensorRT 0.0.0 refused optimization profile 1 of large (no such profile); build the bundle again.");
  noted({"profile 1"}, "a profile that is refused");
  stand_in::refuse_profiles = false;
  wide->enqueue();
  noted(after_profile(0, "1 4 2 2 2", 300), "all is told again after a fault");
}

int main(int count, char** words) {
  if (count != 2) return 2;
  const std::string path = std::string(words[1]) + "/x.plan";
  write(path, "a plan");
  stand_in::plan.inputs = {{"latents", {-1, 4, -1, -1, -1}}, {"text", {1, 3}}};
  stand_in::plan.output = {-1, 4, -1, -1, -1};
  one_profile(path);
  several_profiles(path);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
