// What every kernel is written in: numbers, sums over threads, and how a kernel is declared.
//
// A kernel takes one structure by value, the same on the host (`ops/cuda/launch/`). Compiled with
// LOCKSTEP_EMULATED it is plain C++ that a CPU runs thread by thread (`emulation.h`), so that its indices and its
// barriers are tested without a device.
//
// Products are never fused with sums by the compiler (-fmad=false): where they are to be, `fmaf` says so. So a
// number has the same bits in every kernel that computes it in the same way.
#pragma once

#ifdef LOCKSTEP_EMULATED
#include "emulation.h"
#else
#include <cstdint>
#include <cmath>
// Declares a kernel of up to THREADS threads a block; its body follows, with the parameters as `p`.
#define KERNEL(NAME, PARAMETERS, THREADS) KERNEL_WITHIN(NAME, PARAMETERS, (THREADS))
// The same, of which so many blocks are to fit on a processor together.
#define KERNEL_BESIDE(NAME, PARAMETERS, THREADS, BLOCKS) KERNEL_WITHIN(NAME, PARAMETERS, (THREADS, BLOCKS))
#define KERNEL_WITHIN(NAME, PARAMETERS, BOUNDS)                                                                   \
    static __device__ void NAME##_body(const PARAMETERS &p);                                                      \
    extern "C" __global__ void __launch_bounds__ BOUNDS lockstep_##NAME(const PARAMETERS p) { NAME##_body(p); }   \
    static __device__ void NAME##_body(const PARAMETERS &p)
// Memory of a block as large as the launch says, at a multiple of 128 bytes.
#define DYNAMIC_SHARED(NAME) extern __shared__ __align__(128) float NAME[]
#define WARP_SHUFFLE_XOR(VALUE, MASK) __shfl_xor_sync(0xffffffffu, VALUE, MASK)
#define WARP_SHUFFLE(VALUE, LANE) __shfl_sync(0xffffffffu, VALUE, LANE)
#define WARP_ANY(IS) __any_sync(0xffffffffu, IS)
#define WARP_BALLOT(IS) __ballot_sync(0xffffffffu, IS)
#define ADD_SHARED(PLACE, VALUE) atomicAdd(PLACE, VALUE)
#define WARP_SYNC() __syncwarp()
#endif

typedef uint32_t u32;
typedef uint64_t u64;

constexpr u32 WARP = 32;
constexpr u32 MAX_WARPS = 32;

// 16 bits with the exponent of a float.
struct bf16 {
    uint16_t bits;
};

__device__ inline u32 population(u32 word) {
#ifdef LOCKSTEP_EMULATED
    return (u32)__builtin_popcount(word);
#else
    return (u32)__popc(word);
#endif
}

__device__ inline u32 bits_of(float x) {
    union {
        float number;
        u32 bits;
    } both;
    both.number = x;
    return both.bits;
}

__device__ inline float from_bits(u32 bits) {
    union {
        float number;
        u32 bits;
    } both;
    both.bits = bits;
    return both.number;
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return from_bits((u32)x.bits << 16); }

// To the nearest, to even in the middle, as the host rounds. What is no number stays none.
__device__ inline bf16 round_to_bf16(float x) {
    u32 bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{(uint16_t)((bits >> 16) | 0x40u)};
    return bf16{(uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

__device__ inline void store(float *place, float x) { *place = x; }
__device__ inline void store(bf16 *place, float x) { *place = round_to_bf16(x); }

__device__ inline float infinity() { return from_bits(0x7f800000u); }

// Sums and maxima over a warp, the same on all lanes; the order is that of a butterfly.
template <class T> __device__ inline T warp_sum(T value) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) value = value + WARP_SHUFFLE_XOR(value, mask);
    return value;
}

template <class T> __device__ inline T warp_max(T value) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        T other = WARP_SHUFFLE_XOR(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

// Over a block of whole warps, the same on all threads: warps in their order. Every thread calls it.
template <class T> __device__ inline T block_sum(T value) {
    __shared__ T of_warps[MAX_WARPS];
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
    __syncthreads();
    T sum = 0;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum = sum + of_warps[warp];
    return sum;
}

template <class T> __device__ inline T block_max(T value) {
    __shared__ T of_warps[MAX_WARPS];
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
    __syncthreads();
    T largest = of_warps[0];
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++)
        largest = of_warps[warp] > largest ? of_warps[warp] : largest;
    return largest;
}
