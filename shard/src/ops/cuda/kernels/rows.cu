// What is done to rows element by element: rotation, keys and values into their blocks, activations, biases,
// rounding, and rows that are picked, spread and put together. No sum crosses threads; one thread an element unless
// said otherwise, 256 a block, blocks counted along x.
#include "activate.cuh"
#include "device.cuh"

__device__ inline u64 my_element() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

struct RopeParameters {
    float *qkv;           // (rows, row_elements): query heads, then key heads are turned
    const float *table;   // (positions, rotary): cosines, then sines
    const u32 *positions; // (rows)
    u32 rows;
    u32 row_elements;
    u32 heads; // query and key heads
    u32 width;
    u32 rotary; // elements of a head that turn, even
};

// One thread a pair.
KERNEL(rope, RopeParameters, 256) {
    const u32 half = p.rotary / 2;
    const u64 of_row = (u64)p.heads * half, at = my_element();
    if (at >= p.rows * of_row) return;
    const u64 row = at / of_row;
    const u32 head = at % of_row / half, pair = at % half;
    const float *angles = p.table + (u64)p.positions[row] * p.rotary;
    float *left = p.qkv + row * p.row_elements + (u64)head * p.width + pair, *right = left + half;
    const float x = *left, y = *right, cosine = angles[pair], sine = angles[half + pair];
    *left = x * cosine - y * sine;
    *right = y * cosine + x * sine;
}

struct WriteKvParameters {
    void *pool;       // (blocks, heads, 16, width)
    const float *qkv; // (rows, row_elements)
    const u32 *slots; // (rows): 16 * block + slot
    u32 rows;
    u32 row_elements;
    u32 first_element; // of a row, where its keys, or values, begin
    u32 heads;
    u32 width;
};

template <class K> __device__ void write_rows(const WriteKvParameters &p) {
    const u64 of_row = (u64)p.heads * p.width, at = my_element();
    if (at >= p.rows * of_row) return;
    const u64 row = at / of_row;
    const u32 head = at % of_row / p.width, element = at % p.width;
    const u64 block = p.slots[row] / 16, slot = p.slots[row] % 16;
    K *place = (K *)p.pool + ((block * p.heads + head) * 16 + slot) * p.width + element;
    store(place, p.qkv[row * p.row_elements + p.first_element + (u64)head * p.width + element]);
}

KERNEL(write_kv_f32, WriteKvParameters, 256) { write_rows<float>(p); }
KERNEL(write_kv_bf16, WriteKvParameters, 256) { write_rows<bf16>(p); }

struct ActivationParameters {
    const float *input; // (rows, 2 * width), gate first, or (rows, width) where there is no gate
    float *output;      // (rows, width); may be the input where there is no gate
    u64 elements;       // of the output
    u32 width;
    u32 function; // 0: silu, 1: gelu by tanh
    u32 is_gated;
};

KERNEL(activation, ActivationParameters, 256) {
    const u64 at = my_element();
    if (at >= p.elements) return;
    if (!p.is_gated) {
        p.output[at] = activate(p.function, p.input[at]);
        return;
    }
    const float *row = p.input + at / p.width * 2 * p.width;
    p.output[at] = activate(p.function, row[at % p.width]) * row[p.width + at % p.width];
}

struct BiasParameters {
    float *values;     // (rows, width)
    const float *bias; // (width)
    u64 elements;
    u32 width;
};

KERNEL(add_bias, BiasParameters, 256) {
    const u64 at = my_element();
    if (at < p.elements) p.values[at] += p.bias[at % p.width];
}

struct LogitParameters {
    float *logits;
    u64 elements;
    float divide_by;
    float cap; // 0 where there is none
};

KERNEL(logit_transform, LogitParameters, 256) {
    const u64 at = my_element();
    if (at >= p.elements) return;
    const float divided = p.logits[at] / p.divide_by;
    p.logits[at] = p.cap == 0.0f ? divided : p.cap * tanhf(divided / p.cap);
}

struct RoundParameters {
    const float *input;
    bf16 *output;
    u64 elements;
};

KERNEL(round_rows, RoundParameters, 256) {
    const u64 at = my_element();
    if (at < p.elements) p.output[at] = round_to_bf16(p.input[at]);
}

struct PickParameters {
    const void *source; // (any, width)
    const u32 *rows;    // (wanted): which
    float *output;      // (wanted, width)
    u64 elements;       // of the output
    u32 width;
    float scale;
};

template <class W> __device__ void pick(const PickParameters &p) {
    const u64 at = my_element();
    if (at >= p.elements) return;
    p.output[at] = widen(((const W *)p.source)[(u64)p.rows[at / p.width] * p.width + at % p.width]) * p.scale;
}

KERNEL(pick_rows_f32, PickParameters, 256) { pick<float>(p); }
KERNEL(pick_rows_bf16, PickParameters, 256) { pick<bf16>(p); }

struct SpreadParameters {
    float *target;        // (any, width)
    const float *source;  // (rows, width)
    const u32 *rows;      // (rows): of the target, no two alike
    const float *weights; // (rows)
    u64 elements;         // of the source
    u32 width;
};

// target[rows[r]] += weights[r] * source[r]
KERNEL(add_rows, SpreadParameters, 256) {
    const u64 at = my_element();
    if (at >= p.elements) return;
    const u64 row = at / p.width;
    p.target[(u64)p.rows[row] * p.width + at % p.width] += p.weights[row] * p.source[at];
}

struct TreeParameters {
    const float *parts; // (count, elements), count a power of two up to 512
    float *sum;         // (elements)
    u64 elements;
    u32 count;
};

// One binary tree over the parts: ((0+1)+(2+3))+((4+5)+(6+7)), as `comm/tree.rs` has it.
KERNEL(sum_parts, TreeParameters, 256) {
    const u64 at = my_element();
    if (at >= p.elements) return;
    float waiting[10];
    u32 height = 0;
    for (u32 part = 0; part < p.count; part++) {
        float sum = p.parts[part * p.elements + at];
        // As often as the part's number ends in ones, a subtree is complete.
        for (u32 ones = part; ones & 1; ones >>= 1) sum = waiting[--height] + sum;
        waiting[height++] = sum;
    }
    p.sum[at] = waiting[0];
}

struct VocabularyParameters {
    const float *parts; // (ranks, rows, width)
    float *output;      // (rows, vocabulary)
    u64 elements;       // of the output
    u32 rows;
    u32 width; // entries of a rank, padding included
    u32 vocabulary;
};

KERNEL(join_vocabulary, VocabularyParameters, 256) {
    const u64 at = my_element();
    if (at >= p.elements) return;
    const u64 row = at / p.vocabulary;
    const u32 entry = at % p.vocabulary;
    p.output[at] = p.parts[((u64)(entry / p.width) * p.rows + row) * p.width + entry % p.width];
}
