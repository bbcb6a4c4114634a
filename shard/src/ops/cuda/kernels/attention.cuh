// What attention's kernels share: which rows a block computes, where their keys and values are, and how the splits of a
// context become one.
#pragma once

#include "device.cuh"

constexpr u32 SPLIT = 256; // positions
constexpr u32 SLOTS = 16;  // of a KV block

constexpr float LOG2_E = 1.44269504f;

struct Tile {
    u32 first_row; // of the batch
    u32 rows;
    u32 first_position;
    u32 table; // where in `tables` its sequence's begins
};

struct AttentionParameters {
    const float *qkv;   // (rows, row_elements): query heads first
    const void *keys;   // (blocks, KV heads, 16, padded_width); of 8 bits 16 scales of f32 more for each head
    const void *values; // likewise
    const Tile *tiles;  // (tiles)
    const u32 *tables;  // block numbers
    float *output;      // (rows, query heads * width)
    float *partial;     // (tiles, KV heads, splits, queries of a tile, width + 2), where splits are computed apart
    u32 row_elements;
    u32 query_heads;
    u32 kv_heads;
    u32 width;
    u32 padded_width; // elements a slot has room for, a multiple of 16
    u32 tile_queries; // of the largest tile
    u32 splits;       // 0: one block walks them all; else blocks along z, from the tile's first split on
    u32 window;       // positions a row sees, its own included; 0: all
    float scale;
    float softcap; // 0: none
};

__device__ inline u32 first_seen(const AttentionParameters &p, u32 position) {
    return p.window == 0 || position < p.window ? 0 : position + 1 - p.window;
}

// Of a tile: the positions a block walks, those its rows see, and the first of its splits.
struct Range {
    u32 start, end;
    u32 split;
};

// Of this block; empty where its tile has no such split.
__device__ inline Range range_of(const AttentionParameters &p, const Tile &tile) {
    Range range;
    range.start = first_seen(p, tile.first_position);
    range.end = tile.first_position + tile.rows;
    range.split = range.start / SPLIT;
    if (p.splits == 0) return range;
    range.split += blockIdx.z;
    const u32 first = range.split * SPLIT;
    range.start = first > range.start ? first : range.start;
    range.end = first + SPLIT < range.end ? first + SPLIT : range.end;
    return range;
}

// Where of the batch's query heads a tile's query is, and where this block writes what it attends to: to its row, or,
// where splits are apart, to those that are folded later.
__device__ inline u64 head_of(const AttentionParameters &p, const Tile &tile, u32 query) {
    const u32 group = p.query_heads / p.kv_heads;
    return (u64)(tile.first_row + query / group) * p.query_heads + blockIdx.y * group + query % group;
}

__device__ inline float *partial_of(const AttentionParameters &p, u32 split, u32 query) {
    const u64 walk = ((u64)blockIdx.x * p.kv_heads + blockIdx.y) * p.splits + split;
    return p.partial + (walk * p.tile_queries + query) * (p.width + 2);
}

// How a split is added to those before it. Scores are in units of log2(e): weights are powers of two.
struct Fold {
    float largest;       // of both
    float before, after; // what those before, and the split, are multiplied by
    bool is_nothing;     // the split was not seen, and changes no bit
};

__device__ inline Fold fold_of(float before, float split) {
    Fold fold;
    fold.is_nothing = split == -infinity();
    fold.largest = split > before ? split : before;
    fold.before = before == -infinity() ? 0.0f : exp2f(before - fold.largest);
    fold.after = exp2f(split - fold.largest);
    return fold;
}

// A sum of a split may be a zero of either sign, which is not to be seen: plus zero makes it one of one sign.
__device__ inline float folded(const Fold &fold, float before, float split) {
    return fold.is_nothing ? before : fmaf(before, fold.before, fmaf(split, fold.after, 0.0f));
}
