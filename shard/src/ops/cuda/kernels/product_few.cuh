// The product of few rows, which takes as long as its weights take to be read.
//
// A warp has a tile of 16 rows of the weights and one or more segments of them, which it reads front to back into a
// ring of its own, several blocks ahead; no warp waits for another over weights. Warps that share a tile add their
// segments in the block's memory at the end. Inputs are rounded to 16 bits as fragments, for all warps of a block, a
// piece of the inner dimension at a time.
#pragma once

#include "product.cuh"

// Groups of 64 chunks of inputs: 32 KiB of a block's memory.
constexpr u32 INPUT_CHUNKS = 64;

// How many chunks of its inputs a part has at once: a power of two.
template <u32 GROUPS> __device__ inline u32 chunks_at_once(u32 parts) { return INPUT_CHUNKS / GROUPS >> parts / 2; }

// Where rows of inputs are: one after the other.
struct InOrder {
    __device__ inline u32 of(u32 row) const { return row; }
};

// Where four of the inputs come from and go to.
template <class F, u32 GROUPS> struct Piece {
    u32 inner, left; // the first element in a row, and how many there are of it in its segment: none, or one and more
    u32 row, place;

    __device__ inline Piece(const ProductParameters &p, u32 at, u32 first, u32 length) {
        const u32 chunks = chunks_at_once<GROUPS>(p.parts), piece = at % 8, chunk = at / 8 & (chunks - 1);
        const u32 line = at / 8 / chunks, part = line / p.rows, stream = first * CHUNKS + chunk;
        const u32 padded = blocks_of(length) * CHUNKS, count = p.segments / p.parts, segment = stream / padded;
        const u32 within = stream % padded * CHUNK + piece * 4;
        row = line % p.rows;
        inner = (part * count + segment) * length + within;
        left = segment < count && within < length ? length - within : 0;
        const u32 fragment = (part * chunks + chunk) * GROUPS + row / GROUP;
        place = (fragment * 4 * GROUP + row % GROUP * 4) * 2 + place_of<F>(piece);
    }

    template <class FROM> __device__ inline u64 read(const ProductParameters &p, bool is_whole, FROM rows) const {
        const float *from = (const float *)p.input + (u64)rows.of(row) * p.inputs + inner;
        float four[4] = {};
        if (is_whole) {
            if (left == 0) return 0;
            const Quad quad = *(const Quad *)from;
#pragma unroll
            for (u32 element = 0; element < 4; element++) four[element] = from_bits(quad.words[element]);
        } else {
#pragma unroll
            for (u32 element = 0; element < 4; element++)
                if (element < left) four[element] = from[element];
        }
        typedef Numbers<typename F::Number> Of;
        return (u64)Of::pack(four[0], four[1]) | (u64)Of::pack(four[2], four[3]) << 32;
    }
};

// Inputs of the stream's blocks from `first` on, of all parts: (part, chunk, group of rows, lane).
template <class F, u32 GROUPS, class FROM>
__device__ void stage_inputs(const ProductParameters &p, u32 first, u64 *to, FROM rows) {
    constexpr u32 TOGETHER = 4; // reads that are under way at once
    const u32 length = segment_length(p), all = p.parts * p.rows * chunks_at_once<GROUPS>(p.parts) * 8;
    const bool is_whole = p.inputs % 4 == 0 && length % 4 == 0;
#pragma unroll 1
    for (u32 begin = threadIdx.x; begin < all; begin += TOGETHER * blockDim.x) {
        u64 pieces[TOGETHER];
        u32 places[TOGETHER];
#pragma unroll
        for (u32 at = 0; at < TOGETHER; at++) {
            const Piece<F, GROUPS> piece(p, begin + at * blockDim.x, first, length);
            places[at] = piece.place;
            pieces[at] = begin + at * blockDim.x < all ? piece.read(p, is_whole, rows) : 0;
        }
#pragma unroll
        for (u32 at = 0; at < TOGETHER; at++)
            if (begin + at * blockDim.x < all) to[places[at]] = pieces[at];
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
                multiply_both<bf16>(whole, ones, of_rows);
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
template <class F, u32 GROUPS, class FROM = InOrder>
__device__ void multiply_few(const ProductParameters &p, FROM rows = FROM{}) {
    DYNAMIC_SHARED(memory);
    constexpr u32 STAGE = CHUNKS * F::QUADS;
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const u32 part = warp % p.parts, tile = blockIdx.x * (warps / p.parts) + warp / p.parts;
    const u32 count = p.segments / p.parts, blocks = blocks_of(segment_length(p)), all = count * blocks;
    const u32 chunks = chunks_at_once<GROUPS>(p.parts), piece = chunks / CHUNKS;
    const typename F::BlockReader weights(p, tile);
    Quad *ring = (Quad *)memory + warp * F::STAGES * STAGE, *inputs = (Quad *)memory + warps * F::STAGES * STAGE;

    u32 begun = 0, begun_segment = part * count, begun_block = 0, to = 0;
    auto begin = [&]() {
        if (begun < all) weights.begin_block(begun_segment, begun_block, ring + to);
        end_copies();
        begun++;
        to = to + STAGE == F::STAGES * STAGE ? 0 : to + STAGE;
        if (++begun_block == blocks) begun_block = 0, begun_segment++;
    };
    for (u32 stage = 0; stage + 1 < F::STAGES; stage++) begin();
    clear_rows<F, GROUPS>(p, inputs);

    Tree<GROUPS> tree;
    float sums[GROUPS][4] = {};
    u32 segment = 0, block = 0, from = 0;
    for (u32 at = 0; at < all; at++) {
        const u32 staged = at & (piece - 1);
        if (staged == 0) {
            __syncthreads();
            stage_inputs<F, GROUPS>(p, at, (u64 *)inputs, rows);
            __syncthreads();
        }
        wait_for_copies<F::STAGES - 2>();
        wait_for_lanes();
        begin();
        const u32 first = part * chunks + staged * CHUNKS;
        multiply_block<F, GROUPS>(sums, ring + from, inputs + first * GROUPS * WARP);
        from = from + STAGE == F::STAGES * STAGE ? 0 : from + STAGE;
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
