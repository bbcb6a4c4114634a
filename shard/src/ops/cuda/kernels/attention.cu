// Attention over block tables, for decoding and for prompts.
//
// A context is cut into splits of 256 positions that begin at fixed places, a split is walked in steps of 32. In a
// step a lane has one position: it computes its score by one chain of fused multiply-adds, the warp takes maximum
// and sum by butterfly, and the values are added position by position. Splits are folded into one another in their
// order. So what a row attends to has the same bits whether its splits are walked one after the other by one block
// (prompts: no scratch memory) or by a block each (decoding: the whole device works on one row), however a prompt is
// cut into chunks, and whatever else is in the batch.
//
// Block (tile, KV head, split) of up to 8 warps. A tile is some neighbouring rows of one sequence with all query
// heads of the KV head: its queries are dealt to the warps in turn, 4 for each at most.
// Shared memory: the queries, (queries, width) floats, and one step's keys, then its values, (32, width + 1).
#include "device.cuh"

constexpr u32 SPLIT = 256;
constexpr u32 SLOTS = 16;
constexpr u32 EACH = 4; // queries of a warp

struct Tile {
    u32 first_row; // of the batch
    u32 rows;
    u32 first_position;
    u32 table; // where in `tables` its sequence's begins
};

struct AttentionParameters {
    const float *qkv;   // (rows, row_elements): query heads first
    const void *keys;   // (blocks, KV heads, 16, width)
    const void *values; // likewise
    const Tile *tiles;  // (tiles)
    const u32 *tables;  // block numbers
    float *output;      // (rows, query heads * width)
    float *partial;     // (tiles, KV heads, splits, queries of a tile, width + 2), where splits are computed apart
    u32 row_elements;
    u32 query_heads;
    u32 kv_heads;
    u32 width;
    u32 tile_queries; // of the largest tile
    u32 splits;       // 0: one block walks them all; else blocks along z, from the tile's first split on
    u32 window;       // positions a row sees, its own included; 0: all
    float scale;
    float softcap; // 0: none
};

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

// What a walk is to be multiplied by where its largest score becomes `largest`, which is a number.
__device__ inline float shrunk(float before, float largest) {
    return before == -infinity() ? 0.0f : expf(before - largest);
}

// Adds a split to those before it.
template <u32 COUNT> __device__ inline void fold(Walk<COUNT> &all, const Walk<COUNT> &split) {
    const float largest = split.largest > all.largest ? split.largest : all.largest;
    if (largest == -infinity()) return;
    const float before = shrunk(all.largest, largest), after = shrunk(split.largest, largest);
    all.largest = largest;
    all.mass = fmaf(all.mass, before, split.mass * after);
#pragma unroll
    for (u32 at = 0; at < COUNT; at++) all.sums[at] = fmaf(all.sums[at], before, split.sums[at] * after);
}

__device__ inline u32 first_seen(const AttentionParameters &p, u32 position) {
    return p.window == 0 || position < p.window ? 0 : position + 1 - p.window;
}

// Loads a step's keys or values; what lies past `end` was never written.
template <class K>
__device__ inline void load_step(const AttentionParameters &p, const void *pool, const u32 *table, u32 first, u32 end,
                                 float *step) {
    for (u32 at = threadIdx.x; at < WARP * p.width; at += blockDim.x) {
        const u32 position = first + at / p.width, element = at % p.width;
        float value = 0;
        if (position < end) {
            const u64 block = table[position / SLOTS];
            const u64 slot = (block * p.kv_heads + blockIdx.y) * SLOTS + position % SLOTS;
            value = widen(((const K *)pool)[slot * p.width + element]);
        }
        step[at / p.width * (p.width + 1) + element] = value;
    }
}

template <class K, u32 COUNT> __device__ void attend(const AttentionParameters &p) {
    DYNAMIC_SHARED(shared);
    const Tile tile = p.tiles[blockIdx.x];
    const u32 group = p.query_heads / p.kv_heads, queries = tile.rows * group;
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const u32 *table = p.tables + tile.table;
    const u32 end = tile.first_position + tile.rows;
    const u32 start = first_seen(p, tile.first_position);
    u32 split = start / SPLIT, end_split = (end + SPLIT - 1) / SPLIT;
    if (p.splits > 0) {
        split += blockIdx.z;
        if (split >= end_split) return;
        end_split = split + 1;
    }
    float *query = shared, *step = shared + (u64)p.tile_queries * p.width;
    for (u32 at = threadIdx.x; at < queries * p.width; at += blockDim.x) {
        const u32 of = at / p.width;
        const u64 row = tile.first_row + of / group, head = blockIdx.y * group + of % group;
        query[at] = p.qkv[row * p.row_elements + head * p.width + at % p.width];
    }
    Walk<COUNT> all[EACH], now[EACH];
#pragma unroll
    for (u32 each = 0; each < EACH; each++) begin(all[each]);
    for (; split < end_split; split++) {
#pragma unroll
        for (u32 each = 0; each < EACH; each++) begin(now[each]);
        const u32 split_end = (split + 1) * SPLIT < end ? (split + 1) * SPLIT : end;
        for (u32 first = split * SPLIT; first < split_end; first += WARP) {
            if (first + WARP <= start) continue;
            const u32 position = first + lane;
            float weights[EACH];
            __syncthreads();
            load_step<K>(p, p.keys, table, first, end, step);
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
                const u32 row = tile.first_position + of / group;
                const bool is_seen = position <= row && position >= first_seen(p, row);
                const float largest_here = warp_max(is_seen ? score : -infinity());
                const float largest = largest_here > now[each].largest ? largest_here : now[each].largest;
                if (largest == -infinity()) continue;
                const float shrink = shrunk(now[each].largest, largest);
                weights[each] = is_seen ? expf(score - largest) : 0.0f;
                now[each].largest = largest;
                now[each].mass = fmaf(now[each].mass, shrink, warp_sum(weights[each]));
#pragma unroll
                for (u32 at = 0; at < COUNT; at++) now[each].sums[at] *= shrink;
            }
            __syncthreads();
            load_step<K>(p, p.values, table, first, end, step);
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
        }
#pragma unroll
        for (u32 each = 0; each < EACH; each++) fold(all[each], now[each]);
    }
#pragma unroll
    for (u32 each = 0; each < EACH; each++) {
        const u32 of = warp + each * warps;
        if (of >= queries) continue;
        const u64 row = tile.first_row + of / group, head = blockIdx.y * group + of % group;
        float *output = p.output + (row * p.query_heads + head) * p.width;
        if (p.splits > 0) {
            const u64 walk = ((u64)blockIdx.x * p.kv_heads + blockIdx.y) * p.splits + blockIdx.z;
            output = p.partial + (walk * p.tile_queries + of) * (p.width + 2);
        }
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

KERNEL(attend_f32_64, AttentionParameters, 256) { attend<float, 2>(p); }
KERNEL(attend_f32_128, AttentionParameters, 256) { attend<float, 4>(p); }
KERNEL(attend_f32_256, AttentionParameters, 256) { attend<float, 8>(p); }
KERNEL(attend_bf16_64, AttentionParameters, 256) { attend<bf16, 2>(p); }
KERNEL(attend_bf16_128, AttentionParameters, 256) { attend<bf16, 4>(p); }
KERNEL(attend_bf16_256, AttentionParameters, 256) { attend<bf16, 8>(p); }

// Folds splits that were computed apart, in their order. Block (tile, KV head, query of the tile), a thread an
// element, as many as make whole warps.
KERNEL(fold_splits, AttentionParameters, 256) {
    const Tile tile = p.tiles[blockIdx.x];
    const u32 group = p.query_heads / p.kv_heads, of = blockIdx.z, element = threadIdx.x;
    if (of >= tile.rows * group || element >= p.width) return;
    const u32 end = tile.first_position + tile.rows;
    const u32 first = first_seen(p, tile.first_position) / SPLIT, last = (end + SPLIT - 1) / SPLIT;
    Walk<1> all;
    begin(all);
    for (u32 split = 0; split < last - first; split++) {
        const u64 walk = ((u64)blockIdx.x * p.kv_heads + blockIdx.y) * p.splits + split;
        const float *part = p.partial + (walk * p.tile_queries + of) * (p.width + 2);
        Walk<1> now;
        now.largest = part[p.width];
        now.mass = part[p.width + 1];
        now.sums[0] = part[element];
        fold(all, now);
    }
    const u64 row = tile.first_row + of / group, head = blockIdx.y * group + of % group;
    p.output[(row * p.query_heads + head) * p.width + element] = all.sums[0] / all.mass;
}
