// What products on tensor cores share: their parameters, the one order of their sums, and where results go.
//
// An element of the result is, for each segment of the inner dimension, one chain of sums from zero: chunks of 32
// elements in order, padded by zeros to whole blocks of 128. A chunk is two instructions of 16 elements each; which 16,
// and in which order, follows from the type of the weights alone (`SPREAD`). Segments are added in the tree of
// `comm/tree.rs`. Weights are the instruction's rows, inputs its columns, in every kernel.
//
// So the bits are the same for any number of rows, any kernel, any cut into tiles and, where a rank has whole segments,
// any number of ranks, as long as hardware computes each column of an instruction as it would any other, whatever the
// other columns hold. Nothing that is published promises that; the check of a row alone and among others tests it.
#pragma once

#include "activate.cuh"
#include "tensor.cuh"

struct ProductParameters {
    const void *input;   // few rows: f32 (rows, inputs); many: numbers of 16 bits as `arrange_inputs` leaves them
    const void *weights; // bf16, f16: (outputs, inputs); quantized: (tiles, segments, chunks, a chunk of a tile)
    const float *scales; // float8: (segments, tiles, 16)
    float *output;       // (rows, stride)
    float *waiting;      // many rows: (levels of the tree, blocks, 64, 256), sums that wait for their siblings
    u32 rows;
    u32 inputs;
    u32 outputs;  // rows of the weights
    u32 segments; // equal parts of the inner dimension: a power of two up to 8
    u32 stride;   // elements from one row of the output to the next
    u32 function; // 0: none; else of the first half of the outputs, times the second half: 1 + the activation's number
    u32 parts;    // few rows: warps that share a tile, each with as many of its segments
};

constexpr u32 TILE = 16;   // rows of weights of one instruction
constexpr u32 GROUP = 8;   // rows of inputs of one instruction
constexpr u32 CHUNK = 32;  // elements of the inner dimension of two instructions
constexpr u32 CHUNKS = 4;  // of a block of the inner dimension

__device__ inline u32 segment_length(const ProductParameters &p) { return p.inputs / p.segments; }

// Chunks and blocks of one segment.
__device__ inline u32 chunks_of(u32 length) { return (length + CHUNK - 1) / CHUNK; }
__device__ inline u32 blocks_of(u32 length) { return (length + CHUNK * CHUNKS - 1) / (CHUNK * CHUNKS); }

// A tile has 16 rows of weights; where results are gated, eight of the first half and the same eight of the second, so
// that a lane has both numbers of a result.
__device__ inline u32 tiles_of(const ProductParameters &p) {
    return p.function == 0 ? (p.outputs + TILE - 1) / TILE : (p.outputs / 2 + TILE / 2 - 1) / (TILE / 2);
}

// The row of the weights that is row `at` of a tile; `outputs` where there is none.
__device__ inline u32 weights_row(const ProductParameters &p, u32 tile, u32 at) {
    if (p.function == 0) {
        const u32 row = tile * TILE + at;
        return row < p.outputs ? row : p.outputs;
    }
    const u32 width = p.outputs / 2, column = tile * (TILE / 2) + at % 8;
    return column < width ? at / 8 * width + column : p.outputs;
}

// Writes the sums of a tile and a group of rows, as fragments hold them.
__device__ inline void write_sums(const ProductParameters &p, u32 tile, u32 first_row, const float (&sums)[4]) {
    const u32 lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4 * 2;
    for (u32 at = 0; at < 2; at++) {
        const u32 row = first_row + pair + at;
        if (row >= p.rows) continue;
        float *place = p.output + (u64)row * p.stride;
        if (p.function == 0) {
            const u32 column = tile * TILE + group;
            if (column < p.outputs) place[column] = sums[at];
            if (column + 8 < p.outputs) place[column + 8] = sums[2 + at];
        } else {
            const u32 column = tile * (TILE / 2) + group;
            if (column < p.outputs / 2) place[column] = activate(p.function - 1, sums[at]) * sums[2 + at];
        }
    }
}

// Where four neighbouring inputs, the `piece`-th of a chunk's eight, go: among its four lanes' 16 bytes, counted in
// halves of those. The first half is the first instruction's.
template <class F> __device__ inline u32 place_of(u32 piece) { return F::SPREAD ? piece % 4 * 2 + piece / 4 : piece; }

// What a lane multiplies by: both instructions' fragments of weights, and what the format has besides.
template <u32 SCALES> struct Weights {
    u32 words[2][4];
    float scales[SCALES][2]; // rows `group` and `group + 8`
    float minima[2];
};

template <class NUMBER>
__device__ inline void multiply_both(float (&sums)[4], const u32 (&words)[2][4], const Quad &inputs) {
    const u32 first[2] = {inputs.words[0], inputs.words[1]}, second[2] = {inputs.words[2], inputs.words[3]};
    Numbers<NUMBER>::multiply(sums, words[0], first);
    Numbers<NUMBER>::multiply(sums, words[1], second);
}

// Rows of bf16 or f16 as checkpoints have them. The first instruction of a chunk has the first four of each eight
// elements, so that a lane's 16 bytes of a row are its own in both.
template <class NUMBER> struct Rows {
    typedef NUMBER Number;
    static constexpr bool SPREAD = false, HAS_MINIMUM = false;
    static constexpr u32 QUADS = 64; // of a chunk of a tile in a block's memory: (rows from 0 or from 8, lane)
    static constexpr u32 STAGES = 4;
    typedef Weights<1> Held;

    // What each of THREADS threads copies of TILES tiles, a chunk at a time: the same part of two rows. A lane of a
    // warp's one tile copies what it reads itself.
    template <u32 TILES, u32 THREADS> struct Reader {
        static_assert(TILES * QUADS == 2 * THREADS, "a thread copies two parts");
        const NUMBER *first; // row
        u64 step;          // to the second, in elements
        u32 length, inner, thread;
        bool has_first, has_second;
        bool is_whole; // 16 bytes at once

        __device__ inline Reader(const ProductParameters &p, u32 first_tile, u32 thread)
            : length(segment_length(p)), inner(thread % 4 * 8), thread(thread) {
            is_whole = p.inputs % 8 == 0 && length % 8 == 0;
            const u32 row = row_of(p, first_tile, thread);
            has_first = row < p.outputs;
            has_second = row_of(p, first_tile, thread + THREADS) < p.outputs;
            first = (const NUMBER *)p.weights + (has_first ? (u64)row * p.inputs : 0);
            const u32 columns = TILES * TILE / 2;
            const u32 rows = p.function == 0 ? columns : TILES == 1 ? p.outputs / 2 : columns / 2;
            step = (u64)rows * p.inputs;
        }

        static __device__ inline u32 row_of(const ProductParameters &p, u32 first_tile, u32 quad) {
            return weights_row(p, first_tile + quad / QUADS, quad % QUADS / WARP * 8 + quad % WARP / 4);
        }

        // To where the chunk of the first tile is to be.
        __device__ inline void begin(u32 segment, u32 chunk, Quad *to) const {
            const u32 within = chunk * CHUNK + inner, from = segment * length + within;
            if (is_whole) begin_whole(within, from, to);
            else copy(within, from, to);
        }

        __device__ inline void begin_whole(u32 within, u32 from, Quad *to) const {
            const bool is_first = has_first && within < length, is_second = has_second && within < length;
            begin_copy(to + thread, is_first ? first + from : first, is_first);
            begin_copy(to + thread + THREADS, is_second ? first + from + step : first, is_second);
        }

        __device__ inline void copy(u32 within, u32 from, Quad *to) const {
            NUMBER *place = (NUMBER *)(to + thread);
#pragma unroll 1
            for (u32 element = 0; element < 8; element++, place++) {
                const bool is_there = within + element < length;
                const NUMBER *of_row = first + from + element;
                place[0] = has_first && is_there ? of_row[0] : NUMBER{0};
                place[THREADS * 8] = has_second && is_there ? of_row[step] : NUMBER{0};
            }
        }
    };

    // A tile's blocks, read by a warp.
    struct BlockReader : Reader<1, WARP> {
        __device__ inline BlockReader(const ProductParameters &p, u32 tile)
            : Reader<1, WARP>(p, tile, threadIdx.x % WARP) {}

        __device__ inline void begin_block(u32 segment, u32 block, Quad *to) const {
            const u32 within = block * CHUNKS * CHUNK + this->inner, from = segment * this->length + within;
            if (this->is_whole) {
#pragma unroll
                for (u32 at = 0; at < CHUNKS; at++)
                    this->begin_whole(within + at * CHUNK, from + at * CHUNK, to + at * QUADS);
            } else {
#pragma unroll 1
                for (u32 at = 0; at < CHUNKS; at++)
                    this->copy(within + at * CHUNK, from + at * CHUNK, to + at * QUADS);
            }
        }
    };

    static __device__ inline Held read(const Quad *chunk) {
        const u32 lane = threadIdx.x % WARP;
        const Quad upper = chunk[lane], lower = chunk[WARP + lane];
        return Held{{{upper.words[0], lower.words[0], upper.words[1], lower.words[1]},
                     {upper.words[2], lower.words[2], upper.words[3], lower.words[3]}}};
    }

    static __device__ inline void add(float (&sums)[4], const Held &held, const Quad &inputs, const float (&)[4]) {
        multiply_both<NUMBER>(sums, held.words, inputs);
    }

    template <u32 COUNT>
    static __device__ inline void finish(const ProductParameters &, u32, u32, float (&)[COUNT][4]) {}
};
