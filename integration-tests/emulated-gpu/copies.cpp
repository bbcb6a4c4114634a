// Memory as programs ask for it, copies and fills.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "graph.h"

using namespace gpu;

// ---- Allocations ----

CUDA int cuMemGetInfo_v2(size_t *free, size_t *total) {
    Alone alone;
    if (int error = check_context()) return error;
    *free = free_bytes(current_device());
    *total = total_bytes();
    return SUCCESS;
}

CUDA int cuMemAlloc_v2(DevicePointer *address, size_t bytes) {
    Alone alone;
    if (int error = check_context()) return error;
    if (int error = check_no_capture("cuMemAlloc")) return error;
    if (int error = reserve(Owner::DEVICE, current_device(), bytes, address)) return error;
    map(*address);
    return SUCCESS;
}

CUDA int cuMemFree_v2(DevicePointer address) {
    Alone alone;
    if (int error = check_context()) return error;
    Owner owner;
    if (!is_allocated(address, &owner) || owner != Owner::DEVICE) {
        report("cuMemFree of %#lx, which is no allocation of its kind", address);
        return INVALID_VALUE;
    }
    if (int error = check_no_capture("cuMemFree")) return error;
    const int error = finish();
    give_back(address);
    forget(address);
    return error;
}

CUDA int cuMemAllocAsync(DevicePointer *address, size_t bytes, void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    Stream *stream = stream_of(handle);
    if (stream->capture_status == CAPTURE_BROKEN) return CAPTURE_INVALIDATED;
    const bool is_captured = stream->capture_status == CAPTURE_ACTIVE;
    // A test may want captures to fail.
    static const bool can_be_captured = !getenv("EMULATED_GPU_NO_CAPTURE");
    if (is_captured && !can_be_captured) {
        stream->capture_status = CAPTURE_BROKEN;
        return CAPTURE_UNSUPPORTED;
    }
    const Owner owner = is_captured ? Owner::GRAPH : Owner::POOL;
    if (int error = reserve(owner, current_device(), bytes, address)) return error;
    const DevicePointer place = *address;
    if (is_captured) capture_allocation(*stream->capture, place, bytes);
    return submit(stream, {"an allocation", [place] { map(place); }});
}

CUDA int cuMemFreeAsync(DevicePointer address, void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    Stream *stream = stream_of(handle);
    if (stream->capture_status == CAPTURE_BROKEN) return CAPTURE_INVALIDATED;
    Owner owner;
    const bool is_there = is_allocated(address, &owner);
    if (stream->capture_status == CAPTURE_ACTIVE) {
        if (!is_there || !capture_free(*stream->capture, address)) {
            report("cuMemFreeAsync of %#lx during a capture, which did not allocate it", address);
            return INVALID_VALUE;
        }
        return submit(stream, {"memory that is given back", [address] { unmap(address); }});
    }
    if (!is_there || owner != Owner::POOL) {
        report("cuMemFreeAsync of %#lx, which is no allocation of its kind", address);
        return INVALID_VALUE;
    }
    give_back(address);
    return submit(stream, {"memory that is given back", [address] { forget(address); }});
}

// ---- Pools: one for each device, which keeps what it has until it is trimmed ----

static int pools[16];
enum PoolAttribute : int { RELEASE_THRESHOLD = 4, RESERVED_NOW = 5 };

CUDA int cuDeviceGetDefaultMemPool(void **pool, Device device) {
    *pool = &pools[device];
    return SUCCESS;
}

CUDA int cuMemPoolSetAttribute(void *, int attribute, void *value) {
    return attribute == RELEASE_THRESHOLD && *(uint64_t *)value == UINT64_MAX ? SUCCESS : INVALID_VALUE;
}

CUDA int cuMemPoolGetAttribute(void *pool, int attribute, void *value) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    if (attribute != RESERVED_NOW) return INVALID_VALUE;
    *(uint64_t *)value = pool_bytes((int)((int *)pool - pools));
    return SUCCESS;
}

// What was given back by work that is not done stays.
CUDA int cuMemPoolTrimTo(void *pool, size_t least) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    if (int error = check_no_capture("cuMemPoolTrimTo")) return error;
    trim_pool((int)((int *)pool - pools), least);
    return SUCCESS;
}

CUDA int cuMemHostAlloc(void **host, size_t bytes, unsigned) {
    Alone alone;
    if (int error = check_context()) return error;
    if (int error = check_no_capture("cuMemHostAlloc")) return error;
    *host = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*host, 0xff, bytes);
    pin(*host, bytes);
    return SUCCESS;
}

CUDA int cuMemFreeHost(void *host) {
    Alone alone;
    const int error = finish();
    if (!unpin(host)) return INVALID_VALUE;
    free(host);
    return error;
}

// ---- Copies and fills ----

static void copy_to_device(DevicePointer to, const void *from, size_t bytes) {
    if (check("a copy to the device", to, bytes)) memcpy((void *)to, from, bytes);
}

static void copy_to_host(void *to, DevicePointer from, size_t bytes) {
    if (check("a copy to the host", from, bytes)) memcpy(to, (void *)from, bytes);
}

// From memory that stays where it is the device reads when its turn comes; other memory is read at once.
CUDA int cuMemcpyHtoDAsync_v2(DevicePointer to, const void *from, size_t bytes, void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    Stream *stream = stream_of(handle);
    if (is_pinned(from))
        return submit(stream, {"a copy to the device", [=] { copy_to_device(to, from, bytes); }});
    if (stream->capture_status != CAPTURE_NONE) return break_capture(stream, "a copy from memory that is not pinned");
    std::shared_ptr<char[]> staged(new char[bytes]);
    memcpy(staged.get(), from, bytes);
    return submit(stream, {"a copy to the device", [=] { copy_to_device(to, staged.get(), bytes); }});
}

CUDA int cuMemcpyDtoHAsync_v2(void *to, DevicePointer from, size_t bytes, void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    Stream *stream = stream_of(handle);
    const bool stays = is_pinned(to);
    if (!stays && stream->capture_status != CAPTURE_NONE)
        return break_capture(stream, "a copy to memory that is not pinned");
    if (int error = submit(stream, {"a copy to the host", [=] { copy_to_host(to, from, bytes); }})) return error;
    return stays ? SUCCESS : finish();
}

CUDA int cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes, void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    return submit(stream_of(handle), {"a copy on the device", [=] {
                                          if (check("a copy on the device", to, bytes) &&
                                              check("a copy on the device", from, bytes))
                                              memmove((void *)to, (void *)from, bytes);
                                      }});
}

CUDA int cuMemsetD8Async(DevicePointer to, unsigned char value, size_t bytes, void *handle) {
    Alone alone;
    if (int error = check_context()) return error;
    return submit(stream_of(handle), {"a fill", [=] {
                                          if (check("a fill", to, bytes)) memset((void *)to, value, bytes);
                                      }});
}
