// Where rows go among a layer's experts, and how what comes of them comes back.
#include "expert_groups.cuh"

struct RouteParameters {
    const float *scores; // (rows, experts)
    u32 *chosen;         // (rows, count): experts, ascending
    float *weights;      // (rows, count): what their outputs are multiplied by
    u32 experts;
    u32 count;     // experts of a row: those with its largest scores
    u32 of_chosen; // whether the chosen ones' weights sum to one, else all experts' do
};

// Of equal scores the lower expert's comes first, and what is no number last.
__device__ inline bool comes_first(const float *scores, u32 expert, u32 other) {
    const float mine = scores[expert], its = scores[other];
    if (mine > its) return true;
    if (mine < its) return false;
    const bool is_none = !(mine == mine), is_its_none = !(its == its);
    return is_none == is_its_none ? expert < other : is_its_none;
}

// A block a row. Memory: scores, then whether each expert is chosen.
KERNEL(route, RouteParameters, 256) {
    DYNAMIC_SHARED(scores);
    __shared__ float largest;
    u32 *is_chosen = (u32 *)(scores + p.experts);
    const float *row = p.scores + (u64)blockIdx.x * p.experts;
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
    u32 *counts;       // (experts): rows of each
    ExpertRows *parts; // (most_parts): every expert's places, EXPERT_ROWS at most together, and then none
    u32 choices;
    u32 of_a_row; // choices
    u32 first;    // of the experts that are here
    u32 experts;  // that are here
    u32 most_parts;
};

__device__ inline u32 parts_of(u32 rows) { return (rows + EXPERT_ROWS - 1) / EXPERT_ROWS; }

// Has the warp do `work` on the choices of an expert, in order, with how many of it came before.
template <class WORK> __device__ inline u32 for_choices(const GroupParameters &p, u32 expert, WORK work) {
    const u32 lane = threadIdx.x % WARP;
    u32 before = 0;
    for (u32 first = 0; first < p.choices; first += WARP) {
        const u32 choice = first + lane;
        const bool is_its = choice < p.choices && p.chosen[choice] == p.first + expert;
        const u32 all = WARP_BALLOT(is_its);
        if (is_its) work(choice, before + POPULATION(all & ((1u << lane) - 1)));
        before += POPULATION(all);
    }
    return before;
}

// One block of whole warps; a warp has every expert whose turn it is.
KERNEL(group_rows, GroupParameters, 1024) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (u32 expert = warp; expert < p.experts; expert += warps) {
        const u32 rows = for_choices(p, expert, [](u32, u32) {});
        if (lane == 0) p.counts[expert] = rows;
    }
    __syncthreads();
    for (u32 expert = warp; expert < p.experts; expert += warps) {
        u32 place = 0, part = 0;
        for (u32 other = lane; other < expert; other += WARP) {
            place += p.counts[other];
            part += parts_of(p.counts[other]);
        }
        place = warp_sum(place);
        part = warp_sum(part);
        const u32 rows = for_choices(p, expert, [&](u32 choice, u32 before) {
            p.rows[place + before] = choice / p.of_a_row;
            p.places[choice] = place + before;
        });
        for (u32 at = lane; at < parts_of(rows); at += WARP) {
            const u32 done = at * EXPERT_ROWS, left = rows - done;
            p.parts[part + at] = ExpertRows{expert, place + done, left < EXPERT_ROWS ? left : EXPERT_ROWS};
        }
    }
    u32 parts = 0;
    for (u32 expert = lane; expert < p.experts; expert += WARP) parts += parts_of(p.counts[expert]);
    parts = warp_sum(parts);
    for (u32 at = parts + threadIdx.x; at < p.most_parts; at += blockDim.x) p.parts[at] = ExpertRows{0, 0, 0};
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
