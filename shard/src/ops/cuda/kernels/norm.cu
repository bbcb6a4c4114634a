// Norms of rows and of projections; those of heads are in heads.cuh.
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
