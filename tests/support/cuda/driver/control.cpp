// What tests ask of the stand-in itself: tests/support/cuda/driver.py calls these.
#include <cstdlib>
#include <cstring>
#include <string>

#include "handles.hpp"
#include "journal.hpp"

namespace stand_in {

// The caller frees the text.
STAND_IN_API char* stand_in_journal() { return strdup(take_journal().c_str()); }
STAND_IN_API char* stand_in_faults() { return strdup(take_faults().c_str()); }
STAND_IN_API void stand_in_free(char* text) { std::free(text); }

STAND_IN_API void stand_in_note(const char* name) { write(entry("note", name)); }
STAND_IN_API void stand_in_fault(const char* sentence) { fault(sentence); }
STAND_IN_API void stand_in_revive() { revive(); }
STAND_IN_API void stand_in_set_late(int late) { set_late(late != 0); }

STAND_IN_API std::uint64_t stand_in_used(int device) { return used(device); }
STAND_IN_API std::uint64_t stand_in_reserved(int device) { return reserved(device); }
STAND_IN_API std::uint64_t stand_in_used_high(int device) { return used_high(device); }
STAND_IN_API void stand_in_forget_high(int device) { forget_high(device); }
STAND_IN_API void stand_in_set_limit(int device, std::uint64_t bytes) { set_limit(device, bytes); }
STAND_IN_API std::uint64_t stand_in_limit(int device) { return limit(device); }

// Host memory with what is at a device address: for engines that run on the CPU. Null, with a fault said, for memory that
// is not all in one living block of the device.
STAND_IN_API void* stand_in_alias(CUdeviceptr address, std::size_t bytes, int device, const char* user) {
  return alias(address, bytes, device, user);
}

}  // namespace stand_in
