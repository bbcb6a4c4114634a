// Quantized weights, as `ops/cuda/product/tiles.rs` lays them out.
//
// Memory holds chunk after chunk of 32 elements of the 16 rows of a tile. A chunk has, for each lane, its elements of
// both instructions' fragments, then the scales, and minima, of its rows: f16, those of rows `group` and `group + 8`
// side by side. A warp reads a chunk as one run of 16-byte words. The first instruction has the first 16 elements of a
// chunk, so that scales may be of 16 or of 32 elements.
//
// Elements become bf16 exactly, and a group's sum is multiplied by its scale in f32 once it is whole: rounding
// `element * scale` to bf16 would lose bits of the scale with every weight, and take more instructions. A minimum is
// multiplied by the sum of the group's inputs, which two instructions with ones compute.
#pragma once

#include "product.cuh"

// (word & mask) ^ bits in one instruction, of which only one operand may be a constant in it: the other is kept in a
// register. Bits that the mask has not are added so.
template <u32 BITS> __device__ inline u32 pick(u32 word, u32 mask) {
#ifdef LOCKSTEP_EMULATED
    return (word & mask) ^ BITS;
#else
    u32 picked;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(picked) : "r"(word), "r"(mask), "n"(BITS));
    return picked;
#endif
}

// Four signed bytes of which bytes 0 and 2 are the first two, with their sign bits inverted, as bf16: 128 + the lower
// seven bits, less 256 or 128.
__device__ inline void widen_bytes(u32 bytes, u32 &first, u32 &second) {
    const u32 one = 0x3f803f80u, odd = bytes >> 8;
    const u32 seven = 0x007f007fu, eighth = 0x00800080u;
    first = multiply_add_bf16(pick<0x43004300u>(bytes, seven), one, pick<0xc380c380u>(bytes, eighth));
    second = multiply_add_bf16(pick<0x43004300u>(odd, seven), one, pick<0xc380c380u>(odd, eighth));
}

// Two nibbles, the lowest of each half of a word, as bf16: 128 + the nibble, less 128 and the offset.
template <u32 OFFSET> __device__ inline u32 widen_nibbles(u32 nibbles) {
    const u32 picked = pick<0x43004300u>(nibbles, 0x000f000fu);
    return multiply_add_bf16(picked, 0x3f803f80u, 0xc300c300u + OFFSET * 0x00010001u);
}

// Four numbers of 4 bits of exponent and 3 of mantissa in the order of bytes above: bf16 of the same bits is smaller by
// 2^120, also where it is subnormal.
__device__ inline void widen_float8(u32 bytes, u32 &first, u32 &second) {
    const u32 factor = 0x7b807b80u;
    first = multiply_add_bf16((bytes << 4 & 0x07f007f0u) | (bytes << 8 & 0x80008000u), factor, 0);
    second = multiply_add_bf16((bytes >> 4 & 0x07f007f0u) | (bytes & 0x80008000u), factor, 0);
}

// Chunks of BYTES of elements a lane and TERMS numbers a row.
template <u32 BYTES, u32 TERMS> struct Chunks {
    typedef bf16 Number;
    static constexpr bool SPREAD = true;
    static constexpr u32 QUADS = BYTES * WARP / 16 + TERMS * 2;
    static constexpr u32 STAGES = BYTES == 8 ? 8 : 7;

    // What each of THREADS threads copies of TILES tiles, a chunk at a time.
    template <u32 TILES, u32 THREADS> struct Reader {
        static constexpr u32 COUNT = (TILES * QUADS + THREADS - 1) / THREADS;
        const Quad *tiles[COUNT];
        bool are_there[COUNT];
        u32 chunks, thread;

        __device__ inline Reader(const ProductParameters &p, u32 first_tile, u32 thread)
            : chunks(chunks_of(segment_length(p))), thread(thread) {
            const u32 count = tiles_of(p);
#pragma unroll
            for (u32 at = 0; at < COUNT; at++) {
                const u32 quad = thread + at * THREADS, tile = first_tile + quad / QUADS;
                are_there[at] = tile < count;
                tiles[at] = (const Quad *)p.weights;
                if (are_there[at]) tiles[at] += (u64)tile * p.segments * chunks * QUADS + quad % QUADS;
            }
        }

        // To where the chunk of the first tile is to be.
        __device__ inline void begin(u32 segment, u32 chunk, Quad *to) const {
            const u32 before = (segment * chunks + chunk) * QUADS;
#pragma unroll
            for (u32 at = 0; at < COUNT; at++) {
                const u32 quad = thread + at * THREADS;
                const bool is_there = are_there[at] && chunk < chunks;
                if (quad < TILES * QUADS) begin_copy(to + quad, is_there ? tiles[at] + before : tiles[at], is_there);
            }
        }
    };

    // A tile's blocks, read by a warp: chunks lie one after the other.
    struct BlockReader {
        static constexpr u32 BLOCK_QUADS = CHUNKS * QUADS;
        const Quad *tile;
        bool is_tile;
        u32 chunks;

        __device__ inline BlockReader(const ProductParameters &p, u32 tile)
            : tile((const Quad *)p.weights), is_tile(tile < tiles_of(p)), chunks(chunks_of(segment_length(p))) {
            if (is_tile) this->tile += (u64)tile * p.segments * chunks * QUADS;
        }

        __device__ inline void begin_block(u32 segment, u32 block, Quad *to) const {
            const u32 lane = threadIdx.x % WARP;
            const u32 before = (segment * chunks + block * CHUNKS) * QUADS, left = (chunks - block * CHUNKS) * QUADS;
            const Quad *from = tile + before;
#pragma unroll
            for (u32 at = 0; at < BLOCK_QUADS; at += WARP) {
                const u32 quad = at + lane;
                const bool is_there = is_tile && quad < left;
                if (quad < BLOCK_QUADS) begin_copy(to + quad, is_there ? from + quad : tile, is_there);
            }
        }
    };

    // A number of both rows of a lane.
    static __device__ inline void term(const Quad *chunk, u32 at, float (&of_rows)[2]) {
        const u32 *terms = (const u32 *)chunk + BYTES * WARP / 4;
        const u32 both = terms[at * 8 + threadIdx.x % WARP / 4];
        of_rows[0] = widen_f16(both & 0xffffu);
        of_rows[1] = widen_f16(both >> 16);
    }
};

// Integers of BITS less OFFSET with SCALES scales a chunk, and with a minimum or without.
template <u32 BITS, u32 OFFSET, u32 SCALES, bool MINIMUM>
struct Integers : Chunks<BITS * 2, SCALES + (MINIMUM ? 1 : 0)> {
    typedef Chunks<BITS * 2, SCALES + (MINIMUM ? 1 : 0)> Base;
    static constexpr bool HAS_MINIMUM = MINIMUM;
    typedef Weights<SCALES> Held;

    static __device__ inline Held read(const Quad *chunk) {
        const u32 lane = threadIdx.x % WARP;
        Held held;
        if (BITS == 8) {
            const Quad bytes = chunk[lane];
            for (u32 half = 0; half < 2; half++)
                for (u32 below = 0; below < 2; below++)
                    widen_bytes(bytes.words[2 * half + below], held.words[half][below], held.words[half][2 + below]);
        } else {
            const u64 nibbles = ((const u64 *)chunk)[lane];
            for (u32 below = 0; below < 2; below++) {
                const u32 word = (u32)(nibbles >> 32 * below);
                for (u32 at = 0; at < 4; at++)
                    held.words[at / 2][at % 2 * 2 + below] = widen_nibbles<OFFSET>(word >> 4 * at);
            }
        }
        for (u32 scale = 0; scale < SCALES; scale++) Base::term(chunk, scale, held.scales[scale]);
        if (MINIMUM) Base::term(chunk, SCALES, held.minima);
        return held;
    }

    static __device__ inline void add(float (&sums)[4], const Held &held, const Quad &inputs, const float (&whole)[4]) {
        if (SCALES == 1) {
            float sum[4] = {};
            multiply_both<bf16>(sum, held.words, inputs);
            for (u32 at = 0; at < 4; at++) sums[at] = fmaf(held.scales[0][at / 2], sum[at], sums[at]);
        } else {
            for (u32 half = 0; half < 2; half++) {
                float sum[4] = {};
                const u32 of_half[2] = {inputs.words[2 * half], inputs.words[2 * half + 1]};
                multiply_bf16(sum, held.words[half], of_half);
                for (u32 at = 0; at < 4; at++) sums[at] = fmaf(held.scales[half % SCALES][at / 2], sum[at], sums[at]);
            }
        }
        if (MINIMUM)
            for (u32 at = 0; at < 4; at++) sums[at] = fmaf(-held.minima[at / 2], whole[at], sums[at]);
    }

    template <u32 COUNT>
    static __device__ inline void finish(const ProductParameters &, u32, u32, float (&)[COUNT][4]) {}
};

typedef Integers<8, 128, 1, false> Int8;
typedef Integers<8, 128, 1, true> Int8Minimum;
typedef Integers<8, 128, 2, false> Int8Short;
typedef Integers<4, 8, 1, false> Int4;
typedef Integers<4, 0, 1, true> Int4Minimum;

// Numbers of 8 bits with one scale for a row's segment, by which the segment's sum is multiplied.
struct Float8 : Chunks<16, 0> {
    static constexpr bool HAS_MINIMUM = false;
    typedef Weights<1> Held;

    static __device__ inline Held read(const Quad *chunk) {
        const Quad bytes = chunk[threadIdx.x % WARP];
        Held held;
        for (u32 half = 0; half < 2; half++)
            for (u32 below = 0; below < 2; below++)
                widen_float8(bytes.words[2 * half + below], held.words[half][below], held.words[half][2 + below]);
        return held;
    }

    static __device__ inline void add(float (&sums)[4], const Held &held, const Quad &inputs, const float (&)[4]) {
        multiply_both<bf16>(sums, held.words, inputs);
    }

    template <u32 COUNT>
    static __device__ inline void finish(const ProductParameters &p, u32 tile, u32 segment, float (&sums)[COUNT][4]) {
        const u32 tiles = tiles_of(p);
        if (tile >= tiles) return;
        const float *of_rows = p.scales + ((u64)segment * tiles + tile) * TILE + threadIdx.x % WARP / 4;
        for (u32 group = 0; group < COUNT; group++)
            for (u32 at = 0; at < 4; at++) sums[group][at] *= of_rows[at / 2 * 8];
    }
};
