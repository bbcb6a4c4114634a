// Streams that are captured, and what becomes of it. What may not be captured breaks the capture, as a driver has it.
#include "graph.h"

#include <algorithm>

namespace gpu {

static std::vector<Stream *> captured;

int break_capture(Stream *stream, const char *name) {
    report("%s during a capture", name);
    stream->capture_status = CAPTURE_BROKEN;
    return CAPTURE_UNSUPPORTED;
}

int check_no_capture(const char *name) {
    for (Stream *stream : captured)
        if (stream->captured_by == this_thread() && stream->capture_status == CAPTURE_ACTIVE)
            return break_capture(stream, name);
    return SUCCESS;
}

void release(Graph *graph) {
    if (--graph->references > 0) return;
    for (const auto &own : graph->own) forget(own.first);
    delete graph;
}

// What it allocated and did not give back is given back before it runs again.
static void begin(const Executable &executable) {
    for (const auto &own : executable.graph->own)
        if (!own.second.is_freed) unmap(own.first);
}

} // namespace gpu

using namespace gpu;

CUDA int cuStreamBeginCapture_v2(void *handle, int) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    Stream *stream = (Stream *)handle;
    // The usual stream cannot be captured.
    if ((uintptr_t)handle <= 2) return CAPTURE_UNSUPPORTED;
    if (stream->capture_status != CAPTURE_NONE) return INVALID_VALUE;
    stream->capture = new Graph;
    stream->capture->device = current_device();
    stream->capture_status = CAPTURE_ACTIVE;
    stream->captured_by = this_thread();
    captured.push_back(stream);
    return SUCCESS;
}

CUDA int cuStreamIsCapturing(void *handle, int *status) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    *status = (uintptr_t)handle <= 2 ? CAPTURE_NONE : ((Stream *)handle)->capture_status;
    return SUCCESS;
}

CUDA int cuStreamEndCapture(void *handle, void **graph) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    Stream *stream = (Stream *)handle;
    if (stream->capture_status == CAPTURE_NONE) return CAPTURE_UNMATCHED;
    if (stream->captured_by != this_thread()) return CAPTURE_WRONG_THREAD;
    captured.erase(std::find(captured.begin(), captured.end(), stream));
    const bool is_broken = stream->capture_status == CAPTURE_BROKEN;
    Graph *found = stream->capture;
    stream->capture = nullptr;
    stream->capture_status = CAPTURE_NONE;
    *graph = found;
    if (!is_broken) return SUCCESS;
    release(found);
    *graph = nullptr;
    return CAPTURE_INVALIDATED;
}

CUDA int cuGraphInstantiateWithFlags(void **executable, void *handle, unsigned long long flags) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    Graph *graph = (Graph *)handle;
    const bool is_twice = graph->references > 1 && !graph->own.empty();
    if (flags & ~(unsigned long long)AUTO_FREE_ON_LAUNCH || is_twice) return INVALID_VALUE;
    const size_t rounded = graph->most_in_use;
    if (rounded > free_bytes(graph->device)) return OUT_OF_MEMORY;
    keep_for_graphs(graph->device, rounded);
    graph->references++;
    *executable = new Executable{graph, (unsigned)flags};
    return SUCCESS;
}

CUDA int cuGraphUpload(void *, void *) { return failure(); }

CUDA int cuGraphLaunch(void *handle, void *on) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    const Executable executable = *(Executable *)handle;
    Stream *stream = (Stream *)on;
    if ((uintptr_t)on <= 2 || stream->capture_status != CAPTURE_NONE) return CAPTURE_UNSUPPORTED;
    bool leaves_memory = false;
    for (const auto &own : executable.graph->own) leaves_memory |= !own.second.is_freed;
    // Without it a graph runs but once.
    if (leaves_memory && !(executable.flags & AUTO_FREE_ON_LAUNCH)) return INVALID_VALUE;
    int error = submit(stream, {"a graph", [executable] { begin(executable); }});
    for (const Operation &operation : executable.graph->operations)
        if (error == SUCCESS) error = submit(stream, operation);
    return error;
}

CUDA int cuGraphExecDestroy(void *handle) {
    Alone alone;
    const int error = finish();
    release(((Executable *)handle)->graph);
    delete (Executable *)handle;
    return error;
}

CUDA int cuGraphDestroy(void *graph) {
    Alone alone;
    const int error = finish();
    release((Graph *)graph);
    return error;
}
