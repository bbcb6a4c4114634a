// Numbers of eight bits that are multiplied by a scale of their row: integers as the CPU holds them, or floats of four
// bits of exponent and three of mantissa (e4m3, OCP 8-bit floating point). Both widen to bf16 exactly.
#pragma once

#include "tensor.cuh"

struct Integer8 {
    uint8_t bits;
};

struct Float8 {
    uint8_t bits;
};

__device__ inline float largest_of(const Integer8 *) { return 127.0f; }
__device__ inline float largest_of(const Float8 *) { return 448.0f; }

// What numbers are multiplied by to be elements, and what makes numbers of elements.
struct Scale {
    float scale, factor;
};

// Of a row whose largest magnitude is `largest`, as `ops/cpu/kv_step.rs` has it: no numbers where that is none or not
// finite, zeros where it is too small for an inverse.
__device__ inline Scale scale_of(float largest, float most) {
    const float scale = largest / most;
    if (!(scale < infinity())) return Scale{from_bits(0x7fc00000u), from_bits(0x7fc00000u)};
    if (scale < from_bits(0x00800000u)) return Scale{0, 0};
    return Scale{scale, 1.0f / scale};
}

// The nearest element, the even one in the middle; of what is no number zero, whose scale is none then.
__device__ inline void store(Integer8 *place, float x) {
    const float whole = rintf(x);
    place->bits = whole == whole ? (uint8_t)(int)fminf(fmaxf(whole, -127.0f), 127.0f) : 0;
}

__device__ inline void store(Float8 *place, float x) {
    const u32 bits = bits_of(x) & 0x7fffffffu, sign = bits_of(x) >> 24 & 0x80u;
    const float size = from_bits(bits);
    u32 element;
    if (!(size == size)) element = 0;
    else if (size >= 464.0f) element = 0x7e; // 448: what is larger is not there
    else if (size < 0.015625f) element = (u32)rintf(size * 512.0f);
    else element = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - ((127 - 7) << 3);
    place->bits = (uint8_t)(element > 0x7e ? 0x7e | sign : element | sign);
}

#ifdef LOCKSTEP_EMULATED

inline u32 __byte_perm(u32 lower, u32 upper, u32 places) {
    const u64 both = lower | (u64)upper << 32;
    u32 picked = 0;
    for (u32 at = 0; at < 4; at++) picked |= (u32)(both >> 8 * (places >> 4 * at & 7) & 0xff) << 8 * at;
    return picked;
}

#endif

// Four elements as two words of two numbers each. With the lower seven bits of an integer x as the mantissa of 128
// there is 128 + (x mod 128); of that 128 or 256 is to be taken, as the eighth bit says, the last of its exponent.
__device__ inline void widen_four(const Integer8 *, u32 four, u32 (&pairs)[2]) {
#pragma unroll
    for (u32 pair = 0; pair < 2; pair++) {
        const u32 both = __byte_perm(four, 0x43434343u, pair == 0 ? 0x4140 : 0x4342);
        pairs[pair] = multiply_add_bf16(both & 0xff80ff80u, 0xbf80bf80u, both & 0xff7fff7fu);
    }
}

// The bits of an e4m3 in the places of those of bf16 are a number 2^120 times too small.
__device__ inline void widen_four(const Float8 *, u32 four, u32 (&pairs)[2]) {
#pragma unroll
    for (u32 pair = 0; pair < 2; pair++) {
        const u32 spread = __byte_perm(four, 0, pair == 0 ? 0x1404 : 0x3424);
        const u32 small = (spread & 0x80008000u) | (spread >> 4 & 0x07f007f0u);
        pairs[pair] = multiply_add_bf16(small, 0x7b807b80u, 0x80008000u);
    }
}
