// Devices, contexts, streams and events.
#include <cstdio>
#include <cstring>

#include "graph.h"

using namespace gpu;

CUDA int cuInit(unsigned) { return device_count() > 0 ? SUCCESS : NO_DEVICE; }

CUDA int cuGetErrorName(int error, const char **text) {
    switch (error) {
    case SUCCESS: *text = "CUDA_SUCCESS"; break;
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case CAPTURE_UNSUPPORTED: *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
    case CAPTURE_INVALIDATED: *text = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
    default: *text = "an error of CUDA"; break;
    }
    return SUCCESS;
}

CUDA int cuGetErrorString(int error, const char **text) {
    switch (error) {
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
    default: return cuGetErrorName(error, text);
    }
    return SUCCESS;
}

// ---- Devices ----

CUDA int cuDeviceGetCount(int *count) {
    *count = device_count();
    return SUCCESS;
}

CUDA int cuDeviceGet(Device *device, int ordinal) {
    if (ordinal < 0 || ordinal >= device_count()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CUDA int cuDeviceGetName(char *name, int length, Device) {
    snprintf(name, (size_t)length, "emulated GPU");
    return SUCCESS;
}

CUDA int cuDeviceTotalMem_v2(size_t *bytes, Device) {
    *bytes = total_bytes();
    return SUCCESS;
}

CUDA int cuDeviceGetAttribute(int *value, int attribute, Device) {
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *value = 1024; return SUCCESS;
    case WARP_SIZE: *value = 32; return SUCCESS;
    case MULTIPROCESSOR_COUNT: *value = 132; return SUCCESS;
    case COMPUTE_CAPABILITY_MAJOR: *value = 9; return SUCCESS;
    case COMPUTE_CAPABILITY_MINOR: *value = 0; return SUCCESS;
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 << 10; return SUCCESS;
    case MEMORY_POOLS_SUPPORTED: *value = 1; return SUCCESS;
    default: report("attribute %d of a device is not known", attribute); return INVALID_VALUE;
    }
}

// ---- Contexts: one for each device ----

static int contexts[16];

CUDA int cuDevicePrimaryCtxRetain(void **context, Device device) {
    *context = &contexts[device];
    return SUCCESS;
}

CUDA int cuDevicePrimaryCtxRelease_v2(Device) { return SUCCESS; }

CUDA int cuCtxGetCurrent(void **context) {
    *context = current_device() < 0 ? nullptr : (void *)&contexts[current_device()];
    return SUCCESS;
}

CUDA int cuCtxSetCurrent(void *context) {
    set_current_device(context ? (int)((int *)context - contexts) : -1);
    return SUCCESS;
}

CUDA int cuCtxSynchronize() {
    Alone alone;
    if (int error = check_context()) return error;
    if (int error = check_no_capture("cuCtxSynchronize")) return error;
    return finish();
}

// ---- Streams. Work of all of them is done in the order of the calls, which is an order they allow; but for what waits
// for another rank ----

CUDA int cuStreamCreate(void **stream, unsigned) {
    if (int error = check_context()) return error;
    *stream = new Stream;
    return SUCCESS;
}

CUDA int cuStreamDestroy_v2(void *stream) {
    Alone alone;
    const int error = finish();
    delete (Stream *)stream;
    return error;
}

CUDA int cuStreamSynchronize(void *stream) {
    Alone alone;
    if (int error = check_context()) return error;
    if (stream_of(stream)->capture_status != CAPTURE_NONE) return break_capture(stream_of(stream), "cuStreamSynchronize");
    return finish();
}

CUDA int cuStreamWaitEvent(void *, void *, unsigned) { return check_context(); }

// ---- Events: of what was queued before ----

struct Event {
    bool is_done = true;
    bool is_captured = false;
    // How often it was recorded: the last time counts.
    size_t times = 0;
};

CUDA int cuEventCreate(void **event, unsigned) {
    if (int error = check_context()) return error;
    *event = new Event;
    return SUCCESS;
}

CUDA int cuEventDestroy_v2(void *event) {
    Alone alone;
    const int error = finish();
    delete (Event *)event;
    return error;
}

CUDA int cuEventRecord(void *handle, void *stream) {
    Alone alone;
    if (int error = check_context()) return error;
    Event *event = (Event *)handle;
    event->is_captured = stream_of(stream)->capture_status == CAPTURE_ACTIVE;
    event->is_done = event->is_captured;
    const size_t time = ++event->times;
    return submit(stream_of(stream), {"an event", [event, time] { event->is_done |= event->times == time; }});
}

CUDA int cuEventQuery(void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    Event *event = (Event *)handle;
    if (event->is_captured) return CAPTURED_EVENT;
    if (event->is_done) return SUCCESS;
    // A device works on by itself: who asks often enough is told at last. What comes after the event waits, so that nobody
    // counts on its being done.
    if (int error = advance(event->is_done)) return error;
    return NOT_READY;
}

CUDA int cuEventSynchronize(void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    const Event *event = (Event *)handle;
    if (event->is_captured) return CAPTURED_EVENT;
    return event->is_done ? SUCCESS : finish(event->is_done);
}

CUDA int cuEventElapsedTime_v2(float *milliseconds, void *, void *) {
    *milliseconds = 0;
    return check_context();
}
