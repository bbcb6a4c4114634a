// What becomes of a row's heads between their product and attention: queries and keys are normed and turned, keys and
// values go to their slots.
#pragma once

#include "eight_bits.cuh"

constexpr u32 WIDEST_HEAD = 256;
constexpr u32 HEADS_OF_A_BLOCK = 8;

struct WriteHeadsParameters {
    float *qkv;           // (rows, row_elements): query heads, key heads, value heads; queries are replaced
    const float *weights; // (2, width): of queries' norms, of keys'; null where heads are not normed
    const float *table;   // (positions, rotary): cosines, then sines; null where nothing turns
    const u32 *positions; // (rows)
    const u32 *slots;     // (rows): 16 * block + slot
    void *keys;           // (blocks, KV heads, 16, padded_width); of 8 bits 16 scales of f32 more for each head
    void *values;         // likewise
    u32 rows;
    u32 row_elements;
    u32 query_heads;
    u32 kv_heads;
    u32 width;
    u32 padded_width;
    u32 rotary; // elements of a head that turn, even
    float epsilon;
};

// The root mean square norm of a head; each lane has elements of its own.
__device__ inline void norm_head(const WriteHeadsParameters &p, const float *weights, float *x) {
    const u32 lane = threadIdx.x % WARP;
    float squares = 0;
    for (u32 at = lane; at < p.width; at += WARP) squares = fmaf(x[at], x[at], squares);
    const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)p.width + p.epsilon);
    for (u32 at = lane; at < p.width; at += WARP) x[at] = x[at] * factor * weights[at];
}

__device__ inline void turn_head(const WriteHeadsParameters &p, u32 position, float *x) {
    const u32 half = p.rotary / 2;
    const float *angles = p.table + (u64)position * p.rotary;
    WARP_SYNC();
    for (u32 pair = threadIdx.x % WARP; pair < half; pair += WARP) {
        const float left = x[pair], right = x[pair + half], cosine = angles[pair], sine = angles[half + pair];
        x[pair] = left * cosine - right * sine;
        x[pair + half] = right * cosine + left * sine;
    }
    WARP_SYNC();
}

// Writes a head to its slot of a tile, and zeros to what is beyond its width, which products read.
template <class HELD>
__device__ inline void write_head(const WriteHeadsParameters &p, const float *x, HELD *tile, u32 slot) {
    for (u32 at = threadIdx.x % WARP; at < p.padded_width; at += WARP)
        store(tile + slot * p.padded_width + at, at < p.width ? x[at] : 0.0f);
}

template <class HELD>
__device__ inline void write_scaled_head(const WriteHeadsParameters &p, const float *x, HELD *tile, u32 slot) {
    const u32 lane = threadIdx.x % WARP;
    // As bits, what is no number is larger than what is one.
    u32 largest = 0;
    for (u32 at = lane; at < p.width; at += WARP) {
        const u32 size = bits_of(x[at]) & 0x7fffffffu;
        largest = size > largest ? size : largest;
    }
    const Scale scale = scale_of(from_bits(warp_max(largest)), largest_of(tile));
    for (u32 at = lane; at < p.padded_width; at += WARP)
        store(tile + slot * p.padded_width + at, at < p.width ? x[at] * scale.factor : 0.0f);
    if (lane == 0) ((float *)(tile + 16 * p.padded_width))[slot] = scale.scale;
}

__device__ inline void write_head(const WriteHeadsParameters &p, const float *x, Integer8 *tile, u32 slot) {
    write_scaled_head(p, x, tile, slot);
}

__device__ inline void write_head(const WriteHeadsParameters &p, const float *x, Float8 *tile, u32 slot) {
    write_scaled_head(p, x, tile, slot);
}

// One warp a head of a row, eight a block.
template <class HELD> __device__ void write_heads(const WriteHeadsParameters &p) {
    __shared__ float of_warps[HEADS_OF_A_BLOCK][WIDEST_HEAD];
    const u32 heads = p.query_heads + 2 * p.kv_heads, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u64 of_all = (u64)blockIdx.x * HEADS_OF_A_BLOCK + warp;
    if (of_all >= (u64)p.rows * heads) return;
    const u64 row = of_all / heads;
    const u32 head = of_all % heads;
    const bool is_query = head < p.query_heads, is_value = head >= p.query_heads + p.kv_heads;
    float *source = p.qkv + row * p.row_elements + (u64)head * p.width, *x = of_warps[warp];
    for (u32 at = lane; at < p.width; at += WARP) x[at] = source[at];
    if (p.weights && !is_value) norm_head(p, p.weights + (is_query ? 0 : p.width), x);
    if (p.table && !is_value) turn_head(p, p.positions[row], x);
    if (is_query) {
        for (u32 at = lane; at < p.width; at += WARP) source[at] = x[at];
        return;
    }
    const u64 block = p.slots[row] / 16, of_kv = (head - p.query_heads) % p.kv_heads;
    const u64 tile_bytes = 16 * (p.padded_width * sizeof(HELD) + (sizeof(HELD) == 1 ? sizeof(float) : 0));
    char *tile = (char *)(is_value ? p.values : p.keys) + (block * p.kv_heads + of_kv) * tile_bytes;
    write_head(p, x, (HELD *)tile, p.slots[row] % 16);
}
