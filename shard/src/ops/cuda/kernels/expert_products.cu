// The product of few rows, for all experts of a layer at once: blocks along y have rows of one expert each. An element
// has the bits it has where its expert is multiplied by itself.
#include "bundle.cuh"
#include "product_few.cuh"
#include "quantized.cuh"

struct ExpertProductParameters {
    ProductParameters product; // of one expert and all places; weights, scales and rows are each block's own
    const Bundle *bundles;     // (blocks along y)
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
    const Bundle bundle = p.bundles[blockIdx.y];
    if (bundle.rows == 0) return;
    ProductParameters its = p.product;
    its.rows = bundle.rows;
    its.weights = (const void *)p.weights[bundle.expert];
    its.scales = p.scales ? (const float *)p.scales[bundle.expert] : nullptr;
    its.output += (u64)bundle.first * its.stride;
    const Gathered from{p.rows, bundle.first};
    if (bundle.rows <= 8) multiply_few<F, 1>(its, from);
    else if (bundle.rows <= 16) multiply_few<F, 2>(its, from);
    else if (bundle.rows <= 32) multiply_few<F, 4>(its, from);
    else multiply_few<F, 8>(its, from);
}

#define EXPERTS(NAME, FORMAT)                                                                                     \
    KERNEL(experts_##NAME, ExpertProductParameters, 128) { multiply_experts<FORMAT>(p); }

EXPERTS(bf16, Rows<bf16>)
EXPERTS(f16, Rows<f16>)
EXPERTS(int8, Int8)
EXPERTS(int4, Int4)
EXPERTS(float8, Float8)
