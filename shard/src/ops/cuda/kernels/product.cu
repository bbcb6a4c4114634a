// The exact product: each element of the result is one chain of fused multiply-adds over its part of the inner
// dimension, in order, whatever else is computed beside it. cuBLAS, which is faster, chooses its order by the
// number of rows.
#include "device.cuh"

struct ProductParameters {
    const float *input;  // (rows, inputs); rounded to the weights' type as it is read
    const void *weights; // (outputs, inputs)
    float *parts;        // (segments, rows, outputs): of each segment of the inner dimension its sum
    u32 rows;
    u32 inputs;
    u32 outputs;
    u32 segments; // divides the inner dimension
};

constexpr u32 SIDE = 64;  // rows and columns of a block's part of the result
constexpr u32 DEPTH = 16; // of the inner dimension at once
constexpr u32 EACH = 4;   // rows and columns of a thread's part

// Block (columns / 64, rows / 64, segment) of 256 threads, each with 4 x 4 sums.
template <class W> __device__ void multiply(const ProductParameters &p) {
    __shared__ float input[DEPTH][SIDE + 1];
    __shared__ float weights[DEPTH][SIDE + 1];
    const u32 row = blockIdx.y * SIDE, column = blockIdx.x * SIDE;
    const u32 length = p.inputs / p.segments, first = blockIdx.z * length;
    const u32 my_row = threadIdx.x / 16, my_column = threadIdx.x % 16;
    const W *matrix = (const W *)p.weights;
    float sums[EACH][EACH] = {};
    for (u32 done = 0; done < length; done += DEPTH) {
        __syncthreads();
        for (u32 at = threadIdx.x; at < DEPTH * SIDE; at += blockDim.x) {
            const u32 inner = at % DEPTH, outer = at / DEPTH;
            const bool is_inside = done + inner < length;
            const u64 from = first + done + inner;
            input[inner][outer] =
                is_inside && row + outer < p.rows ? as_input(matrix, p.input[(u64)(row + outer) * p.inputs + from]) : 0;
            weights[inner][outer] = is_inside && column + outer < p.outputs
                                        ? widen(matrix[(u64)(column + outer) * p.inputs + from])
                                        : 0;
        }
        __syncthreads();
        for (u32 inner = 0; inner < DEPTH; inner++)
            for (u32 i = 0; i < EACH; i++)
                for (u32 j = 0; j < EACH; j++)
                    sums[i][j] = fmaf(input[inner][my_row + 16 * i], weights[inner][my_column + 16 * j], sums[i][j]);
    }
    float *part = p.parts + (u64)blockIdx.z * p.rows * p.outputs;
    for (u32 i = 0; i < EACH; i++)
        for (u32 j = 0; j < EACH; j++) {
            const u32 r = row + my_row + 16 * i, c = column + my_column + 16 * j;
            if (r < p.rows && c < p.outputs) part[(u64)r * p.outputs + c] = sums[i][j];
        }
}

KERNEL(product_f32, ProductParameters, 256) { multiply<float>(p); }
KERNEL(product_bf16, ProductParameters, 256) { multiply<bf16>(p); }
