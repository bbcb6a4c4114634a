// The product of many rows: tiles of 128 by 128, chunk after chunk through a ring of a block's memory.
#include "quantized.cuh"

constexpr u32 TILES = 8;     // of 16 rows of weights, of a block
constexpr u32 GROUPS = 16;   // of 8 rows of inputs, of a block
constexpr u32 MY_TILES = 2;  // of a warp: of the widest part of the work, unpacking weights, least is done twice
constexpr u32 MY_GROUPS = 8;
constexpr u32 STAGES = 4;
constexpr u32 MANY_THREADS = 256;
constexpr u32 INPUT_QUADS = GROUPS * WARP, INPUT_COUNT = INPUT_QUADS / MANY_THREADS;

typedef float Sums[MY_TILES][MY_GROUPS][4];

template <class F> __device__ inline void multiply_chunk(Sums &sums, const Quad *weights, const Quad *inputs) {
    const u32 lane = threadIdx.x % WARP;
    typename F::Held held[MY_TILES];
#pragma unroll
    for (u32 tile = 0; tile < MY_TILES; tile++) held[tile] = F::read(weights + tile * F::QUADS);
#pragma unroll
    for (u32 group = 0; group < MY_GROUPS; group++) {
        const Quad of_rows = inputs[group * WARP + lane];
        float whole[4] = {};
        if (F::HAS_MINIMUM) {
            const u32 ones[2][4] = {{0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u},
                                    {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}};
            multiply_both<bf16>(whole, ones, of_rows);
        }
#pragma unroll
        for (u32 tile = 0; tile < MY_TILES; tile++) F::add(sums[tile][group], held[tile], of_rows, whole);
    }
}

// Adds a segment's sums to those that wait for them, and leaves what comes of it with those that wait, unless it is the
// last. What waits is each thread's own.
__device__ inline void join_segment(const ProductParameters &p, u32 segment, Sums &sums) {
    const u64 blocks = (u64)gridDim.x * gridDim.y, block = (u64)blockIdx.y * gridDim.x + blockIdx.x;
    constexpr u32 COUNT = MY_TILES * MY_GROUPS * 4;
    auto place = [&](u32 level) { return p.waiting + (level * blocks + block) * COUNT * MANY_THREADS + threadIdx.x; };
    u32 level = 0;
    for (; segment >> level & 1; level++) {
        const float *waiting = place(level);
#pragma unroll
        for (u32 at = 0; at < COUNT; at++) {
            float &sum = sums[at / (MY_GROUPS * 4)][at / 4 % MY_GROUPS][at % 4];
            sum = waiting[(u64)at * MANY_THREADS] + sum;
        }
    }
    if (segment + 1 == p.segments) return;
    float *waiting = place(level);
#pragma unroll
    for (u32 at = 0; at < COUNT; at++) {
        float &sum = sums[at / (MY_GROUPS * 4)][at / 4 % MY_GROUPS][at % 4];
        waiting[(u64)at * MANY_THREADS] = sum;
        sum = 0;
    }
}

// Block (weights / 128, rows / 128) of eight warps, four along the weights and two along the rows.
template <class F> __device__ void multiply_many(const ProductParameters &p) {
    DYNAMIC_SHARED(memory);
    constexpr u32 WEIGHT_QUADS = TILES * F::QUADS, STAGE = WEIGHT_QUADS + INPUT_QUADS;
    Quad *ring = (Quad *)memory;
    const u32 warp = threadIdx.x / WARP, my_tile = warp % 4 * MY_TILES, my_group = warp / 4 * MY_GROUPS;
    const u32 first_tile = blockIdx.x * TILES, first_row = blockIdx.y * GROUPS * GROUP;
    const u32 chunks = blocks_of(segment_length(p)) * CHUNKS, all = p.segments * chunks;

    const typename F::template Reader<TILES, MANY_THREADS> weights(p, first_tile, threadIdx.x);
    // A thread has the same part of every 64th row.
    const u32 my_row = first_row + threadIdx.x / 4;
    const Quad *inputs = (const Quad *)p.input + (u64)my_row * all * 4 + threadIdx.x % 4;
    u32 begun = 0, begun_segment = 0, begun_chunk = 0;
    auto begin = [&]() {
        Quad *to = ring + begun % STAGES * STAGE;
        if (begun < all) {
            weights.begin(begun_segment, begun_chunk, to);
#pragma unroll
            for (u32 at = 0; at < INPUT_COUNT; at++) {
                const u32 row = at * MANY_THREADS / 4;
                const bool is_there = my_row + row < p.rows;
                const Quad *from = is_there ? inputs + (u64)row * all * 4 + begun * 4 : (const Quad *)p.input;
                begin_copy(to + WEIGHT_QUADS + threadIdx.x + at * MANY_THREADS, from, is_there);
            }
        }
        end_copies();
        begun++;
        if (++begun_chunk == chunks) begun_chunk = 0, begun_segment++;
    };
    for (u32 stage = 0; stage + 1 < STAGES; stage++) begin();

    Sums sums = {};
    u32 at = 0;
    for (u32 segment = 0; segment < p.segments; segment++) {
        for (u32 chunk = 0; chunk < chunks; chunk++, at++) {
            wait_for_copies<STAGES - 2>();
            __syncthreads();
            begin();
            const Quad *stage = ring + at % STAGES * STAGE;
            multiply_chunk<F>(sums, stage + my_tile * F::QUADS, stage + WEIGHT_QUADS + my_group * WARP);
        }
#pragma unroll
        for (u32 tile = 0; tile < MY_TILES; tile++) F::finish(p, first_tile + my_tile + tile, segment, sums[tile]);
        if (p.segments > 1) join_segment(p, segment, sums);
    }
#pragma unroll
    for (u32 tile = 0; tile < MY_TILES; tile++)
#pragma unroll
        for (u32 group = 0; group < MY_GROUPS; group++)
            write_sums(p, first_tile + my_tile + tile, first_row + (my_group + group) * GROUP, sums[tile][group]);
}

// Two blocks at once on a multiprocessor.
#define MANY(NAME, FORMAT)                                                                                        \
    KERNEL_BESIDE(many_##NAME, ProductParameters, MANY_THREADS, 2) { multiply_many<FORMAT>(p); }

MANY(bf16, Rows<bf16>)
MANY(f16, Rows<f16>)
MANY(int8, Int8)
MANY(int8_minimum, Int8Minimum)
MANY(int8_short, Int8Short)
MANY(int4, Int4)
MANY(int4_minimum, Int4Minimum)
MANY(float8, Float8)
