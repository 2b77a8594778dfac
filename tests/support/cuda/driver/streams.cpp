#include "streams.hpp"

#include <chrono>
#include <map>
#include <mutex>
#include <set>

#include "memory.hpp"

namespace stand_in {
namespace {

// `state` guards the data here and is never held while an operation runs; `turn` is held while one does.
std::recursive_mutex state, turn;
std::set<Stream*> streams;
std::map<std::pair<int, std::uintptr_t>, Stream*> default_streams;
unsigned made = 0;
bool lost = false;
bool late_mode = true;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool is_default(const Stream& stream) { return stream.id == 0; }

// What the legacy default stream waits for: every stream that was not made to ignore it. And they wait for it.
std::vector<Point> implied(const Stream& stream) {
  std::vector<Point> points;
  for (Stream* other : streams) {
    const bool meets = other != &stream && other->device == stream.device && !(other->flags & CU_STREAM_NON_BLOCKING);
    if (meets && (is_default(stream) || is_default(*other))) points.push_back({other, other->pushed});
  }
  return points;
}

// Whether there is something to run up to a point.
bool is_ahead(const Point& point) {
  std::lock_guard<std::recursive_mutex> lock(state);
  return point.stream && point.stream->done < point.number && !point.stream->queue.empty();
}

// Runs the oldest operation. The caller has its turn.
void run_one(Stream& stream) {
  Operation operation;
  {
    std::lock_guard<std::recursive_mutex> lock(state);
    if (stream.queue.empty()) return;
    operation = std::move(stream.queue.front());
    stream.queue.pop_front();
  }
  for (const Point& point : operation.after) finish(point);
  const bool good = lost || operation.run();
  std::lock_guard<std::recursive_mutex> lock(state);
  stream.done += 1;
  lost = lost || !good;
}

}  // namespace

Stream* make_stream(int device, unsigned flags, int priority) {
  std::lock_guard<std::recursive_mutex> lock(state);
  Stream* stream = new Stream;
  stream->id = ++made;
  stream->device = device;
  stream->flags = flags;
  stream->priority = priority;
  streams.insert(stream);
  return stream;
}

Stream* stream_of(CUstream handle, int device) {
  std::lock_guard<std::recursive_mutex> lock(state);
  if (handle == nullptr) handle = kLegacyStream;
  if (handle != kLegacyStream && handle != kPerThreadStream) {
    Stream* stream = reinterpret_cast<Stream*>(handle);
    return streams.count(stream) ? stream : nullptr;
  }
  Stream*& found = default_streams[{device, reinterpret_cast<std::uintptr_t>(handle)}];
  if (!found) {
    found = make_stream(device, 0, 0);
    if (handle == kLegacyStream) found->id = 0;
  }
  return found;
}

void destroy_stream(Stream* stream) {
  finish(*stream);
  std::lock_guard<std::recursive_mutex> lock(state);
  streams.erase(stream);  // and leak it: events may remember their place in it
}

CUresult push(Stream& stream, Operation operation) {
  {
    std::lock_guard<std::recursive_mutex> lock(state);
    if (lost) return CUDA_ERROR_ILLEGAL_ADDRESS;
    operation.entry.device = stream.device;
    operation.entry.stream = stream.id;
    operation.entry.captured = stream.graph != nullptr;
    write(operation.entry);
    if (stream.graph) {
      stream.graph->nodes.push_back(std::move(operation));
      return CUDA_SUCCESS;
    }
    for (const Point& point : implied(stream)) operation.after.push_back(point);
    stream.queue.push_back(std::move(operation));
    stream.pushed += 1;
  }
  if (!late_mode) finish(stream);
  return CUDA_SUCCESS;
}

void finish(Point point) {
  std::lock_guard<std::recursive_mutex> lock(turn);
  while (is_ahead(point)) run_one(*point.stream);
}

void finish(Stream& stream) { finish({&stream, stream.pushed}); }

void finish_device(int device) {
  std::vector<Stream*> all;
  {
    std::lock_guard<std::recursive_mutex> lock(state);
    for (Stream* each : streams)
      if (each->device == device) all.push_back(each);
  }
  for (Stream* each : all) finish(*each);
}

CUresult unsafe_call(const std::string& what) {
  std::lock_guard<std::recursive_mutex> lock(state);
  for (Stream* each : streams) {
    if (!each->graph || each->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    const bool own = each->capturer == std::this_thread::get_id();
    if (each->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && !own) continue;
    each->broken = true;
    fault(what + " while a stream is captured");
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUresult begin_capture(Stream& stream, CUstreamCaptureMode mode) {
  std::lock_guard<std::recursive_mutex> lock(state);
  if (is_default(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream.graph) return CUDA_ERROR_ILLEGAL_STATE;
  stream.graph = std::make_shared<Graph>();
  stream.mode = mode;
  stream.capturer = std::this_thread::get_id();
  stream.broken = false;
  return CUDA_SUCCESS;
}

CUresult end_capture(Stream& stream, std::shared_ptr<Graph>* graph) {
  std::lock_guard<std::recursive_mutex> lock(state);
  if (!stream.graph) return CUDA_ERROR_ILLEGAL_STATE;
  *graph = std::move(stream.graph);
  stream.graph = nullptr;
  if (!stream.broken) return CUDA_SUCCESS;
  graph->reset();
  return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

CUresult launch_graph(Stream& stream, const std::shared_ptr<const Graph>& graph) {
  Operation operation;
  operation.entry.what = "graph";
  operation.entry.bytes = graph->nodes.size();
  operation.run = [graph] {
    for (const Operation& each : graph->nodes) {
      for (const Point& point : each.after) finish(point);
      if (!each.run()) return false;
    }
    return true;
  };
  return push(stream, std::move(operation));
}

// Replays complete it anew each time, and until then it is as complete as it was: before the first, for not having been
// recorded.
std::function<bool()> external_record(const std::shared_ptr<Event>& event) {
  return [event] {
    event->recorded += 1;
    event->completed = event->recorded;
    event->seconds = now();
    return true;
  };
}

// As in CUDA, one stream is not given work by two threads at the same moment.
CUresult record(const std::shared_ptr<Event>& event, Stream& stream, bool external) {
  if (event->device != stream.device) return CUDA_ERROR_INVALID_HANDLE;
  Operation operation;
  operation.entry.what = "record";
  if (stream.graph && external) {
    operation.entry.name = "external";
    operation.run = external_record(event);
    operation.event = event;
    event->captured = nullptr;
    return push(stream, std::move(operation));
  }
  if (stream.graph) {
    event->captured = &stream;
    operation.run = [] { return true; };
    return push(stream, std::move(operation));
  }
  const std::uint64_t number = ++event->recorded;
  event->captured = nullptr;
  event->at = {&stream, stream.pushed + 1};
  operation.run = [event, number] {
    event->completed = std::max(event->completed, number);
    event->seconds = now();
    return true;
  };
  return push(stream, std::move(operation));
}

CUresult wait_for(Stream& stream, const std::shared_ptr<Event>& event) {
  if (event->captured && event->captured != &stream) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  Operation operation;
  operation.entry.what = "wait";
  operation.run = [] { return true; };
  if (!event->captured) operation.after.push_back(event->at);
  return push(stream, std::move(operation));
}

bool is_complete(const Event& event) {
  std::lock_guard<std::recursive_mutex> lock(state);
  return event.completed >= event.recorded;
}

CUresult sticky() { return lost ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS; }

void revive() {
  std::lock_guard<std::recursive_mutex> lock(state);
  for (Stream* each : streams) {
    each->queue.clear();
    each->done = each->pushed;
    each->graph = nullptr;
  }
  lost = false;
}

void set_late(bool late) {
  late_mode = late;
  if (!late)
    for (int device = 0; device < kDevices; ++device) finish_device(device);
}

}  // namespace stand_in
