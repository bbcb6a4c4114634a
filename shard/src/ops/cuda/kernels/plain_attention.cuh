// Attention over keys and values of f32, without tensor cores.
//
// A split is walked in steps of 32. In a step a lane has one position: it computes its score by one chain of fused
// multiply-adds, the warp takes maximum and sum by butterfly, and the values are added position by position.
//
// Up to 8 warps a block; queries are dealt to them in turn, 4 for each at most.
// Shared memory: the queries, (queries, width) floats, and one step's keys, then its values, (32, width + 1).
#pragma once

#include "attention.cuh"

constexpr u32 EACH = 4; // queries of a warp

// Of a query's walk: the largest score, the sum of weights, and the weighted sum of values.
template <u32 COUNT> struct Walk {
    float largest, mass;
    float sums[COUNT];
};

template <u32 COUNT> __device__ inline void begin(Walk<COUNT> &walk) {
    walk.largest = -infinity();
    walk.mass = 0;
#pragma unroll
    for (u32 at = 0; at < COUNT; at++) walk.sums[at] = 0;
}

// Adds a split to those before it.
template <u32 COUNT> __device__ inline void add_split(Walk<COUNT> &all, const Walk<COUNT> &split) {
    const Fold fold = fold_of(all.largest, split.largest);
    all.largest = fold.largest;
    all.mass = folded(fold, all.mass, split.mass);
#pragma unroll
    for (u32 at = 0; at < COUNT; at++) all.sums[at] = folded(fold, all.sums[at], split.sums[at]);
}

// Loads a step's keys or values; what lies past `end` was never written.
__device__ inline void load_step(const AttentionParameters &p, const void *pool, const u32 *table, u32 first, u32 end,
                                 float *step) {
    for (u32 at = threadIdx.x; at < WARP * p.width; at += blockDim.x) {
        const u32 position = first + at / p.width, element = at % p.width;
        float value = 0;
        if (position < end) {
            const u64 block = table[position / SLOTS];
            const u64 slot = (block * p.kv_heads + blockIdx.y) * SLOTS + position % SLOTS;
            value = ((const float *)pool)[slot * p.padded_width + element];
        }
        step[at / p.width * (p.width + 1) + element] = value;
    }
}

// How COUNT times 32 elements, or fewer, are attended to.
template <u32 COUNT> __device__ void attend_plainly(const AttentionParameters &p) {
    DYNAMIC_SHARED(shared);
    const Tile tile = p.tiles[blockIdx.x];
    const u32 group = p.query_heads / p.kv_heads, queries = tile.rows * group;
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const u32 *table = p.tables + tile.table;
    const Range range = range_of(p, tile);
    if (range.start >= range.end) return;
    float *query = shared, *step = shared + (u64)p.tile_queries * p.width;
    for (u32 at = threadIdx.x; at < queries * p.width; at += blockDim.x) {
        const u32 of = at / p.width;
        const u64 row = tile.first_row + of / group, head = blockIdx.y * group + of % group;
        query[at] = p.qkv[row * p.row_elements + head * p.width + at % p.width];
    }
    Walk<COUNT> all[EACH], now[EACH];
#pragma unroll
    for (u32 each = 0; each < EACH; each++) begin(all[each]), begin(now[each]);
    for (u32 first = range.start / WARP * WARP; first < range.end; first += WARP) {
        const u32 position = first + lane;
        float weights[EACH];
        __syncthreads();
        load_step(p, p.keys, table, first, range.end, step);
        __syncthreads();
#pragma unroll
        for (u32 each = 0; each < EACH; each++) {
            const u32 of = warp + each * warps;
            weights[each] = 0;
            if (of >= queries) continue;
            const float *x = query + (u64)of * p.width, *key = step + lane * (p.width + 1);
            float score = 0;
            for (u32 at = 0; at < p.width; at++) score = fmaf(x[at], key[at], score);
            score *= p.scale;
            if (p.softcap != 0.0f) score = p.softcap * tanhf(score / p.softcap);
            score *= LOG2_E;
            const u32 row = tile.first_position + of / group;
            const bool is_seen = position <= row && position >= first_seen(p, row);
            const float largest_here = warp_max(is_seen ? score : -infinity());
            const float largest = largest_here > now[each].largest ? largest_here : now[each].largest;
            if (largest == -infinity()) continue;
            const float shrink = now[each].largest == -infinity() ? 0.0f : exp2f(now[each].largest - largest);
            weights[each] = is_seen ? exp2f(score - largest) : 0.0f;
            now[each].largest = largest;
            now[each].mass = fmaf(now[each].mass, shrink, warp_sum(weights[each]));
#pragma unroll
            for (u32 at = 0; at < COUNT; at++) now[each].sums[at] *= shrink;
        }
        __syncthreads();
        load_step(p, p.values, table, first, range.end, step);
        __syncthreads();
        for (u32 from = 0; from < WARP; from++) {
            const float *value = step + from * (p.width + 1);
#pragma unroll
            for (u32 each = 0; each < EACH; each++) {
                const float weight = WARP_SHUFFLE(weights[each], from);
#pragma unroll
                for (u32 at = 0; at < COUNT; at++)
                    if (lane + at * WARP < p.width)
                        now[each].sums[at] = fmaf(weight, value[lane + at * WARP], now[each].sums[at]);
            }
        }
        const bool is_split = (first + WARP) % SPLIT == 0 || first + WARP >= range.end;
        if (!is_split || p.splits > 0) continue;
#pragma unroll
        for (u32 each = 0; each < EACH; each++) add_split(all[each], now[each]), begin(now[each]);
    }
#pragma unroll
    for (u32 each = 0; each < EACH; each++) {
        const u32 of = warp + each * warps;
        if (of >= queries) continue;
        float *output = p.splits > 0 ? partial_of(p, blockIdx.z, of) : p.output + head_of(p, tile, of) * p.width;
#pragma unroll
        for (u32 at = 0; at < COUNT; at++)
            if (lane + at * WARP < p.width)
                output[lane + at * WARP] = p.splits > 0 ? now[each].sums[at] : all[each].sums[at] / all[each].mass;
        if (p.splits > 0 && lane == 0) {
            output[p.width] = now[each].largest;
            output[p.width + 1] = now[each].mass;
        }
    }
}
