// The emulated devices: memory, work in order, and what went wrong. Who calls anything here is `Alone`.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda.h"

namespace gpu {

// One call at a time: a device's work runs on the thread that waits for it.
struct Alone {
    Alone();
    ~Alone();
};

// ---- What went wrong ----

// Tells of a mistake of the program that is run. Whoever reads its log finds "emulated GPU:".
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

// What every call returns from the first failure on, as a context does that is lost.
int failure();
void fail(int result);
// A call on a context that is lost, or by a thread that has none.
int check_context();

// ---- Work, done in the order of calls, once somebody waits for it ----

struct Operation {
    std::string name;
    std::function<void()> run;
    // In place of `run`, where it may have to wait for other ranks: false until it is done. What it has got done so far
    // is its own, and a copy of one that has not begun begins anew.
    std::function<bool()> attempt = nullptr;
};

struct Graph;

struct Stream {
    Graph *capture = nullptr;
    int capture_status = CAPTURE_NONE;
    size_t captured_by = 0;
};

Stream *stream_of(void *handle);

// Queues an operation, or writes it down where the stream is being captured.
int submit(Stream *stream, Operation operation);

// Runs what was queued for the current device, and what others wait for meanwhile.
int finish();
// Runs what was queued until `is_done`, and nothing that comes after that.
int finish(const bool &is_done);
// Runs what can be run at once.
int advance();
int advance(const bool &is_done);

// Of an operation that may not be done while this thread captures: breaks the capture.
int check_no_capture(const char *name);
int break_capture(Stream *stream, const char *name);
size_t this_thread();

// ---- Memory ----

// What the current thread's context is of.
int current_device();
void set_current_device(int device);

int device_count();
size_t total_bytes();
size_t free_bytes(int device);

// Who pays for an allocation: memory is held in another way by each.
enum class Owner { DEVICE, POOL, GRAPH };

// Addresses nobody else gets; memory only once it is `map`ped.
int reserve(Owner owner, int device, size_t bytes, DevicePointer *address);
void map(DevicePointer address);
// Whatever uses the address afterwards is told of. A reservation of a graph stays.
void unmap(DevicePointer address);
void forget(DevicePointer address);
// The start of an allocation: whether there is one that was not given back by the program, and whose it is.
bool is_allocated(DevicePointer address, Owner *owner);
// The program gives it back; work that was queued before may still use it.
void give_back(DevicePointer address);
void keep_for_graphs(int device, size_t bytes);

// What a device's pool has, and how much of it is left once what nobody uses went back.
size_t pool_bytes(int device);
void trim_pool(int device, size_t least);

bool is_device_address(uint64_t value);
// Whether all of the bytes are in one allocation, whose memory is there. Reports where not.
bool check(const std::string &name, DevicePointer address, size_t bytes);
// The same of a kernel's parameter, of which nothing more than the address is known.
bool check_parameter(const std::string &name, size_t offset, uint64_t value);
// What was captured and where memory of its own begins and ends.
void capture_allocation(Graph &graph, DevicePointer address, size_t bytes);
bool capture_free(Graph &graph, DevicePointer address);

bool is_pinned(const void *host);
void pin(void *host, size_t bytes);
bool unpin(void *host);

} // namespace gpu
