// Runs kernels on a CPU, one block after the other: the threads of a block are contexts of one thread that take
// turns, and give up their turn where they wait for each other. What no CPU run finds: races between blocks, and
// what the memory of a device would allow.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

struct uint3 {
    uint32_t x, y, z;
};

namespace emulation {

constexpr size_t STACK = 128 << 10;

struct Block {
    uint3 grid, size, index;
    std::vector<float> shared;
    std::vector<ucontext_t> contexts;
    std::vector<uint8_t> done;
    std::vector<std::vector<char>> stacks;
    ucontext_t scheduler;
    uint32_t current = 0;
    uint64_t progress = 0;
    // A barrier of the block, and one of each warp: how many wait, and how often it has opened.
    uint32_t waiting = 0, opened = 0;
    uint32_t warp_waiting[32] = {}, warp_opened[32] = {};
    // What lanes show each other.
    double shown[1024];
    std::function<void()> body;
};

inline Block *&block() {
    static Block *running = nullptr;
    return running;
}

inline void give_up_turn() {
    Block *b = block();
    swapcontext(&b->contexts[b->current], &b->scheduler);
}

inline void wait(uint32_t &waiting, uint32_t &opened, uint32_t all) {
    uint32_t before = opened;
    if (++waiting == all) {
        waiting = 0;
        opened++;
        block()->progress++;
        return;
    }
    while (opened == before) give_up_turn();
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

template <class T> T show(T value, uint32_t lane) {
    static_assert(sizeof(T) <= sizeof(double), "lanes show numbers");
    Block *b = block();
    uint32_t me = b->current;
    memcpy(&b->shown[me], &value, sizeof value);
    wait_for_warp();
    T seen;
    memcpy(&seen, &b->shown[me / 32 * 32 + lane], sizeof seen);
    wait_for_warp();
    return seen;
}

inline bool any(bool is) {
    Block *b = block();
    memcpy(&b->shown[b->current], &is, sizeof is);
    wait_for_warp();
    bool found = false;
    for (uint32_t lane = 0; lane < 32; lane++) {
        bool seen;
        memcpy(&seen, &b->shown[b->current / 32 * 32 + lane], sizeof seen);
        found |= seen;
    }
    wait_for_warp();
    return found;
}

inline void run_thread() {
    Block *b = block();
    b->body();
    b->done[b->current] = 1;
    b->progress++;
    give_up_turn();
}

inline void run_block(Block &b) {
    block() = &b;
    uint32_t threads = b.size.x;
    for (uint32_t at = 0; at < threads; at++) {
        getcontext(&b.contexts[at]);
        b.contexts[at].uc_stack.ss_sp = b.stacks[at].data();
        b.contexts[at].uc_stack.ss_size = STACK;
        b.contexts[at].uc_link = nullptr;
        b.done[at] = 0;
        makecontext(&b.contexts[at], run_thread, 0);
    }
    for (uint32_t left = threads; left > 0;) {
        uint64_t before = b.progress;
        for (uint32_t at = 0; at < threads; at++) {
            if (b.done[at]) continue;
            b.current = at;
            swapcontext(&b.scheduler, &b.contexts[at]);
            left -= b.done[at];
        }
        if (b.progress == before) {
            fprintf(stderr, "emulate a kernel: its threads wait for each other for ever\n");
            abort();
        }
    }
}

inline void run(const uint32_t *grid, uint32_t threads, size_t shared_bytes, std::function<void()> body) {
    Block b;
    b.grid = {grid[0], grid[1], grid[2]};
    b.size = {threads, 1, 1};
    b.body = std::move(body);
    b.contexts.resize(threads);
    b.done.resize(threads);
    b.stacks.assign(threads, std::vector<char>(STACK));
    for (uint32_t z = 0; z < grid[2]; z++)
        for (uint32_t y = 0; y < grid[1]; y++)
            for (uint32_t x = 0; x < grid[0]; x++) {
                b.index = {x, y, z};
                // What a block finds in its memory is of no meaning.
                b.shared.assign((shared_bytes + 3) / 4, NAN);
                b.waiting = 0;
                for (uint32_t &waiting : b.warp_waiting) waiting = 0;
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
#define WARP_ANY(IS) emulation::any(IS)
#define WARP_SYNC() emulation::wait_for_warp()
#define DYNAMIC_SHARED(NAME) float *NAME = emulation::block()->shared.data()
#define KERNEL_BESIDE(NAME, PARAMETERS, THREADS, BLOCKS) KERNEL(NAME, PARAMETERS, THREADS)
#define KERNEL(NAME, PARAMETERS, THREADS)                                                                         \
    static void NAME##_body(const PARAMETERS &p);                                                                 \
    extern "C" void emulated_##NAME(const void *parameters, const uint32_t *grid, uint32_t threads,               \
                                    size_t shared_bytes) {                                                        \
        const PARAMETERS &p = *(const PARAMETERS *)parameters;                                                    \
        emulation::run(grid, threads, shared_bytes, [&p] { NAME##_body(p); });                                    \
    }                                                                                                             \
    static void NAME##_body(const PARAMETERS &p)
