#include "journal.hpp"

#include <mutex>
#include <sstream>

namespace stand_in {
namespace {

std::mutex mutex;
std::vector<Entry> entries;
std::vector<std::string> faults;

}  // namespace

void write(Entry entry) {
  std::lock_guard<std::mutex> lock(mutex);
  entries.push_back(std::move(entry));
}

void fault(const std::string& sentence) {
  Entry entry;
  entry.what = "fault";
  entry.name = sentence;
  write(std::move(entry));
  std::lock_guard<std::mutex> lock(mutex);
  faults.push_back(sentence);
}

std::string take_journal() {
  std::lock_guard<std::mutex> lock(mutex);
  std::ostringstream lines;
  for (const Entry& each : entries)
    lines << each.what << '|' << each.name << '|' << each.device << '|' << each.stream << '|' << each.bytes << '|'
          << each.address << '|' << each.captured << '\n';
  entries.clear();
  return lines.str();
}

std::string take_faults() {
  std::lock_guard<std::mutex> lock(mutex);
  std::string lines;
  for (const std::string& each : faults) lines += each + '\n';
  faults.clear();
  return lines;
}

}  // namespace stand_in
