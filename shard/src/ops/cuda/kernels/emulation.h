// Runs kernels on a CPU, one block after the other: the threads of a block take turns, and give up their turn where
// they wait for each other; one that never waits runs to its end as a plain call. What no CPU run finds: races between
// blocks, and what the memory of a device would allow.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "contexts.h"

struct uint3 {
    uint32_t x, y, z;
};

namespace emulation {

constexpr uint32_t MOST_THREADS = 1024;

// What a kernel is, beside its code.
struct Declared {
    void (*run)(const void *parameters, const uint32_t *grid, uint32_t threads, size_t shared_bytes);
    uint32_t parameter_bytes, most_threads;
};

struct Thread {
    // While this barrier has opened as often, it waits; of none, it does not.
    const uint32_t *barrier;
    uint32_t opened;
    bool has_begun, is_done;
    Place place;
    bool waits() const { return barrier && *barrier == opened; }
};

struct alignas(128) Line {
    float numbers[32];
};

struct Block {
    uint3 grid, size, index;
    std::vector<Line> shared;
    uint32_t current, left;
    Thread threads[MOST_THREADS];
    // A barrier of the block, and one of each warp: how many wait, and how often it has opened.
    uint32_t waiting, opened;
    uint32_t warp_waiting[32], warp_opened[32];
    // What lanes show each other, in turn.
    double shown[2][MOST_THREADS];
    void (*body)(const void *parameters);
    const void *parameters;
    Stacks stacks;
    Stack running;
    Stack of_thread[MOST_THREADS];
    Place caller;
};

inline Block *&block() {
    static Block *running = nullptr;
    return running;
}

// The thread whose turn is next: the first after the current one that does not wait.
inline uint32_t next_turn(Block &b) {
    for (uint32_t at = 1; at <= b.size.x; at++) {
        const uint32_t thread = (b.current + at) % b.size.x;
        if (!b.threads[thread].is_done && !b.threads[thread].waits()) return thread;
    }
    fprintf(stderr, "emulate a kernel: its threads wait for each other for ever\n");
    abort();
}

inline void run_threads();

// Goes on with a thread, on its own stack or, where it has not begun, on a fresh one.
inline void pass_turn(Block &b, Place *from, uint32_t thread) {
    b.current = thread;
    if (b.threads[thread].has_begun) {
        b.running = b.of_thread[thread];
        switch_to(from, &b.threads[thread].place);
    } else {
        b.running = b.stacks.take();
        begin_at(b.running, run_threads);
        switch_to(from, &b.running.entry);
    }
}

inline void wait(uint32_t &waiting, uint32_t &opened, uint32_t all) {
    Block &b = *block();
    if (++waiting == all) {
        waiting = 0;
        opened++;
        return;
    }
    Thread &me = b.threads[b.current];
    me.barrier = &opened;
    me.opened = opened;
    b.of_thread[b.current] = b.running;
    pass_turn(b, &me.place, next_turn(b));
}

inline void wait_for_block() {
    Block *b = block();
    wait(b->waiting, b->opened, b->size.x);
}

inline void wait_for_warp() {
    Block *b = block();
    uint32_t warp = b->current / 32;
    wait(b->warp_waiting[warp], b->warp_opened[warp], 32);
}

// Who shows again has seen what the others showed before, so that two places in turn are enough.
template <class T> T show(T value, uint32_t lane) {
    static_assert(sizeof(T) <= sizeof(double), "lanes show numbers");
    Block *b = block();
    const uint32_t me = b->current;
    double *shown = b->shown[b->warp_opened[me / 32] % 2];
    memcpy(&shown[me], &value, sizeof value);
    wait_for_warp();
    T seen;
    memcpy(&seen, &shown[me / 32 * 32 + lane], sizeof seen);
    return seen;
}

// A bit for each lane of the warp.
inline uint32_t ballot(bool is) {
    Block *b = block();
    const uint32_t first = b->current / 32 * 32;
    double *shown = b->shown[b->warp_opened[first / 32] % 2];
    shown[b->current] = is;
    wait_for_warp();
    uint32_t found = 0;
    for (uint32_t lane = 0; lane < 32; lane++) found |= (uint32_t)(shown[first + lane] != 0) << lane;
    return found;
}

// Where every stack begins: runs the current thread to its end, and those after it that have not begun.
inline void run_threads() {
    for (;;) {
        Block &b = *block();
        b.threads[b.current].has_begun = true;
        b.body(b.parameters);
        b.threads[b.current].is_done = true;
        Place nowhere;
        if (--b.left == 0) {
            b.stacks.give_back(b.running);
            switch_to(&nowhere, &b.caller);
        }
        const uint32_t next = next_turn(b);
        if (b.threads[next].has_begun) {
            b.stacks.give_back(b.running);
            pass_turn(b, &nowhere, next);
        }
        b.current = next;
    }
}

inline void run_block(Block &b) {
    b.left = b.size.x;
    b.waiting = 0;
    for (uint32_t &waiting : b.warp_waiting) waiting = 0;
    for (uint32_t at = 0; at < b.size.x; at++) {
        b.threads[at].barrier = nullptr;
        b.threads[at].has_begun = b.threads[at].is_done = false;
    }
    pass_turn(b, &b.caller, 0);
}

inline void run(const uint32_t *grid, uint32_t threads, size_t shared_bytes, void (*body)(const void *),
                const void *parameters) {
    static Block b;
    if (threads == 0 || threads > MOST_THREADS) {
        fprintf(stderr, "emulate a kernel with %u threads a block: 1 to %u work\n", threads, MOST_THREADS);
        abort();
    }
    block() = &b;
    b.grid = {grid[0], grid[1], grid[2]};
    b.size = {threads, 1, 1};
    b.body = body;
    b.parameters = parameters;
    Line nothing;
    for (float &number : nothing.numbers) number = NAN;
    for (uint32_t z = 0; z < grid[2]; z++)
        for (uint32_t y = 0; y < grid[1]; y++)
            for (uint32_t x = 0; x < grid[0]; x++) {
                b.index = {x, y, z};
                // What a block finds in its memory is of no meaning.
                b.shared.assign((shared_bytes + sizeof(Line) - 1) / sizeof(Line), nothing);
                run_block(b);
            }
}

} // namespace emulation

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __syncthreads() emulation::wait_for_block()
#define threadIdx (uint3{emulation::block()->current, 0, 0})
#define blockIdx (emulation::block()->index)
#define blockDim (emulation::block()->size)
#define gridDim (emulation::block()->grid)
#define WARP_SHUFFLE_XOR(VALUE, MASK) emulation::show(VALUE, (emulation::block()->current % 32) ^ (MASK))
#define WARP_SHUFFLE(VALUE, LANE) emulation::show(VALUE, LANE)
#define WARP_ANY(IS) (emulation::ballot(IS) != 0)
#define WARP_BALLOT(IS) emulation::ballot(IS)
// Threads take turns where they wait, and nowhere else.
#define ADD_SHARED(PLACE, VALUE) (*(PLACE) += (VALUE))
#define WARP_SYNC() emulation::wait_for_warp()
#define DYNAMIC_SHARED(NAME) float *NAME = (float *)emulation::block()->shared.data()
#define KERNEL_BESIDE(NAME, PARAMETERS, THREADS, BLOCKS) KERNEL(NAME, PARAMETERS, THREADS)
// `emulated_` is what the host calls, `declared_` what an emulated driver finds by name.
#define KERNEL(NAME, PARAMETERS, THREADS)                                                                         \
    static void NAME##_body(const PARAMETERS &p);                                                                 \
    extern "C" void emulated_##NAME(const void *parameters, const uint32_t *grid, uint32_t threads,               \
                                    size_t shared_bytes) {                                                        \
        emulation::run(grid, threads, shared_bytes, [](const void *p) { NAME##_body(*(const PARAMETERS *)p); },   \
                       parameters);                                                                               \
    }                                                                                                             \
    extern "C" {                                                                                                  \
    extern const emulation::Declared declared_##NAME;                                                             \
    const emulation::Declared declared_##NAME = {emulated_##NAME, sizeof(PARAMETERS), THREADS};                   \
    }                                                                                                             \
    static void NAME##_body(const PARAMETERS &p)
