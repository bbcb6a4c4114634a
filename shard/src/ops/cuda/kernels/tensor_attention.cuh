// Attention on tensor cores over keys and values of bf16 or f16, or of eight bits that are widened to bf16.
//
// A warp has 16 queries, as the rows of its products: neighbouring rows of one sequence times the query heads of one KV
// head. Up to 8 warps share a step's keys and values, which are copied into the block's memory two steps ahead. A
// decoding row is a block of one warp; a prompt's tile is one of up to 8. Both walk the same steps.
//
// What a query attends to may depend on nothing but its own row: every sum over keys is one chain of tensor-core
// products at fixed places, or one thread's sum and two butterflies over the four lanes that share the row. It is
// assumed of the hardware that rows of a product are computed alike whichever of the 16 they are, and that zeros
// times numbers leave a sum as it is; the checks of attention cut in other ways find out. A step that a row does not
// see leaves its bits alone: its largest score stays, its sums are multiplied by one, or not at all, and zeros are
// added.
//
// Shared memory: two steps' keys, two steps' values, each (STEP, STRIDE); of eight bits with their scales, and one
// step's keys and values widened. Quads of a row are swapped by the last three bits of the row's number, so that eight
// rows' quads at one place are in banks of their own.
#pragma once

#include "attention.cuh"
#include "eight_bits.cuh"

constexpr u32 ROWS = 16;          // of a product
constexpr u32 STEP_ELEMENTS = 4096; // of keys, or values, that are copied together

// Two to the power of x, and one by x, within 2 units of the last place.
__device__ inline float power_of_two(float x) {
#ifdef LOCKSTEP_EMULATED
    return exp2f(x);
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

__device__ inline float one_by(float x) {
#ifdef LOCKSTEP_EMULATED
    return 1.0f / x;
#else
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
#endif
}

// What elements are multiplied as, and whether they have scales.
template <class HELD> struct Held {
    typedef bf16 Number;
    static constexpr bool SCALED = true;
};
template <> struct Held<bf16> {
    typedef bf16 Number;
    static constexpr bool SCALED = false;
};
template <> struct Held<f16> {
    typedef f16 Number;
    static constexpr bool SCALED = false;
};

// By which power of two weights are larger than they would be. Those of f16, of which the smallest would be lost
// otherwise, are up to 2^15; sums of weights and of weighted values are larger alike.
template <class NUMBER> struct Lift {
    static constexpr float BITS = 0.0f;
};
template <> struct Lift<f16> {
    static constexpr float BITS = 15.0f;
};

// Sizes for heads of up to WIDTH elements.
template <class HELD, u32 WIDTH> struct Sizes {
    static constexpr u32 STRIDE = WIDTH <= 64 ? 64 : WIDTH <= 128 ? 128 : 256; // elements from row to row
    static constexpr u32 STEP = STEP_ELEMENTS / STRIDE;                        // positions
    static constexpr u32 COLUMNS = WIDTH / 8;                                  // of values, eight together
    static constexpr u32 DEPTHS = WIDTH / 16;                                  // of scores' products
    static constexpr u32 KEYS = STEP / 8;                                      // of a step, eight together
    static constexpr bool SCALED = Held<HELD>::SCALED;
    typedef typename Held<HELD>::Number Number;

    static constexpr u32 IN_QUAD = 16 / sizeof(HELD); // elements
    static constexpr u32 QUADS = STRIDE / IN_QUAD;    // of a row
    static constexpr u32 TOGETHER = WARP / QUADS;     // rows of which a warp copies a quad a lane
    static constexpr u32 STEP_BYTES = STEP_ELEMENTS * sizeof(HELD);
    // Where in the block's memory what is copied is, for keys and values, for even and odd steps.
    static constexpr u32 SCALES = 4 * STEP_BYTES;
    static constexpr u32 WIDENED = SCALES + (SCALED ? 4 * STEP * (u32)sizeof(float) : 0);
};

// The tile, of whose context keys and values are copied.
struct Source {
    const u32 *table;
    u32 blocks; // the table has
    u32 end;    // positions that were written
    // Of 32 neighbouring blocks, from those of the current split on, their numbers: lane i has that of block i mod 32.
    u32 numbers;
};

// Has the numbers of this split's blocks and the next one's.
__device__ inline void know_blocks(Source &source, u32 split) {
    const u32 first = split * (SPLIT / SLOTS);
    const u32 block = first + ((threadIdx.x - first) & (WARP - 1));
    source.numbers = block < source.blocks ? source.table[block] : 0;
}

enum Which { KEYS = 0, VALUES = 1 };

__device__ inline u32 swapped(u32 row, u32 quad) { return quad ^ (row & 7); }

// Has this thread do `work` on the rows of a step of which it copies a quad: `turn` rows from its first, which a tile
// may begin with. Where the block is one warp, which then has all to copy, turns are known when this is compiled.
template <class IS, class WORK> __device__ inline void for_my_rows(WORK work) {
    constexpr u32 TURNS = IS::STEP / IS::TOGETHER;
    const u32 warps = blockDim.x / WARP;
    if (warps == 1) {
#pragma unroll
        for (u32 turn = 0; turn < TURNS; turn++) work(turn * IS::TOGETHER, turn * IS::TOGETHER % SLOTS == 0);
    } else {
        for (u32 turn = threadIdx.x / WARP; turn < TURNS; turn += warps) work(turn * IS::TOGETHER, true);
    }
}

// Begins to copy a step's keys or values and ends their group, which is empty beyond the end.
template <class HELD, u32 WIDTH>
__device__ inline void begin_step(const AttentionParameters &p, const Source &source, char *memory, Which which,
                                  u32 first) {
    typedef Sizes<HELD, WIDTH> Is;
    if (first < source.end) {
        const u32 place = which * 2 + first / Is::STEP % 2;
        const u32 quad = threadIdx.x % Is::QUADS, row = threadIdx.x % WARP / Is::QUADS;
        const u32 row_bytes = p.padded_width * sizeof(HELD);
        const u32 tile_bytes = SLOTS * (row_bytes + (Is::SCALED ? (u32)sizeof(float) : 0));
        const u32 block_bytes = p.kv_heads * tile_bytes;
        const char *tiles = (const char *)(which == KEYS ? p.keys : p.values) + (u64)blockIdx.y * tile_bytes;
        const char *quads = tiles + (quad * (u32)sizeof(Quad) + row * row_bytes), *from = quads;
        char *to = memory + place * Is::STEP_BYTES + row * Is::STRIDE * sizeof(HELD);
        // Rows from this thread's first on that were written; none of a quad past a row's end.
        const bool is_any = quad * Is::IN_QUAD < p.padded_width && first + row < source.end;
        const u32 written = is_any ? source.end - first - row : 0;
        for_my_rows<Is>([&](u32 turn, bool is_tile) {
            if (is_tile) from = quads + (u64)WARP_SHUFFLE(source.numbers, (first + turn) / SLOTS % WARP) * block_bytes;
            // Of eight bits each thread widens what it copied, in the order in which it was.
            const u32 at = Is::SCALED ? quad : swapped(row, quad) ^ (turn & 7);
            if (WIDTH == Is::STRIDE || quad * Is::IN_QUAD < WIDTH)
                begin_copy(to + at * sizeof(Quad) + turn * Is::STRIDE * sizeof(HELD), from + turn % SLOTS * row_bytes,
                           turn < written);
        });
        if (Is::SCALED && threadIdx.x < WARP) {
            // Four slots a lane. What is past the end within them was never written.
            const u32 row = threadIdx.x * 4, position = first + row;
            const u64 block = WARP_SHUFFLE(source.numbers, position / SLOTS % WARP);
            const char *from = tiles + block * block_bytes + SLOTS * row_bytes + position % SLOTS * sizeof(float);
            float *scales = (float *)(memory + Is::SCALES) + place * Is::STEP;
            if (row < Is::STEP) begin_copy(scales + row, from, position < source.end);
        }
    }
    end_copies();
}

// A step's keys or values as they are multiplied, once every thread has called it and waited: what this thread copied
// is there.
template <class HELD, u32 WIDTH>
__device__ inline const typename Held<HELD>::Number *step_of(char *memory, Which which, u32 first) {
    typedef Sizes<HELD, WIDTH> Is;
    const char *copied = memory + (which * 2 + first / Is::STEP % 2) * Is::STEP_BYTES;
    if constexpr (!Is::SCALED) {
        return (const typename Is::Number *)copied;
    } else {
        Quad *widened = (Quad *)(memory + Is::WIDENED + which * STEP_ELEMENTS * sizeof(bf16));
        const u32 quad = threadIdx.x % Is::QUADS;
        if (WIDTH == Is::STRIDE || quad * Is::IN_QUAD < WIDTH)
            for_my_rows<Is>([&](u32 turn, bool) {
                const u32 row = turn + threadIdx.x % WARP / Is::QUADS;
                const Quad from = ((const Quad *)copied)[row * Is::QUADS + quad];
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    Quad to;
#pragma unroll
                    for (u32 word = 0; word < 2; word++) {
                        u32 pairs[2];
                        widen_four((const HELD *)nullptr, from.words[half * 2 + word], pairs);
                        to.words[word * 2] = pairs[0];
                        to.words[word * 2 + 1] = pairs[1];
                    }
                    widened[row * (Is::STRIDE / 8) + swapped(row, quad * 2 + half)] = to;
                }
            });
        return (const typename Is::Number *)widened;
    }
}

// A warp's queries, and what of them a lane has: those of two rows.
template <u32 WIDTH> struct Queries {
    u32 words[WIDTH / 16][4];
    u32 positions[2];
    u32 lowest, highest; // positions of the warp's rows
    bool is_any;
};

template <class NUMBER, u32 WIDTH>
__device__ inline void load_queries(const AttentionParameters &p, const Tile &tile, Queries<WIDTH> &queries) {
    const u32 group = p.query_heads / p.kv_heads, count = tile.rows * group;
    const u32 first = threadIdx.x / WARP * ROWS, lane = threadIdx.x % WARP;
    const u32 last = first + ROWS < count ? first + ROWS - 1 : count - 1;
    queries.is_any = first < count;
    queries.lowest = tile.first_position + (queries.is_any ? first / group : 0);
    queries.highest = tile.first_position + last / group;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 query = first + lane / 4 + 8 * half;
        const bool is_there = query < count;
        // Rows that are not there see what the last one does.
        queries.positions[half] = is_there ? tile.first_position + query / group : queries.highest;
        const u64 row = tile.first_row + query / group, head = blockIdx.y * group + query % group;
        const float *x = p.qkv + row * p.row_elements + head * p.width;
#pragma unroll
        for (u32 depth = 0; depth < WIDTH / 16; depth++)
#pragma unroll
            for (u32 further = 0; further < 2; further++) {
                const u32 at = depth * 16 + further * 8 + lane % 4 * 2;
                const float one = is_there && at < p.width ? x[at] : 0.0f;
                const float two = is_there && at + 1 < p.width ? x[at + 1] : 0.0f;
                queries.words[depth][further * 2 + half] = Numbers<NUMBER>::pack(one, two);
            }
    }
}

// Of a warp's queries what splits amount to: of each of a lane's two rows the largest score and the sum of weights, and
// the columns' weighted sums of values.
template <u32 COLUMNS> struct Sums {
    float largest[2], mass[2];
    float values[COLUMNS][4];
};

template <u32 COLUMNS> __device__ inline void clear(Sums<COLUMNS> &sums) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) sums.largest[half] = -infinity(), sums.mass[half] = 0;
#pragma unroll
    for (u32 column = 0; column < COLUMNS; column++)
#pragma unroll
        for (u32 at = 0; at < 4; at++) sums.values[column][at] = 0;
}

__device__ inline float sum_of_row(float value) {
    value += WARP_SHUFFLE_XOR(value, 1);
    return value + WARP_SHUFFLE_XOR(value, 2);
}

__device__ inline float largest_of_row(float value) {
    value = fmaxf(value, WARP_SHUFFLE_XOR(value, 1));
    return fmaxf(value, WARP_SHUFFLE_XOR(value, 2));
}

// Adds the split to those before it, and clears it.
template <u32 COLUMNS> __device__ inline void fold_split(Sums<COLUMNS> &all, Sums<COLUMNS> &split) {
    Fold folds[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        folds[half] = fold_of(all.largest[half], split.largest[half]);
        all.largest[half] = folds[half].largest;
        all.mass[half] = folded(folds[half], all.mass[half], sum_of_row(split.mass[half]));
    }
#pragma unroll
    for (u32 column = 0; column < COLUMNS; column++)
#pragma unroll
        for (u32 at = 0; at < 4; at++)
            all.values[column][at] = folded(folds[at / 2], all.values[column][at], split.values[column][at]);
    clear(split);
}

// The scores of a step, not yet by their scale.
template <class HELD, u32 WIDTH>
__device__ inline void score(const Queries<WIDTH> &queries, const typename Held<HELD>::Number *keys,
                             float (&scores)[Sizes<HELD, WIDTH>::KEYS][4]) {
    typedef Sizes<HELD, WIDTH> Is;
    const u32 lane = threadIdx.x % WARP, row = lane / 16 * 8 + lane % 8, quad = lane / 8 % 2;
#pragma unroll
    for (u32 key = 0; key < Is::KEYS; key++)
#pragma unroll
        for (u32 at = 0; at < 4; at++) scores[key][at] = 0;
#pragma unroll
    for (u32 depth = 0; depth < Is::DEPTHS; depth++)
#pragma unroll
        for (u32 key = 0; key < Is::KEYS; key += 2) {
            u32 words[4];
            load_matrices(words, keys + (key * 8 + row) * Is::STRIDE + swapped(row, depth * 2 + quad) * 8);
            const u32 one[2] = {words[0], words[1]}, two[2] = {words[2], words[3]};
            Numbers<typename Is::Number>::multiply(scores[key], queries.words[depth], one);
            Numbers<typename Is::Number>::multiply(scores[key + 1], queries.words[depth], two);
        }
}

// Scores as their scale and cap would have them, less a factor which is returned: in units of log2(e).
template <class HELD, u32 WIDTH>
__device__ inline float scale_scores(const AttentionParameters &p, const char *memory, u32 first,
                                     float (&scores)[Sizes<HELD, WIDTH>::KEYS][4]) {
    typedef Sizes<HELD, WIDTH> Is;
    if (Is::SCALED) {
        const float *scales = (const float *)(memory + Is::SCALES) + (KEYS * 2 + first / Is::STEP % 2) * Is::STEP;
#pragma unroll
        for (u32 key = 0; key < Is::KEYS; key++)
#pragma unroll
            for (u32 at = 0; at < 4; at++) scores[key][at] *= scales[key * 8 + threadIdx.x % 4 * 2 + at % 2];
    }
    if (p.softcap == 0.0f) return p.scale * LOG2_E;
    // tanh(x) = 1 - 2 / (e^2x + 1)
    const float exponent = 2.0f * LOG2_E * p.scale / p.softcap;
#pragma unroll
    for (u32 key = 0; key < Is::KEYS; key++)
#pragma unroll
        for (u32 at = 0; at < 4; at++)
            scores[key][at] = fmaf(-2.0f, one_by(power_of_two(scores[key][at] * exponent) + 1.0f), 1.0f);
    return p.softcap * LOG2_E;
}

// Leaves scores of what rows do not see out.
template <class HELD, u32 WIDTH>
__device__ inline void hide(const AttentionParameters &p, const Queries<WIDTH> &queries, u32 first,
                            float (&scores)[Sizes<HELD, WIDTH>::KEYS][4]) {
    typedef Sizes<HELD, WIDTH> Is;
    if (first + Is::STEP <= queries.lowest + 1 && first >= first_seen(p, queries.highest)) return;
    const u32 starts[2] = {first_seen(p, queries.positions[0]), first_seen(p, queries.positions[1])};
#pragma unroll
    for (u32 key = 0; key < Is::KEYS; key++)
#pragma unroll
        for (u32 at = 0; at < 4; at++) {
            const u32 position = first + key * 8 + threadIdx.x % 4 * 2 + at % 2;
            if (position > queries.positions[at / 2] || position < starts[at / 2]) scores[key][at] = -infinity();
        }
}

// Makes weights of scores, and has the sums so far be those to which the weighted values are added.
template <class NUMBER, u32 KEYS_OF_STEP, u32 COLUMNS>
__device__ inline void weigh(Sums<COLUMNS> &sums, float factor, float (&scores)[KEYS_OF_STEP][4]) {
    float shrink[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float largest = -infinity();
#pragma unroll
        for (u32 key = 0; key < KEYS_OF_STEP; key++)
            largest = fmaxf(largest, fmaxf(scores[key][half * 2], scores[key][half * 2 + 1]));
        largest = fmaxf(sums.largest[half], largest_of_row(largest) * factor);
        // Of a row that has seen nothing there is nothing to shrink.
        const float off = largest == -infinity() ? 0.0f : largest;
        const float lifted = Lift<NUMBER>::BITS == 0.0f ? -off : Lift<NUMBER>::BITS - off;
        shrink[half] = power_of_two(sums.largest[half] - off);
        sums.largest[half] = largest;
        float mass = 0;
#pragma unroll
        for (u32 key = 0; key < KEYS_OF_STEP; key++)
#pragma unroll
            for (u32 at = half * 2; at < half * 2 + 2; at++) {
                scores[key][at] = power_of_two(fmaf(scores[key][at], factor, lifted));
                mass += scores[key][at];
            }
        sums.mass[half] = fmaf(sums.mass[half], shrink[half], mass);
    }
    if (!WARP_ANY(shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
    for (u32 column = 0; column < COLUMNS; column++)
#pragma unroll
        for (u32 at = 0; at < 4; at++) sums.values[column][at] *= shrink[at / 2];
}

// Adds a step's values by their weights.
template <class HELD, u32 WIDTH>
__device__ inline void add_values(char *memory, u32 first, const typename Held<HELD>::Number *values,
                                  float (&weights)[Sizes<HELD, WIDTH>::KEYS][4], Sums<WIDTH / 8> &sums) {
    typedef Sizes<HELD, WIDTH> Is;
    const u32 lane = threadIdx.x % WARP, row = lane % 16, quad = lane / 16;
    const float *scales = (const float *)(memory + Is::SCALES) + (VALUES * 2 + first / Is::STEP % 2) * Is::STEP;
#pragma unroll
    for (u32 key = 0; key < Is::KEYS; key += 2) {
        u32 words[4];
#pragma unroll
        for (u32 word = 0; word < 4; word++) {
            const u32 of = key + word / 2, at = word % 2 * 2;
            float one = weights[of][at], two = weights[of][at + 1];
            if (Is::SCALED) {
                const float *scale = scales + of * 8 + lane % 4 * 2;
                // Scales of what is not seen may be no numbers.
                one = one == 0.0f ? 0.0f : one * scale[0];
                two = two == 0.0f ? 0.0f : two * scale[1];
            }
            words[word] = Numbers<typename Is::Number>::pack(one, two);
        }
#pragma unroll
        for (u32 column = 0; column < Is::COLUMNS; column += 2) {
            u32 both[4];
            load_matrices_transposed(both, values + (key * 8 + row) * Is::STRIDE + swapped(row, column + quad) * 8);
            const u32 one[2] = {both[0], both[1]}, two[2] = {both[2], both[3]};
            Numbers<typename Is::Number>::multiply(sums.values[column], words, one);
            Numbers<typename Is::Number>::multiply(sums.values[column + 1], words, two);
        }
    }
}

// Writes what the splits of one block amount to: the only one there is, or all of them.
template <u32 WIDTH>
__device__ inline void write_sums(const AttentionParameters &p, const Tile &tile, const Queries<WIDTH> &queries,
                                  const Sums<WIDTH / 8> &sums) {
    const u32 lane = threadIdx.x % WARP, group = p.query_heads / p.kv_heads;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 query = threadIdx.x / WARP * ROWS + lane / 4 + 8 * half;
        if (query >= tile.rows * group) continue;
        const bool is_part = p.splits > 0;
        const u32 row = queries.positions[half] - tile.first_position, head = blockIdx.y * group + query - row * group;
        float *output = p.output + ((u64)(tile.first_row + row) * p.query_heads + head) * p.width;
        if (is_part) output = partial_of(p, blockIdx.z, query);
#pragma unroll
        for (u32 column = 0; column < WIDTH / 8; column++)
#pragma unroll
            for (u32 at = 0; at < 2; at++) {
                const u32 element = column * 8 + lane % 4 * 2 + at;
                const float sum = sums.values[column][half * 2 + at];
                if (element < p.width) output[element] = is_part ? sum : sum / sums.mass[half];
            }
        if (is_part && lane % 4 == 0) {
            output[p.width] = sums.largest[half];
            output[p.width + 1] = sums.mass[half];
        }
    }
}

template <class HELD, u32 WIDTH> __device__ void attend_on_tensor_cores(const AttentionParameters &p) {
    typedef Sizes<HELD, WIDTH> Is;
    DYNAMIC_SHARED(shared);
    char *memory = (char *)shared;
    const Tile tile = p.tiles[blockIdx.x];
    const Range range = range_of(p, tile);
    if (range.start >= range.end) return;
    Source source;
    source.table = p.tables + tile.table;
    source.blocks = (tile.first_position + tile.rows + SLOTS - 1) / SLOTS;
    source.end = range.end;
    know_blocks(source, range.split);
    u32 first = range.start / Is::STEP * Is::STEP;
    begin_step<HELD, WIDTH>(p, source, memory, KEYS, first);
    begin_step<HELD, WIDTH>(p, source, memory, VALUES, first);
    begin_step<HELD, WIDTH>(p, source, memory, KEYS, first + Is::STEP);
    Queries<WIDTH> queries;
    load_queries<typename Is::Number>(p, tile, queries);
    Sums<Is::COLUMNS> all, split;
    clear(all);
    clear(split);
    for (; first < range.end; first += Is::STEP) {
        const bool is_seen =
            queries.is_any && first <= queries.highest && first + Is::STEP > first_seen(p, queries.lowest);
        float scores[Is::KEYS][4];
        wait_for_copies<2>();
        const typename Is::Number *keys = step_of<HELD, WIDTH>(memory, KEYS, first);
        __syncthreads();
        begin_step<HELD, WIDTH>(p, source, memory, VALUES, first + Is::STEP);
        if (is_seen) {
            score<HELD, WIDTH>(queries, keys, scores);
            const float factor = scale_scores<HELD, WIDTH>(p, memory, first, scores);
            hide<HELD, WIDTH>(p, queries, first, scores);
            weigh<typename Is::Number>(split, factor, scores);
        }
        wait_for_copies<2>();
        const typename Is::Number *values = step_of<HELD, WIDTH>(memory, VALUES, first);
        __syncthreads();
        begin_step<HELD, WIDTH>(p, source, memory, KEYS, first + 2 * Is::STEP);
        if (is_seen) add_values<HELD, WIDTH>(memory, first, values, scores, split);
        const u32 next = first + Is::STEP;
        if (p.splits > 0 || (next % SPLIT != 0 && next < range.end)) continue;
        fold_split(all, split);
        know_blocks(source, next / SPLIT);
    }
    if (!queries.is_any) return;
    // Read again: as many registers are free for as long as steps are walked.
    if (p.splits == 0) {
        write_sums(p, p.tiles[blockIdx.x], queries, all);
        return;
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) split.mass[half] = sum_of_row(split.mass[half]);
    write_sums(p, p.tiles[blockIdx.x], queries, split);
}
