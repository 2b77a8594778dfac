#include "kernels.hpp"

#include <csetjmp>
#include <csignal>
#include <map>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "journal.hpp"

namespace stand_in {

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr std::size_t kStack = 64 * 1024;

// A thread of a block: a stack of its own, and where it stands. Switching with _setjmp and _longjmp takes nanoseconds,
// where swapcontext makes a system call.
struct Fiber {
  ucontext_t entry;
  jmp_buf state;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false;
  bool finished = false;
};

std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* running;
const Thread* body;
jmp_buf scheduler;

void leave() {
  if (!_setjmp(running->state)) _longjmp(scheduler, 1);
}

void run_fiber() {
  for (;;) {
    (*body)();
    running->finished = true;
    leave();  // and come back for the same thread of the next block
  }
}

void enter(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  getcontext(&fiber.entry);
  fiber.entry.uc_stack.ss_sp = fiber.stack.get();
  fiber.entry.uc_stack.ss_size = kStack;
  fiber.entry.uc_link = nullptr;
  makecontext(&fiber.entry, run_fiber, 0);
  setcontext(&fiber.entry);
}

void run_block() {
  for (unsigned index = 0; index < blockDim.x; ++index) fibers[index]->finished = false;
  for (bool all = false; !all;) {
    all = true;
    for (unsigned index = 0; index < blockDim.x; ++index) {
      if (fibers[index]->finished) continue;
      threadIdx.x = index;
      enter(*fibers[index]);
      all = all && fibers[index]->finished;
    }
  }
}

thread_local bool guarded = false;
sigjmp_buf escape;
struct sigaction before;

// Pages around blocks, and of blocks that were freed, may not be touched: see memory.hpp.
void on_violation(int, siginfo_t* info, void*) {
  if (guarded && is_alias(info->si_addr)) siglongjmp(escape, 1);
  sigaction(SIGSEGV, &before, nullptr);  // the instruction is tried again, and fails as it would have
}

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

}  // namespace

void wait_for_block() { leave(); }

void add_kernel(Kernel kernel) { kernels()[kernel.name] = kernel; }

const Kernel* find_kernel(const std::string& name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : &found->second;
}

bool run_grid(const std::string& name, unsigned grid, unsigned block, const Thread& thread) {
  while (fibers.size() < block) fibers.push_back(std::make_unique<Fiber>());
  body = &thread;
  gridDim.x = grid;
  blockDim.x = block;
  struct sigaction action = {};
  action.sa_sigaction = on_violation;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &before);
  volatile bool good = true;
  if (sigsetjmp(escape, 1)) {
    good = false;
    fibers.clear();  // they stand in the middle of the kernel
    fault("kernel " + name + " touches memory outside of every living block");
  } else {
    guarded = true;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) run_block();
  }
  guarded = false;
  sigaction(SIGSEGV, &before, nullptr);
  return good;
}

}  // namespace stand_in
