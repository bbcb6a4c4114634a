// What is done to rows: heads on their way to attention, activations, biases, rounding, and rows that are picked,
// spread and put together. One thread an element unless said otherwise, 256 a block, blocks counted along x.
#include "activate.cuh"
#include "heads.cuh"

__device__ inline u64 my_element() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

KERNEL(write_heads_f32, WriteHeadsParameters, 256) { write_heads<float>(p); }
KERNEL(write_heads_bf16, WriteHeadsParameters, 256) { write_heads<bf16>(p); }
KERNEL(write_heads_f16, WriteHeadsParameters, 256) { write_heads<f16>(p); }
KERNEL(write_heads_int8, WriteHeadsParameters, 256) { write_heads<Integer8>(p); }
KERNEL(write_heads_fp8, WriteHeadsParameters, 256) { write_heads<Float8>(p); }

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
    void *output;
    u64 elements;
};

template <class T> __device__ void round_rows(const RoundParameters &p) {
    const u64 at = my_element();
    if (at < p.elements) store((T *)p.output + at, p.input[at]);
}

KERNEL(round_rows_bf16, RoundParameters, 256) { round_rows<bf16>(p); }
KERNEL(round_rows_f16, RoundParameters, 256) { round_rows<f16>(p); }

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
KERNEL(pick_rows_f16, PickParameters, 256) { pick<f16>(p); }

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
