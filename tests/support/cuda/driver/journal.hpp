// What was asked of the driver, in order, for tests to read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stand_in {

// An entry. `what` is what was called or done: "alloc", "free", "freed", "launch", "copy", "memset", "host", "record",
// "wait", "sync", "query", "capture", "graph", "fault", "note".
struct Entry {
  std::string what;
  std::string name;  // of a kernel, a copy's direction, a fault's sentence
  int device = 0;
  unsigned stream = 0;  // its number, from 1 on; 0 for the default stream, and where there is none
  std::uint64_t bytes = 0;
  std::uint64_t address = 0;
  bool captured = false;  // recorded into a graph instead of enqueued
};

// All functions may be called from any thread.
void write(Entry entry);

// A use of memory that no GPU would survive, or a call that CUDA forbids. Told to tests, which fail for it.
void fault(const std::string& sentence);

// Everything since the last call, a line an entry with its fields separated by '|'.
std::string take_journal();

// The faults since the last call, a line each.
std::string take_faults();

}  // namespace stand_in
