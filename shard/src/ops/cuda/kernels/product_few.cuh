// The product of few rows, which takes as long as its weights take to be read.
//
// A warp has a tile of 16 rows of the weights and one or more segments of them, which it reads front to back into a
// ring of its own, several blocks ahead; no warp waits for another over weights. Warps that share a tile add their
// segments in the block's memory at the end. Inputs are rounded to bf16 as fragments, for all warps of a block, a
// piece of the inner dimension at a time.
#pragma once

#include "product.cuh"

// Groups of 64 chunks of inputs: 32 KiB of a block's memory.
constexpr u32 INPUT_CHUNKS = 64;

// Inputs of the stream's blocks from `first` on, of all parts: (part, chunk, group of rows, lane).
template <class F, u32 GROUPS>
__device__ void stage_inputs(const ProductParameters &p, u32 first, u32 chunks, u64 *to) {
    const u32 length = segment_length(p), padded = blocks_of(length) * CHUNKS, count = p.segments / p.parts;
    const bool is_whole = p.inputs % 4 == 0 && length % 4 == 0;
    const float *input = (const float *)p.input;
    for (u32 at = threadIdx.x; at < p.parts * p.rows * chunks * 8; at += blockDim.x) {
        const u32 piece = at % 8, chunk = at / 8 % chunks, line = at / 8 / chunks;
        const u32 row = line % p.rows, part = line / p.rows, stream = first * CHUNKS + chunk;
        const u32 segment = stream / padded, inner = stream % padded * CHUNK + piece * 4;
        float four[4] = {};
        if (segment < count && inner < length) {
            const float *from = input + (u64)row * p.inputs + (part * count + segment) * length + inner;
            if (is_whole) {
                const Quad quad = *(const Quad *)from;
                for (u32 element = 0; element < 4; element++) four[element] = from_bits(quad.words[element]);
            } else {
#pragma unroll
                for (u32 element = 0; element < 4; element++)
                    if (inner + element < length) four[element] = from[element];
            }
        }
        const u32 fragment = (part * chunks + chunk) * GROUPS + row / GROUP;
        to[(fragment * 4 * GROUP + row % GROUP * 4) * 2 + place_of<F>(piece)] =
            (u64)pack_bf16(four[0], four[1]) | (u64)pack_bf16(four[2], four[3]) << 32;
    }
}

template <class F, u32 GROUPS> __device__ void clear_rows(const ProductParameters &p, Quad *inputs) {
    for (u32 at = threadIdx.x; at < INPUT_CHUNKS * WARP; at += blockDim.x) {
        const u32 row = at / WARP % GROUPS * GROUP + at % WARP / 4;
        if (row >= p.rows) inputs[at] = Quad{};
    }
}

// Sums of up to four segments, one after the other, in the tree.
template <u32 GROUPS> struct Tree {
    float first[GROUPS][4], pair[GROUPS][4];

    __device__ inline void join(u32 segment, float (&sums)[GROUPS][4]) {
        for (u32 group = 0; group < GROUPS; group++)
            for (u32 at = 0; at < 4; at++) {
                float &sum = sums[group][at];
                if (segment & 1) {
                    sum = first[group][at] + sum;
                    if (segment & 2) sum = pair[group][at] + sum;
                    else pair[group][at] = sum;
                } else {
                    first[group][at] = sum;
                }
            }
    }
};

template <class F, u32 GROUPS>
__device__ inline void multiply_block(float (&sums)[GROUPS][4], const Quad *weights, const Quad *inputs) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
        const typename F::Held held = F::read(weights + chunk * F::QUADS);
#pragma unroll
        for (u32 group = 0; group < GROUPS; group++) {
            const Quad of_rows = inputs[(chunk * GROUPS + group) * WARP + lane];
            float whole[4] = {};
            if (F::HAS_MINIMUM) {
                const u32 ones[2][4] = {{0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u},
                                        {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}};
                multiply_both(whole, ones, of_rows);
            }
            F::add(sums[group], held, of_rows, whole);
        }
    }
}

// The parts' sums, which stand beside each other among the block's warps; the first has what comes out.
template <u32 GROUPS> __device__ inline void join_parts(u32 parts, float *memory, float (&sums)[GROUPS][4]) {
    const u32 lane = threadIdx.x % WARP, step = GROUPS * 4 * WARP;
    float *mine = memory + threadIdx.x / WARP * step + lane;
    __syncthreads();
    for (u32 at = 0; at < GROUPS * 4; at++) mine[at * WARP] = sums[at / 4][at % 4];
    __syncthreads();
    if (threadIdx.x / WARP % parts != 0) return;
    for (u32 at = 0; at < GROUPS * 4; at++) {
        const float *of = mine + at * WARP;
        float sum = of[0] + of[step];
        if (parts == 4) sum = sum + (of[2 * step] + of[3 * step]);
        sums[at / 4][at % 4] = sum;
    }
}

// Blocks along x of a power of two of warps: (tiles, parts), parts beside each other. The block's memory: each warp's
// ring, then the inputs.
template <class F, u32 GROUPS> __device__ void multiply_few(const ProductParameters &p) {
    DYNAMIC_SHARED(memory);
    constexpr u32 STAGE = CHUNKS * F::QUADS;
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const u32 part = warp % p.parts, tile = blockIdx.x * (warps / p.parts) + warp / p.parts;
    const u32 count = p.segments / p.parts, blocks = blocks_of(segment_length(p)), all = count * blocks;
    const u32 chunks = INPUT_CHUNKS / (p.parts * GROUPS), piece = chunks / CHUNKS;
    Quad *ring = (Quad *)memory + warp * F::STAGES * STAGE, *inputs = (Quad *)memory + warps * F::STAGES * STAGE;

    u32 begun = 0, begun_segment = part * count, begun_block = 0;
    auto begin = [&]() {
        if (begun < all) F::begin_block(p, tile, begun_segment, begun_block, ring + begun % F::STAGES * STAGE);
        end_copies();
        begun++;
        if (++begun_block == blocks) begun_block = 0, begun_segment++;
    };
    for (u32 stage = 0; stage + 1 < F::STAGES; stage++) begin();
    clear_rows<F, GROUPS>(p, inputs);

    Tree<GROUPS> tree;
    float sums[GROUPS][4] = {};
    u32 segment = 0, block = 0;
    for (u32 at = 0; at < all; at++) {
        if (at % piece == 0) {
            __syncthreads();
            stage_inputs<F, GROUPS>(p, at, chunks, (u64 *)inputs);
            __syncthreads();
        }
        wait_for_copies<F::STAGES - 2>();
        wait_for_lanes();
        begin();
        const u32 first = part * chunks + at % piece * CHUNKS;
        multiply_block<F, GROUPS>(sums, ring + at % F::STAGES * STAGE, inputs + first * GROUPS * WARP);
        if (++block < blocks) continue;
        F::finish(p, tile, part * count + segment, sums);
        tree.join(segment, sums);
        block = 0, segment++;
        if (segment == count) break;
        for (u32 sum = 0; sum < GROUPS * 4; sum++) sums[sum / 4][sum % 4] = 0;
    }
    if (p.parts > 1) join_parts<GROUPS>(p.parts, memory, sums);
    if (part != 0) return;
    for (u32 group = 0; group < GROUPS; group++) write_sums(p, tile, group * GROUP, sums[group]);
}

// A kernel for up to 8, 16, 32 and 64 rows.
#define FEW(NAME, FORMAT)                                                                                         \
    KERNEL(few_##NAME##_8, ProductParameters, 128) { multiply_few<FORMAT, 1>(p); }                                \
    KERNEL(few_##NAME##_16, ProductParameters, 128) { multiply_few<FORMAT, 2>(p); }                               \
    KERNEL(few_##NAME##_32, ProductParameters, 128) { multiply_few<FORMAT, 4>(p); }                               \
    KERNEL(few_##NAME##_64, ProductParameters, 128) { multiply_few<FORMAT, 8>(p); }
