// The product of few rows, for all experts of a layer at once: blocks along y have rows of one expert each. An element
// has the bits it has where its expert is multiplied by itself.
#include "expert_groups.cuh"
#include "product_few.cuh"
#include "quantized.cuh"

struct ExpertProductParameters {
    ProductParameters product; // of one expert and all places; weights, scales and rows are each block's own
    const ExpertRows *parts;   // (blocks along y)
    const u32 *rows;           // (places): rows of the input; null where places are
    const u64 *weights;        // (experts): where each one's are
    const u64 *scales;         // likewise; null where there are none
};

struct Gathered {
    const u32 *rows;
    u32 first;

    __device__ inline u32 of(u32 row) const { return rows ? rows[first + row] : first + row; }
};

template <class F> __device__ void multiply_experts(const ExpertProductParameters &p) {
    const ExpertRows part = p.parts[blockIdx.y];
    if (part.rows == 0) return;
    ProductParameters its = p.product;
    its.rows = part.rows;
    its.weights = (const void *)p.weights[part.expert];
    its.scales = p.scales ? (const float *)p.scales[part.expert] : nullptr;
    its.output += (u64)part.first * its.stride;
    const Gathered from{p.rows, part.first};
    if (part.rows <= 8) multiply_few<F, 1>(its, from);
    else if (part.rows <= 16) multiply_few<F, 2>(its, from);
    else if (part.rows <= 32) multiply_few<F, 4>(its, from);
    else multiply_few<F, 8>(its, from);
}

#define EXPERTS(NAME, FORMAT)                                                                                     \
    KERNEL(experts_##NAME, ExpertProductParameters, 128) { multiply_experts<FORMAT>(p); }

EXPERTS(bf16, Rows<bf16>)
EXPERTS(f16, Rows<f16>)
EXPERTS(int8, Int8)
EXPERTS(int8_minimum, Int8Minimum)
EXPERTS(int8_short, Int8Short)
EXPERTS(int4, Int4)
EXPERTS(int4_minimum, Int4Minimum)
EXPERTS(float8, Float8)
