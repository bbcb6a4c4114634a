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

__device__ inline float widen(Integer8 x) { return (float)(int8_t)x.bits; }

__device__ inline float widen(Float8 x) {
    const u32 size = x.bits & 0x7fu;
    const float number = size < 8 ? (float)size * 0.001953125f : from_bits((size << 20) + ((127 - 7) << 23));
    return x.bits & 0x80u ? -number : number;
}

#ifdef LOCKSTEP_EMULATED

template <class HELD> inline void widen_four(const HELD *, u32 four, u32 (&pairs)[2]) {
    for (u32 pair = 0; pair < 2; pair++)
        pairs[pair] = pack_bf16(widen(HELD{(uint8_t)(four >> 16 * pair)}), widen(HELD{(uint8_t)(four >> (16 * pair + 8))}));
}

#else

// a b + c of two numbers of bf16 in a word.
__device__ inline u32 multiply_add_bf16(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Four elements as two words of two numbers each. With seven bits of an integer x as a mantissa beside 128 there is
// 128 + (x mod 128), and 128 or 256 is to be taken off it, as the sign bit says in the same place.
__device__ inline void widen_four(const Integer8 *, u32 four, u32 (&pairs)[2]) {
#pragma unroll
    for (u32 pair = 0; pair < 2; pair++) {
        const u32 spread = __byte_perm(four, 0, pair == 0 ? 0x4140 : 0x4342);
        const u32 lower = (spread & 0x007f007fu) | 0x43004300u, off = (spread & 0x00800080u) | 0xc300c300u;
        pairs[pair] = multiply_add_bf16(lower, 0x3f803f80u, off);
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

#endif
