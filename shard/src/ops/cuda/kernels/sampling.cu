// From a row of logits to a token and log-probabilities, so that nothing else leaves the device.
//
// One block of whole warps a row, of up to 1024 threads; the row stays in the cache between passes. The chain is
// that of `sampling/chain.rs`: bias, penalties, mask, temperature, top-k, top-p, typical-p, min-p, choice. Tokens
// that are ruled out become minus infinity. Exponentials have the CPU's bits; sums of them are f64 in a fixed order
// of their own, so that a token differs from the CPU's only where a random number falls within 1e-12 of a boundary.
// Thresholds are found by bisecting the numbers' bits: each step counts or sums what is at least as large.
#include "device.cuh"

struct Counted {
    u32 token;
    u32 in_output; // how often; 0: in the prompt alone
};

struct Bias {
    u32 token;
    float bias;
};

// What is asked of a row.
struct Ask {
    u32 kind;  // 0: about `token`; 1: the most probable; 2: drawn
    u32 token; // that is known
    u32 seed_low, seed_high, choice, position;
    float temperature;
    u32 top_k; // 0: off
    float top_p, typical_p, min_p;
    float repetition, frequency, presence;
    u32 first_counted, counted; // of the list of penalised tokens
    u32 first_bias, biases;
    u32 first_mask, masked; // bytes of the masks; no byte: no mask
    u32 top;                // most probable tokens to be reported
    u32 of_warped;          // whether log-probabilities are of what is left to choose from
    u32 fed;                // 0, or one more than the row of the step before whose token is counted as well
};

struct Answer {
    u32 token;
    float logprob;
    u32 outcome; // 0: chosen; 1: NaN, 2: infinity, 3: nothing but minus infinity among the logits; 4: nothing left
    u32 top;     // how many are reported
};

struct Rival {
    u32 token;
    float logprob;
};

struct SampleParameters {
    const float *logits; // (rows, vocabulary)
    float *work;         // (rows, vocabulary)
    const Ask *asks;     // (rows)
    const Counted *counted;
    const Bias *biases;
    const uint8_t *masks; // one bit a token, least significant first
    Answer *answers;      // (rows)
    Rival *rivals;        // (rows, most_rivals)
    const Answer *before; // of the step before, where anything is fed
    u32 vocabulary;
    u32 most_rivals;
};

// `sampling/softmax.rs` has it: e to the power of x, which is at most 0.
__device__ inline float exponential(float x) {
    const float clamped = x > -87.0f ? x : -87.0f;
    const float shifted = clamped * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (clamped - n * 0.6933594f) - n * -2.1219444e-4f;
    float q = 1.9875691e-4f;
    q = q * r + 1.3981999e-3f;
    q = q * r + 8.333452e-3f;
    q = q * r + 4.1665796e-2f;
    q = q * r + 1.6666665e-1f;
    q = q * r + 0.5f;
    const float mantissa = (q * r * r + r) + 1.0f;
    const float power = from_bits((bits_of(shifted) << 23) + (127u << 23));
    return x < -87.0f ? 0.0f : mantissa * power;
}

// Numbers ordered as integers, the largest last; both zeros are one.
__device__ inline u32 key_of(float x) {
    const u32 bits = bits_of(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Orders by size, then the lower token first.
__device__ inline u64 ranked(float x, u32 token) { return (u64)key_of(x) << 32 | (u32)~token; }
__device__ inline u32 token_of(u64 rank) { return ~(u32)rank; }

__device__ inline float bounded(float before, float changed) {
    const float most = 3.402823466e38f;
    if (before == -infinity()) return before;
    // As Rust clamps: what is no number stays none.
    return changed > most ? most : changed < -most ? -most : changed;
}

// The logit of a token that stands in the context, and so often in the output.
__device__ inline float penalised(const Ask &ask, float logit, u32 in_output) {
    logit = bounded(logit, logit < 0.0f ? logit * ask.repetition : logit / ask.repetition);
    if (in_output == 0) return logit;
    const float penalty = ask.frequency * (float)in_output + ask.presence;
    return bounded(logit, logit - bounded(0.0f, penalty));
}

// The first of this position's random numbers, of 53 bits: Philox 4x32 with ten rounds.
__device__ inline double uniform(const Ask &ask) {
    u32 c[4] = {ask.choice, ask.position, 0, 0}, k[2] = {ask.seed_low, ask.seed_high};
    for (u32 round = 0; round < 10; round++) {
        const u64 first = (u64)0xD2511F53u * c[0], second = (u64)0xCD9E8D57u * c[2];
        const u32 next[4] = {(u32)(second >> 32) ^ c[1] ^ k[0], (u32)second, (u32)(first >> 32) ^ c[3] ^ k[1],
                             (u32)first};
        for (u32 at = 0; at < 4; at++) c[at] = next[at];
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    return (double)(((u64)c[1] << 32 | c[0]) >> 11) / 9007199254740992.0;
}

// Sums over the row what `of` makes of each number and its token.
template <class T, class F> __device__ inline T sum_over(const float *row, u32 count, F of) {
    T sum = 0;
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) sum += of(row[at], at);
    return block_sum(sum);
}

// The first in order of size among those `holds` is true of; 0 where there is none.
template <class F> __device__ inline u64 best_of(const float *row, u32 count, F holds) {
    u64 best = 0;
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
        const u64 rank = ranked(row[at], at);
        if (holds(row[at], rank) && rank > best) best = rank;
    }
    return block_max(best);
}

__device__ inline bool is_left(float x) { return x > -infinity(); }

// Rules out what `holds` is not true of.
template <class F> __device__ inline void keep(float *row, u32 count, F holds) {
    for (u32 at = threadIdx.x; at < count; at += blockDim.x)
        if (is_left(row[at]) && !holds(row[at], at)) row[at] = -infinity();
    __syncthreads();
}

__device__ inline double mass_of(const float *row, u32 count) {
    return sum_over<double>(row, count, [](float x, u32) { return is_left(x) ? (double)exponential(x) : 0.0; });
}

// What changes single logits: bias, penalties, mask. `row` becomes what `model` is after them.
__device__ void process(const SampleParameters &p, const Ask &ask, const float *model, float *row) {
    for (u32 at = threadIdx.x; at < p.vocabulary; at += blockDim.x) row[at] = model[at];
    __syncthreads();
    // One after the other: a token may be biased twice.
    if (threadIdx.x == 0)
        for (u32 at = 0; at < ask.biases; at++) {
            const Bias bias = p.biases[ask.first_bias + at];
            float *logit = row + bias.token;
            *logit = bias.bias == -infinity() ? -infinity() : bounded(*logit, *logit + bias.bias);
        }
    __syncthreads();
    // The host did not know the last token yet when it wrote the list.
    const u32 last = ask.fed > 0 ? p.before[ask.fed - 1].token : p.vocabulary;
    u32 is_listed = 0;
    for (u32 at = threadIdx.x; at < ask.counted; at += blockDim.x) {
        const Counted counted = p.counted[ask.first_counted + at];
        const u32 is_last = counted.token == last;
        row[counted.token] = penalised(ask, row[counted.token], counted.in_output + is_last);
        is_listed |= is_last;
    }
    if (ask.fed > 0 && block_sum(is_listed) == 0 && threadIdx.x == 0) row[last] = penalised(ask, row[last], 1);
    __syncthreads();
    if (ask.masked > 0) {
        const uint8_t *mask = p.masks + ask.first_mask;
        for (u32 at = threadIdx.x; at < p.vocabulary; at += blockDim.x)
            if (at / 8 >= ask.masked || !(mask[at / 8] >> at % 8 & 1)) row[at] = -infinity();
        __syncthreads();
    }
}

// Keeps the k most probable and those as probable as the last of them.
__device__ void keep_top_k(float *row, u32 count, u32 k) {
    if (k == 0 || k >= sum_over<u32>(row, count, [](float x, u32) { return (u32)is_left(x); })) return;
    u32 threshold = 0;
    for (u32 bit = 1u << 31; bit > 0; bit >>= 1) {
        const u32 tried = threshold | bit;
        if (sum_over<u32>(row, count, [=](float x, u32) { return (u32)(key_of(x) >= tried); }) >= k)
            threshold = tried;
    }
    keep(row, count, [=](float x, u32) { return key_of(x) >= threshold; });
}

// Keeps the most probable until their mass reaches p of all; of equals the lower ones.
__device__ void keep_top_p(float *row, u32 count, float share) {
    if (share >= 1.0f) return;
    const double enough = (double)share * mass_of(row, count);
    u32 threshold = 0;
    for (u32 bit = 1u << 31; bit > 0; bit >>= 1) {
        const u32 tried = threshold | bit;
        const double mass = sum_over<double>(row, count, [=](float x, u32) {
            return is_left(x) && key_of(x) >= tried ? (double)exponential(x) : 0.0;
        });
        if (mass >= enough) threshold = tried;
    }
    double mass = sum_over<double>(row, count, [=](float x, u32) {
        return is_left(x) && key_of(x) > threshold ? (double)exponential(x) : 0.0;
    });
    const u32 equals = sum_over<u32>(row, count, [=](float x, u32) { return (u32)(key_of(x) == threshold); });
    const float equal = from_bits(threshold >> 31 ? threshold & 0x7fffffffu : ~threshold);
    const double weight = (double)exponential(equal);
    u32 wanted = 0;
    while (mass < enough && wanted < equals) {
        mass += weight;
        wanted++;
    }
    // The token up to which equals are kept: fewer than `wanted` lie before it.
    u32 last = 0;
    for (u32 bit = 1u << 31; bit > 0; bit >>= 1) {
        const u32 tried = last | bit;
        const u32 before = sum_over<u32>(row, count, [=](float x, u32 token) {
            return (u32)(key_of(x) == threshold && token < tried);
        });
        if (before < wanted) last = tried;
    }
    keep(row, count, [=](float x, u32 token) {
        return key_of(x) > threshold || (key_of(x) == threshold && wanted > 0 && token <= last);
    });
}

// Keeps those nearest the expected surprise until their mass reaches p, and makes the largest logit 0 again.
__device__ void keep_typical(float *row, u32 count, float share) {
    if (share >= 1.0f) return;
    const double mass = mass_of(row, count), log_mass = log(mass);
    const double entropy = sum_over<double>(row, count, [=](float x, u32) {
        return is_left(x) ? (double)exponential(x) / mass * (log_mass - (double)x) : 0.0;
    });
    // Distances are above 0, so that their bits are in their order.
    auto distance = [=](float x) {
        union {
            double number;
            u64 bits;
        } both;
        both.number = fabs((log_mass - (double)x) - entropy);
        return both.bits;
    };
    auto reached_by = [=](u64 farthest) {
        return sum_over<double>(row, count, [=](float x, u32) {
            return is_left(x) && distance(x) <= farthest ? (double)exponential(x) / mass : 0.0;
        });
    };
    // The largest distance that is too short, in bits, plus one is the shortest that is enough.
    u64 farthest = 0;
    for (u64 bit = (u64)1 << 62; bit > 0; bit >>= 1)
        if (reached_by((farthest | bit) - 1) < (double)share) farthest |= bit;
    if (reached_by(farthest) < (double)share) return;
    keep(row, count, [=](float x, u32) { return distance(x) <= farthest; });
    const u64 best = best_of(row, count, [](float x, u64) { return is_left(x); });
    const float largest = row[token_of(best)];
    __syncthreads();
    if (largest < 0.0f) {
        for (u32 at = threadIdx.x; at < count; at += blockDim.x) row[at] -= largest;
        __syncthreads();
    }
}

// Inverts the cumulative distribution over the vocabulary's order. A thread sums neighbouring tokens.
__device__ u32 draw(const float *row, u32 count, double random) {
    __shared__ double ends[MAX_WARPS * WARP];
    __shared__ u32 drawn;
    const u32 each = (count + blockDim.x - 1) / blockDim.x;
    const u32 first = threadIdx.x * each < count ? threadIdx.x * each : count;
    const u32 end = first + each < count ? first + each : count;
    double sum = 0;
    for (u32 at = first; at < end; at++) sum += is_left(row[at]) ? (double)exponential(row[at]) : 0.0;
    __syncthreads();
    ends[threadIdx.x] = sum;
    if (threadIdx.x == 0) drawn = count;
    __syncthreads();
    if (threadIdx.x == 0)
        for (u32 thread = 1; thread < blockDim.x; thread++) ends[thread] = ends[thread - 1] + ends[thread];
    __syncthreads();
    const double target = random * ends[blockDim.x - 1];
    double reached = threadIdx.x == 0 ? 0.0 : ends[threadIdx.x - 1];
    if (reached <= target && target < ends[threadIdx.x]) {
        // Added in another order the last of them may not get there, and is the one all the same.
        u32 found = count;
        for (u32 at = first; at < end; at++) {
            const double weight = is_left(row[at]) ? (double)exponential(row[at]) : 0.0;
            if (weight > 0.0) found = at;
            reached += weight;
            if (reached > target) break;
        }
        drawn = found;
    }
    __syncthreads();
    return drawn;
}

// NaN, infinity, nothing but minus infinity: 1, 2, 3; else 0.
__device__ u32 check_numbers(const float *row, u32 count) {
    const u32 nans = sum_over<u32>(row, count, [](float x, u32) { return (u32)(x != x); });
    const u32 infinities = sum_over<u32>(row, count, [](float x, u32) { return (u32)(x == infinity()); });
    const u32 numbers = sum_over<u32>(row, count, [](float x, u32) { return (u32)is_left(x); });
    return nans > 0 ? 1 : infinities > 0 ? 2 : numbers == 0 ? 3 : 0;
}

// What is left of `row` to draw from, relative to its largest.
__device__ void warp(const Ask &ask, float *row, u32 count, float largest) {
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
        const float relative = row[at] - largest;
        row[at] = ask.temperature == 1.0f ? relative : relative / ask.temperature;
    }
    __syncthreads();
    keep_top_k(row, count, ask.top_k);
    keep_top_p(row, count, ask.top_p);
    keep_typical(row, count, ask.typical_p);
    const float min_p = ask.min_p;
    if (min_p > 0.0f) keep(row, count, [=](float x, u32) { return exponential(x) >= min_p; });
}

// Log-probabilities of the token and its rivals in the softmax of `row`, of which minus infinity counts where
// `all` is said.
__device__ void report(const SampleParameters &p, const Ask &ask, const float *row, bool all, u32 token) {
    const u32 count = p.vocabulary;
    const u64 best = best_of(row, count, [](float, u64) { return true; });
    const float largest = all ? row[token_of(best)] : 0.0f;
    const double log_mass = log(sum_over<double>(row, count, [=](float x, u32) {
        return is_left(x) ? (double)exponential(x - largest) : 0.0;
    }));
    auto logprob = [=](float x) { return (float)(((double)x - (double)largest) - log_mass); };
    u64 bound = ~(u64)0;
    u32 reported = 0;
    for (; reported < ask.top && reported < p.most_rivals; reported++) {
        const u64 next = best_of(row, count, [=](float x, u64 rank) { return rank < bound && (all || is_left(x)); });
        if (next == 0) break;
        bound = next;
        if (threadIdx.x == 0)
            p.rivals[(u64)blockIdx.x * p.most_rivals + reported] = Rival{token_of(next), logprob(row[token_of(next)])};
    }
    if (threadIdx.x == 0) p.answers[blockIdx.x] = Answer{token, logprob(row[token]), 0, reported};
}

KERNEL(sample, SampleParameters, 1024) {
    const Ask ask = p.asks[blockIdx.x];
    const u32 count = p.vocabulary;
    const float *model = p.logits + (u64)blockIdx.x * count;
    float *row = p.work + (u64)blockIdx.x * count;
    u32 outcome = check_numbers(model, count), token = ask.token;
    if (outcome == 0 && ask.kind > 0) {
        process(p, ask, model, row);
        const u64 best = best_of(row, count, [](float x, u64) { return is_left(x); });
        token = token_of(best);
        outcome = best == 0 ? 4 : 0;
        if (outcome == 0 && ask.kind == 2) {
            const float largest = row[token];
            __syncthreads();
            warp(ask, row, count, largest);
            token = draw(row, count, uniform(ask));
            // Where nothing has any weight, the most probable is taken.
            if (token >= count) token = token_of(best_of(row, count, [](float x, u64) { return is_left(x); }));
        }
    }
    if (outcome > 0) {
        if (threadIdx.x == 0) p.answers[blockIdx.x] = Answer{0, 0.0f, outcome, 0};
        return;
    }
    __syncthreads();
    const bool warped = ask.kind > 0 && ask.of_warped;
    report(p, ask, warped ? row : model, !(warped && ask.kind == 2), token);
}

struct FeedParameters {
    u32 *tokens;          // (count): a token, or FED and the row of `before` it was chosen in
    const Answer *before; // of the step before
    u32 count;
};

constexpr u32 FED = 0x80000000u;

// One thread a token.
KERNEL(feed_tokens, FeedParameters, 256) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < p.count && (p.tokens[at] & FED)) p.tokens[at] = p.before[p.tokens[at] & ~FED].token;
}
