// Streams, events and graphs. Streams are queues that run as late as CUDA allows, or, if tests ask for it, at once.
//
// An operation runs in the thread that waits for it, directly or because of another stream, after whatever it depends on
// and nothing else: work on two streams that do not wait for one another runs in an order that no test should survive.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda.hpp"
#include "journal.hpp"

namespace stand_in {

struct Event;
struct Stream;

// A place in a stream's order: everything up to its operation of this number.
struct Point {
  Stream* stream = nullptr;
  std::uint64_t number = 0;
};

struct Operation {
  Entry entry;
  std::function<bool()> run;  // false: what it did was a fault
  std::vector<Point> after;
  std::shared_ptr<Event> event;  // that a graph's node records for everybody to see
};

struct Graph {
  std::vector<Operation> nodes;
};

// A graph made ready: what is launched, and the graph that names its nodes as long as nobody destroys it.
struct Executable {
  std::shared_ptr<const Graph> launched;
  std::weak_ptr<const Graph> made_of;
};

struct Event {
  unsigned flags = 0;
  int device = 0;
  Point at;                     // of the last record
  std::uint64_t recorded = 0;   // how often
  std::uint64_t completed = 0;  // up to which record
  double seconds = 0.0;         // of the last completed one
  Stream* captured = nullptr;   // recorded while this stream was captured, so that nobody can wait for it
};

struct Stream {
  unsigned id = 0;
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  std::deque<Operation> queue;
  std::uint64_t pushed = 0, done = 0;
  std::shared_ptr<Graph> graph;  // that it is captured into
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id capturer;      // the thread that began it
  bool broken = false;           // the capture
};

Stream* make_stream(int device, unsigned flags, int priority);
// The stream of a handle, with the default streams for those of a device; null for what is none.
Stream* stream_of(CUstream handle, int device);
void destroy_stream(Stream* stream);

// Enqueues, or records into the graph that the stream is captured into.
CUresult push(Stream& stream, Operation operation);

// Returns when everything up to a point, or on a device, has run.
void finish(Point point);
void finish(Stream& stream);
void finish_device(int device);

// Whether a call that waits, or allocates outside of a pool, may be made now: not while a stream is captured in a mode
// that forbids it to this thread, and then the capture is broken.
CUresult unsafe_call(const std::string& what);

CUresult begin_capture(Stream& stream, CUstreamCaptureMode mode);
CUresult end_capture(Stream& stream, std::shared_ptr<Graph>* graph);
CUresult launch_graph(Stream& stream, const std::shared_ptr<const Graph>& graph);
// What a node does that records an event for everybody to see.
std::function<bool()> external_record(const std::shared_ptr<Event>& event);

CUresult record(const std::shared_ptr<Event>& event, Stream& stream, bool external);
CUresult wait_for(Stream& stream, const std::shared_ptr<Event>& event);
bool is_complete(const Event& event);

// After a fault, every call fails as on a GPU: the context is lost.
CUresult sticky();
// For tests: the context works again, and what was enqueued is forgotten.
void revive();

// For tests: whether operations wait until somebody waits for them, which they do from the start.
void set_late(bool late);

}  // namespace stand_in
