// Work in order, and what goes wrong with it.
#include "device.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <mutex>
#include <set>
#include <unistd.h>

#include "graph.h"

namespace gpu {

static std::mutex one_at_a_time;

Alone::Alone() { one_at_a_time.lock(); }
Alone::~Alone() { one_at_a_time.unlock(); }

void report(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "emulated GPU: %s\n", text);
}

static int failed_with = SUCCESS;

int failure() { return failed_with; }

void fail(int result) {
    if (failed_with == SUCCESS) failed_with = result;
}

int check_context() {
    if (failed_with != SUCCESS) return failed_with;
    return current_device() < 0 ? INVALID_CONTEXT : SUCCESS;
}

// The handles of the usual streams are small numbers.
Stream *stream_of(void *handle) {
    static Stream usual;
    return (uintptr_t)handle <= 2 ? &usual : (Stream *)handle;
}

size_t this_thread() {
    static std::atomic<size_t> threads{0};
    thread_local size_t number = ++threads;
    return number;
}

// Work that waits, in the order of calls, and how much of it there may be.
struct Queued {
    Stream *stream;
    int device;
    Operation operation;
};
static std::list<Queued> queue;
constexpr size_t MOST_WAITING = 4096;

// A test that wants a failure writes a file: its text is what fails next, a number of CUDA's, or "hang".
static void look_for_fault() {
    static const char *path = getenv("EMULATED_GPU_FAULT");
    if (!path || access(path, F_OK) != 0) return;
    char text[16] = "";
    FILE *file = fopen(path, "r");
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    // One process alone takes it.
    if (unlink(path) != 0) return;
    if (text[0] == 'h') {
        fprintf(stderr, "emulated GPU hangs, as it was asked to\n");
        for (;;) pause();
    }
    fail(atoi(text) ? atoi(text) : ILLEGAL_ADDRESS);
}

static const bool NEVER = false;

// Where a stream's work waits for another rank, that of other streams goes on. Whether anything was done.
static bool run_once(const bool &is_enough = NEVER) {
    std::set<Stream *> waiting;
    bool is_any_done = false;
    for (auto next = queue.begin(); next != queue.end() && failed_with == SUCCESS && !is_enough;) {
        const Operation &operation = next->operation;
        bool is_done = !waiting.count(next->stream);
        if (is_done && operation.attempt) is_done = operation.attempt();
        else if (is_done) operation.run();
        if (!is_done) waiting.insert(next->stream);
        is_any_done |= is_done;
        next = is_done ? queue.erase(next) : std::next(next);
    }
    if (failed_with != SUCCESS) queue.clear();
    return is_any_done;
}

int advance() { return advance(NEVER); }

int advance(const bool &is_done) {
    look_for_fault();
    while (!is_done && run_once(is_done)) {
    }
    return failed_with;
}

static bool is_finished(int device) {
    return std::none_of(queue.begin(), queue.end(), [device](const Queued &one) { return one.device == device; });
}

int finish() {
    look_for_fault();
    const int device = current_device();
    while (failed_with == SUCCESS && !is_finished(device)) {
        if (run_once()) continue;
        // Another rank may be a thread of this process.
        one_at_a_time.unlock();
        usleep(20);
        one_at_a_time.lock();
    }
    return failed_with;
}

int finish(const bool &is_done) {
    look_for_fault();
    while (failed_with == SUCCESS && !is_done) {
        if (run_once(is_done)) continue;
        one_at_a_time.unlock();
        usleep(20);
        one_at_a_time.lock();
    }
    return failed_with;
}

int submit(Stream *stream, Operation operation) {
    if (failed_with != SUCCESS) return failed_with;
    if (stream->capture_status == CAPTURE_BROKEN) return CAPTURE_INVALIDATED;
    if (stream->capture_status == CAPTURE_ACTIVE) {
        stream->capture->operations.push_back(std::move(operation));
        return SUCCESS;
    }
    queue.push_back({stream, current_device(), std::move(operation)});
    return queue.size() < MOST_WAITING ? SUCCESS : advance();
}

} // namespace gpu
