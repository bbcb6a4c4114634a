// Where rows go among a layer's experts, and how what comes of them comes back.
#include "bundle.cuh"

struct RouteParameters {
    const float *scores; // (rows, experts)
    const u32 *slots;    // (rows): 16 * block + slot; null where no row is one of padding
    u32 *chosen;         // (rows, count): experts, ascending
    float *weights;      // (rows, count): what their outputs are multiplied by
    u32 experts;
    u32 count;     // experts of a row: those with its largest scores
    u32 of_chosen; // whether the chosen ones' weights sum to one, else all experts' do
    u32 padding;   // the slot of rows of padding
};

// Of equal scores the lower expert's comes first, and what is no number last.
__device__ inline bool comes_first(const float *scores, u32 expert, u32 other) {
    const float mine = scores[expert], its = scores[other];
    if (mine > its) return true;
    if (mine < its) return false;
    const bool is_none = !(mine == mine), is_its_none = !(its == its);
    return is_none == is_its_none ? expert < other : is_its_none;
}

// A block a row. Memory: scores, then whether each expert is chosen. Rows of padding go where the first row goes, so that
// no expert's weights are read for them alone.
KERNEL(route, RouteParameters, 256) {
    DYNAMIC_SHARED(scores);
    __shared__ float largest;
    u32 *is_chosen = (u32 *)(scores + p.experts);
    const bool is_padding = p.slots && p.slots[blockIdx.x] == p.padding;
    const float *row = p.scores + (is_padding ? 0 : (u64)blockIdx.x * p.experts);
    for (u32 expert = threadIdx.x; expert < p.experts; expert += blockDim.x) scores[expert] = row[expert];
    __syncthreads();
    for (u32 expert = threadIdx.x; expert < p.experts; expert += blockDim.x) {
        u32 before = 0;
        for (u32 other = 0; other < p.experts; other++) before += comes_first(scores, other, expert);
        is_chosen[expert] = before < p.count;
        if (before == 0) largest = scores[expert];
    }
    __syncthreads();
    float mine = 0;
    for (u32 expert = threadIdx.x; expert < p.experts; expert += blockDim.x)
        if (is_chosen[expert] || !p.of_chosen) mine += expf(scores[expert] - largest);
    const float total = block_sum(mine);
    for (u32 expert = threadIdx.x; expert < p.experts; expert += blockDim.x) {
        if (!is_chosen[expert]) continue;
        u64 place = (u64)blockIdx.x * p.count;
        for (u32 other = 0; other < expert; other++) place += is_chosen[other];
        p.chosen[place] = expert;
        p.weights[place] = expf(scores[expert] - largest) / total;
    }
}

struct GroupParameters {
    const u32 *chosen; // (choices): rows' experts, row after row
    u32 *rows;         // (choices): of each place, the row; an expert's places follow each other
    u32 *places;       // (choices): of each choice, its place, where the expert is here
    Bundle *bundles;   // (most_bundles): those of every expert in order, and then empty ones
    u32 choices;
    u32 of_a_row; // choices
    u32 first;    // of the experts that are here
    u32 experts;  // that are here
    u32 bundle_rows;
    u32 most_bundles;
};

// A block an expert. Memory: how many rows each expert has. Choices are looked at by warps, a run of them each, so that
// an expert's places are in the order of its rows.
KERNEL(group_rows, GroupParameters, 256) {
    DYNAMIC_SHARED(memory);
    __shared__ u32 of_warps[MAX_WARPS];
    u32 *counts = (u32 *)memory;
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, mine = blockIdx.x;
    auto bundles_of = [&](u32 rows) { return (rows + p.bundle_rows - 1) / p.bundle_rows; };
    for (u32 expert = threadIdx.x; expert < p.experts; expert += blockDim.x) counts[expert] = 0;
    __syncthreads();
    for (u32 choice = threadIdx.x; choice < p.choices; choice += blockDim.x) {
        const u32 expert = p.chosen[choice] - p.first;
        if (expert < p.experts) ADD_SHARED(counts + expert, 1u);
    }
    __syncthreads();
    u32 place = 0, bundle = 0, all = 0;
    for (u32 expert = threadIdx.x; expert < p.experts; expert += blockDim.x) {
        all += bundles_of(counts[expert]);
        if (expert >= mine) continue;
        place += counts[expert];
        bundle += bundles_of(counts[expert]);
    }
    place = block_sum(place);
    bundle = block_sum(bundle);
    all = block_sum(all);

    const u32 turns = (p.choices + blockDim.x - 1) / blockDim.x, begin = warp * turns * WARP;
    // Has the warp do `work` on the choices of this expert in its run, with how many of those came before.
    auto for_mine = [&](auto work) {
        u32 before = 0;
        for (u32 turn = 0; turn < turns; turn++) {
            const u32 choice = begin + turn * WARP + lane;
            const bool is_mine = choice < p.choices && p.chosen[choice] == p.first + mine;
            const u32 found = WARP_BALLOT(is_mine);
            if (is_mine) work(choice, before + population(found & ((1u << lane) - 1)));
            before += population(found);
        }
        return before;
    };
    const u32 of_warp = for_mine([](u32, u32) {});
    if (lane == 0) of_warps[warp] = of_warp;
    __syncthreads();
    u32 first = place;
    for (u32 other = 0; other < warp; other++) first += of_warps[other];
    for_mine([&](u32 choice, u32 before) {
        p.rows[first + before] = choice / p.of_a_row;
        p.places[choice] = first + before;
    });

    for (u32 at = threadIdx.x; at < bundles_of(counts[mine]); at += blockDim.x) {
        const u32 done = at * p.bundle_rows, left = counts[mine] - done;
        p.bundles[bundle + at] = Bundle{mine, place + done, left < p.bundle_rows ? left : p.bundle_rows};
    }
    if (mine != 0) return;
    for (u32 at = all + threadIdx.x; at < p.most_bundles; at += blockDim.x) p.bundles[at] = Bundle{0, 0, 0};
}

struct CombineParameters {
    const float *outputs; // (places, width)
    const u32 *chosen;    // (rows, count): experts, ascending
    const float *weights; // (rows, count)
    const u32 *places;    // (rows, count)
    float *sums;          // (rows, width)
    u64 elements;         // of the sums
    u32 width;
    u32 count;
    u32 first;    // of the experts that are here
    u32 together; // experts of a group
    u32 groups;   // a power of two up to 8
};

// A group's sum in the order of its experts, the groups' in the tree of `comm/tree.rs`. A thread an element.
KERNEL(combine, CombineParameters, 256) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= p.elements) return;
    const u64 row = at / p.width, column = at % p.width;
    float waiting[4];
    u32 height = 0, choice = 0;
    while (choice < p.count && p.chosen[row * p.count + choice] < p.first) choice++;
    for (u32 group = 0; group < p.groups; group++) {
        const u32 end = p.first + (group + 1) * p.together;
        float sum = 0;
        for (; choice < p.count && p.chosen[row * p.count + choice] < end; choice++) {
            const u64 of = row * p.count + choice;
            sum += p.weights[of] * p.outputs[(u64)p.places[of] * p.width + column];
        }
        // As often as the group's number ends in ones, a subtree is complete.
        for (u32 ones = group; ones & 1; ones >>= 1) sum = waiting[--height] + sum;
        waiting[height++] = sum;
    }
    p.sums[at] = waiting[0];
}
