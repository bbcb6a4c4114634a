// The product with weights of f32, which tensor cores do not take, and what comes before the product of many rows.
#include "product.cuh"

constexpr u32 SIDE = 64;  // rows and columns of a block's part of the result
constexpr u32 DEPTH = 16; // of the inner dimension at once
constexpr u32 EACH = 4;   // rows and columns of a thread's part
constexpr u32 LEVELS = 3; // of the tree over segments

// Each element is one chain of fused multiply-adds over each segment, in order, and segments are added in the tree.
// Block (columns / 64, rows / 64) of 256 threads, each with 4 x 4 sums.
KERNEL(product_f32, ProductParameters, 256) {
    __shared__ float input[DEPTH][SIDE + 1];
    __shared__ float weights[DEPTH][SIDE + 1];
    const u32 row = blockIdx.y * SIDE, column = blockIdx.x * SIDE, length = segment_length(p);
    const u32 my_row = threadIdx.x / 16, my_column = threadIdx.x % 16;
    float sums[EACH][EACH], waiting[LEVELS][EACH][EACH];
    for (u32 segment = 0; segment < p.segments; segment++) {
        for (u32 at = 0; at < EACH * EACH; at++) sums[at / EACH][at % EACH] = 0;
        for (u32 done = 0; done < length; done += DEPTH) {
            __syncthreads();
            for (u32 at = threadIdx.x; at < DEPTH * SIDE; at += blockDim.x) {
                const u32 inner = at % DEPTH, outer = at / DEPTH;
                const bool is_inside = done + inner < length;
                const u64 from = (u64)segment * length + done + inner;
                input[inner][outer] = is_inside && row + outer < p.rows
                                          ? ((const float *)p.input)[(u64)(row + outer) * p.inputs + from]
                                          : 0;
                weights[inner][outer] = is_inside && column + outer < p.outputs
                                            ? ((const float *)p.weights)[(u64)(column + outer) * p.inputs + from]
                                            : 0;
            }
            __syncthreads();
            for (u32 inner = 0; inner < DEPTH; inner++)
                for (u32 i = 0; i < EACH; i++)
                    for (u32 j = 0; j < EACH; j++)
                        sums[i][j] =
                            fmaf(input[inner][my_row + 16 * i], weights[inner][my_column + 16 * j], sums[i][j]);
        }
        // As often as the segment's number ends in ones, a subtree is complete.
        bool is_complete = true;
#pragma unroll
        for (u32 level = 0; level < LEVELS; level++) {
            const bool is_right = segment >> level & 1;
            for (u32 at = 0; is_complete && at < EACH * EACH; at++) {
                float &sum = sums[at / EACH][at % EACH], &left = waiting[level][at / EACH][at % EACH];
                if (is_right) sum = left + sum;
                else left = sum;
            }
            is_complete = is_complete && is_right;
        }
    }
    for (u32 i = 0; i < EACH; i++)
        for (u32 j = 0; j < EACH; j++) {
            const u32 r = row + my_row + 16 * i, c = column + my_column + 16 * j;
            if (r < p.rows && c < p.outputs) p.output[(u64)r * p.stride + c] = sums[i][j];
        }
}

struct ArrangeParameters {
    const float *input; // (rows, inputs)
    u64 *output;        // (rows, segments, pieces of a padded segment): four numbers of 16 bits each
    u64 pieces;         // of the output
    u32 inputs;
    u32 segments;
    u32 is_spread; // as the weights' format says
    u32 is_f16;    // else bf16
};

struct Neighbours {
    static constexpr bool SPREAD = false;
};
struct Spread {
    static constexpr bool SPREAD = true;
};

// Inputs as fragments of the product of many rows, every segment padded by zeros to whole blocks. A thread a piece.
KERNEL(arrange_inputs, ArrangeParameters, 256) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= p.pieces) return;
    const u32 length = p.inputs / p.segments, padded = blocks_of(length) * CHUNKS * 8;
    const u64 row = at / ((u64)padded * p.segments);
    const u32 segment = (u32)(at / padded % p.segments), piece = (u32)(at % 8), inner = (u32)(at % padded) * 4;
    const float *from = p.input + row * p.inputs + segment * length;
    float four[4] = {};
#pragma unroll
    for (u32 element = 0; element < 4; element++)
        if (inner + element < length) four[element] = from[inner + element];
    const u32 place = p.is_spread ? place_of<Spread>(piece) : place_of<Neighbours>(piece);
    const u32 first = p.is_f16 ? pack_f16(four[0], four[1]) : pack_bf16(four[0], four[1]);
    const u32 second = p.is_f16 ? pack_f16(four[2], four[3]) : pack_bf16(four[2], four[3]);
    p.output[at - piece + place] = (u64)first | (u64)second << 32;
}
