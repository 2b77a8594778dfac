// Entry points: streams, events and graphs.
#include <algorithm>

#include "handles.hpp"

extern "C" CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device);
extern "C" CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);

namespace stand_in {
namespace {

Handles<CUevent, Event> events;
Handles<CUgraph, Graph> graphs;
Handles<CUgraphExec, Executable> executables;

// The graph that a node is of, and its place there.
std::shared_ptr<const Graph> graph_of(CUgraphNode node, std::size_t* index) {
  const auto* wanted = reinterpret_cast<const Operation*>(node);
  std::shared_ptr<const Graph> found;
  graphs.each([&](const std::shared_ptr<Graph>& graph) {
    const Operation* first = graph->nodes.data();
    if (wanted < first || wanted >= first + graph->nodes.size()) return;
    *index = static_cast<std::size_t>(wanted - first);
    found = graph;
  });
  return found;
}

// While the stream is captured, waiting for it or asking about it breaks the capture.
CUresult refuse_while_captured(Stream& stream, const char* what) {
  if (!stream.graph) return CUDA_SUCCESS;
  stream.broken = true;
  fault(std::string(what) + " of a stream that is captured");
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

}  // namespace

STAND_IN_API CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  if (const CUresult bad = ready()) return bad;
  *stream = reinterpret_cast<CUstream>(make_stream(current_device(), flags, priority));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}

STAND_IN_API CUresult cuStreamDestroy_v2(CUstream handle) {
  Stream* stream = stream_of(handle, 0);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  destroy_stream(stream);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuStreamSynchronize(CUstream handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult bad = refuse_while_captured(*stream, "cuStreamSynchronize")) return bad;
  write(entry("sync", "stream"));
  finish(*stream);
  trim_all();
  return sticky();
}

STAND_IN_API CUresult cuStreamQuery(CUstream handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult bad = refuse_while_captured(*stream, "cuStreamQuery")) return bad;
  write(entry("query", "stream"));
  return stream->queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

STAND_IN_API CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  Stream* stream = stream_of(handle, 0);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  Stream* stream = stream_of(handle, 0);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  *priority = stream->priority;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult bad = cuDevicePrimaryCtxRetain(context, stream->device)) return bad;
  return cuDevicePrimaryCtxRelease_v2(stream->device);
}

STAND_IN_API CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  Stream* stream = stream_of(handle, std::max(current_device(), 0));
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  *device = stream->device;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  const auto found = events.find(event);
  return stream && found ? wait_for(*stream, found) : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  Stream* stream = stream_of(handle, std::max(current_device(), 0));
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  *status = !stream->graph   ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                             : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  write(entry("capture", "begin"));
  return begin_capture(*stream, mode);
}

STAND_IN_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  std::shared_ptr<Graph> captured;
  const CUresult result = end_capture(*stream, &captured);
  write(entry("capture", "end", captured ? captured->nodes.size() : 0));
  *graph = captured ? graphs.add(captured) : nullptr;
  return result;
}

STAND_IN_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  const auto found = graphs.find(graph);
  if (!found) return CUDA_ERROR_INVALID_VALUE;
  *executable = executables.add(std::make_shared<Executable>(Executable{std::make_shared<Graph>(*found), found}));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuGraphInstantiateWithParams(CUgraphExec* executable, CUgraph graph,
                                                   CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
  parameters->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
  return cuGraphInstantiateWithFlags(executable, graph, 0);
}

STAND_IN_API CUresult cuGraphLaunch(CUgraphExec executable, CUstream handle) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  const auto found = executables.find(executable);
  return stream && found ? launch_graph(*stream, found->launched) : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_API CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, std::size_t* count) {
  const auto found = graphs.find(graph);
  if (!found) return CUDA_ERROR_INVALID_VALUE;
  if (nodes)
    for (std::size_t index = 0; index < std::min(*count, found->nodes.size()); ++index)
      nodes[index] = reinterpret_cast<CUgraphNode>(&found->nodes[index]);
  *count = found->nodes.size();
  return CUDA_SUCCESS;
}

// Of the other nodes nothing is told but that they are others.
STAND_IN_API CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  std::size_t index;
  const auto graph = graph_of(node, &index);
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  *type = graph->nodes[index].event ? CU_GRAPH_NODE_TYPE_EVENT_RECORD : CU_GRAPH_NODE_TYPE_EMPTY;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent* event) {
  std::size_t index;
  const auto graph = graph_of(node, &index);
  if (!graph || !graph->nodes[index].event) return CUDA_ERROR_INVALID_VALUE;
  *event = reinterpret_cast<CUevent>(graph->nodes[index].event.get());
  return CUDA_SUCCESS;
}

// Launches that were enqueued before keep what they were given.
STAND_IN_API CUresult cuGraphExecEventRecordNodeSetEvent(CUgraphExec executable, CUgraphNode node, CUevent event) {
  std::size_t index;
  const auto graph = graph_of(node, &index);
  const auto found = executables.find(executable);
  const auto recorded = events.find(event);
  if (!graph || !found || !recorded || found->made_of.lock() != graph || !graph->nodes[index].event)
    return CUDA_ERROR_INVALID_VALUE;
  const auto changed = std::make_shared<Graph>(*found->launched);
  changed->nodes[index].event = recorded;
  changed->nodes[index].run = external_record(recorded);
  found->launched = changed;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuGraphDestroy(CUgraph graph) {
  return graphs.remove(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

STAND_IN_API CUresult cuGraphExecDestroy(CUgraphExec executable) {
  return executables.remove(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

STAND_IN_API CUresult cuEventCreate(CUevent* event, unsigned flags) {
  if (const CUresult bad = ready()) return bad;
  auto made = std::make_shared<Event>();
  made->flags = flags;
  made->device = current_device();
  *event = events.add(made);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuEventDestroy_v2(CUevent event) {
  return events.remove(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_API CUresult cuEventRecordWithFlags(CUevent event, CUstream handle, unsigned flags) {
  if (const CUresult bad = ready()) return bad;
  Stream* stream = stream_of(handle, current_device());
  const auto found = events.find(event);
  return stream && found ? record(found, *stream, flags & CU_EVENT_RECORD_EXTERNAL) : CUDA_ERROR_INVALID_HANDLE;
}

STAND_IN_API CUresult cuEventRecord(CUevent event, CUstream stream) { return cuEventRecordWithFlags(event, stream, 0); }

STAND_IN_API CUresult cuEventQuery(CUevent event) {
  if (const CUresult bad = ready()) return bad;
  const auto found = events.find(event);
  if (!found) return CUDA_ERROR_INVALID_HANDLE;
  if (found->captured) return CUDA_ERROR_CAPTURED_EVENT;
  if (const CUresult bad = unsafe_call("cuEventQuery")) return bad;
  write(entry("query", "event"));
  return is_complete(*found) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

STAND_IN_API CUresult cuEventSynchronize(CUevent event) {
  if (const CUresult bad = ready()) return bad;
  const auto found = events.find(event);
  if (!found) return CUDA_ERROR_INVALID_HANDLE;
  if (found->captured) return CUDA_ERROR_CAPTURED_EVENT;
  if (const CUresult bad = unsafe_call("cuEventSynchronize")) return bad;
  write(entry("sync", "event"));
  finish(found->at);
  trim_all();
  return sticky();
}

STAND_IN_API CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent stop) {
  const auto first = events.find(start), last = events.find(stop);
  if (!first || !last || first->captured || last->captured) return CUDA_ERROR_INVALID_HANDLE;
  if (!first->recorded || !last->recorded) return CUDA_ERROR_INVALID_HANDLE;
  if ((first->flags | last->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
  if (!is_complete(*first) || !is_complete(*last)) return CUDA_ERROR_NOT_READY;
  *milliseconds = static_cast<float>(1000 * (last->seconds - first->seconds));
  return CUDA_SUCCESS;
}

}  // namespace stand_in
