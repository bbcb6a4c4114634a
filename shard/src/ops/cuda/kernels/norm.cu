// Norms of rows, of heads and of projections.
//
// All sums: a thread adds the elements that are its own in their order, then warps by butterfly, then warps in
// their order (`block_sum`). How many rows there are shows in no bit.
#include "device.cuh"

struct NormParameters {
    const float *input;      // (rows, width)
    const float *delta;      // (rows, width), or null: added to the input, scaled, before the norm
    const float *parameters; // (1, width) weights, or (2, width) weights and biases
    float *sum;              // (rows, width): input + delta_scale * delta, where there is a delta
    float *output;           // (rows, width)
    u32 width;
    u32 takes_mean; // whether the mean is taken off first (layer norm)
    u32 has_bias;
    float epsilon;
    float delta_scale;
};

// One block a row.
KERNEL(norm, NormParameters, 256) {
    const u64 row = (u64)blockIdx.x * p.width;
    const float *x = p.input + row;
    if (p.delta) {
        float *sum = p.sum + row;
        // Every thread reads later what it writes here, and nothing of any other.
        for (u32 at = threadIdx.x; at < p.width; at += blockDim.x) sum[at] = x[at] + p.delta_scale * p.delta[row + at];
        x = sum;
    }
    float mean = 0;
    if (p.takes_mean) {
        float total = 0;
        for (u32 at = threadIdx.x; at < p.width; at += blockDim.x) total += x[at];
        mean = block_sum(total) / (float)p.width;
    }
    float squares = 0;
    for (u32 at = threadIdx.x; at < p.width; at += blockDim.x) {
        const float centred = x[at] - mean;
        squares = fmaf(centred, centred, squares);
    }
    const float factor = 1.0f / sqrtf(block_sum(squares) / (float)p.width + p.epsilon);
    for (u32 at = threadIdx.x; at < p.width; at += blockDim.x) {
        float normed = (x[at] - mean) * factor * p.parameters[at];
        if (p.has_bias) normed += p.parameters[p.width + at];
        p.output[row + at] = normed;
    }
}

struct HeadNormParameters {
    float *qkv;           // (rows, row_elements): query heads, key heads, value heads
    const float *weights; // (2, width): of queries, of keys
    u32 rows;
    u32 row_elements;
    u32 query_heads;
    u32 kv_heads;
    u32 width;
    float epsilon;
};

// One warp a query or key head, eight a block.
KERNEL(head_norm, HeadNormParameters, 256) {
    const u32 heads = p.query_heads + p.kv_heads;
    const u64 of_all = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (of_all >= (u64)p.rows * heads) return;
    const u32 head = of_all % heads, lane = threadIdx.x % WARP;
    float *x = p.qkv + of_all / heads * p.row_elements + (u64)head * p.width;
    const float *weights = p.weights + (head < p.query_heads ? 0 : p.width);
    float squares = 0;
    for (u32 at = lane; at < p.width; at += WARP) squares = fmaf(x[at], x[at], squares);
    const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)p.width + p.epsilon);
    for (u32 at = lane; at < p.width; at += WARP) x[at] = x[at] * factor * weights[at];
}

struct ProjectionSquaresParameters {
    const float *qkv; // (rows, row_elements)
    float *squares;   // (rows, 2): sums of the squares of queries, and of keys
    u32 row_elements;
    u32 query_elements;
    u32 key_elements;
    u32 segments; // equal parts of either that are summed by themselves, at most 8, a power of two
};

// Block (row, 0 for queries or 1 for keys). Segments are added in the binary tree in which ranks are.
KERNEL(projection_squares, ProjectionSquaresParameters, 256) {
    const float *x = p.qkv + (u64)blockIdx.x * p.row_elements + (blockIdx.y == 0 ? 0 : p.query_elements);
    const u32 length = (blockIdx.y == 0 ? p.query_elements : p.key_elements) / p.segments;
    float parts[8];
    for (u32 segment = 0; segment < p.segments; segment++) {
        float squares = 0;
        for (u32 at = threadIdx.x; at < length; at += blockDim.x) {
            const float value = x[segment * length + at];
            squares = fmaf(value, value, squares);
        }
        parts[segment] = block_sum(squares);
    }
    for (u32 left = p.segments / 2; left > 0; left /= 2)
        for (u32 at = 0; at < left; at++) parts[at] = parts[2 * at] + parts[2 * at + 1];
    if (threadIdx.x == 0) p.squares[blockIdx.x * 2 + blockIdx.y] = parts[0];
}

struct ProjectionNormParameters {
    float *qkv;           // (rows, row_elements)
    const float *squares; // (rows, 2), over all ranks
    const float *weights; // of this rank's query elements, then of its key elements
    u32 row_elements;
    u32 query_elements;
    u32 key_elements;
    u32 query_width; // elements of all ranks' queries
    u32 key_width;
    float epsilon;
};

// One block a row; every element by itself.
KERNEL(projection_norm, ProjectionNormParameters, 256) {
    float *x = p.qkv + (u64)blockIdx.x * p.row_elements;
    const float *squares = p.squares + blockIdx.x * 2;
    const float query = 1.0f / sqrtf(squares[0] / (float)p.query_width + p.epsilon);
    const float key = 1.0f / sqrtf(squares[1] / (float)p.key_width + p.epsilon);
    for (u32 at = threadIdx.x; at < p.query_elements + p.key_elements; at += blockDim.x)
        x[at] = x[at] * (at < p.query_elements ? query : key) * p.weights[at];
}
