// Attention over block tables, for decoding and for prompts.
//
// A context is cut into splits of 256 positions that begin at fixed places, a split is walked in steps that do too.
// Splits are folded into one another in their order. So what a row attends to has the same bits whether its splits are
// walked one after the other by one block (prompts: no scratch memory) or by a block each (decoding: the whole device
// works on one row), however a prompt is cut into chunks, and whatever else is in the batch.
//
// Block (tile, KV head, split). A tile is some neighbouring rows of one sequence with all query heads of the KV head.
#include "plain_attention.cuh"
#include "tensor_attention.cuh"

KERNEL(attend_f32_64, AttentionParameters, 256) { attend_plainly<2>(p); }
KERNEL(attend_f32_128, AttentionParameters, 256) { attend_plainly<4>(p); }
KERNEL(attend_f32_256, AttentionParameters, 256) { attend_plainly<8>(p); }
// Sums of earlier splits are touched once a split: they leave their registers to a second block where that is enough.
KERNEL_BESIDE(attend_bf16_64, AttentionParameters, 256, 2) { attend_on_tensor_cores<bf16, 64>(p); }
KERNEL_BESIDE(attend_bf16_96, AttentionParameters, 256, 2) { attend_on_tensor_cores<bf16, 96>(p); }
KERNEL(attend_bf16_128, AttentionParameters, 256) { attend_on_tensor_cores<bf16, 128>(p); }
KERNEL(attend_bf16_256, AttentionParameters, 256) { attend_on_tensor_cores<bf16, 256>(p); }
KERNEL_BESIDE(attend_f16_64, AttentionParameters, 256, 2) { attend_on_tensor_cores<f16, 64>(p); }
KERNEL_BESIDE(attend_f16_96, AttentionParameters, 256, 2) { attend_on_tensor_cores<f16, 96>(p); }
KERNEL(attend_f16_128, AttentionParameters, 256) { attend_on_tensor_cores<f16, 128>(p); }
KERNEL(attend_f16_256, AttentionParameters, 256) { attend_on_tensor_cores<f16, 256>(p); }
KERNEL_BESIDE(attend_int8_64, AttentionParameters, 256, 2) { attend_on_tensor_cores<Integer8, 64>(p); }
KERNEL_BESIDE(attend_int8_96, AttentionParameters, 256, 2) { attend_on_tensor_cores<Integer8, 96>(p); }
KERNEL(attend_int8_128, AttentionParameters, 256) { attend_on_tensor_cores<Integer8, 128>(p); }
KERNEL(attend_int8_256, AttentionParameters, 256) { attend_on_tensor_cores<Integer8, 256>(p); }
KERNEL_BESIDE(attend_fp8_64, AttentionParameters, 256, 2) { attend_on_tensor_cores<Float8, 64>(p); }
KERNEL_BESIDE(attend_fp8_96, AttentionParameters, 256, 2) { attend_on_tensor_cores<Float8, 96>(p); }
KERNEL(attend_fp8_128, AttentionParameters, 256) { attend_on_tensor_cores<Float8, 128>(p); }
KERNEL(attend_fp8_256, AttentionParameters, 256) { attend_on_tensor_cores<Float8, 256>(p); }

// Folds splits that were computed apart, in their order. Block (tile, KV head, query of the tile), a thread an
// element, as many as make whole warps.
KERNEL(fold_splits, AttentionParameters, 256) {
    const Tile tile = p.tiles[blockIdx.x];
    const u32 query = blockIdx.z, element = threadIdx.x;
    if (query >= tile.rows * (p.query_heads / p.kv_heads) || element >= p.width) return;
    const u32 end = tile.first_position + tile.rows;
    const u32 first = first_seen(p, tile.first_position) / SPLIT, last = (end + SPLIT - 1) / SPLIT;
    float largest = -infinity(), mass = 0, sum = 0;
    for (u32 split = 0; split < last - first; split++) {
        const float *part = partial_of(p, split, query);
        const Fold fold = fold_of(largest, part[p.width]);
        mass = folded(fold, mass, part[p.width + 1]);
        sum = folded(fold, sum, part[element]);
        largest = fold.largest;
    }
    p.output[head_of(p, tile, query) * p.width + element] = sum / mass;
}
