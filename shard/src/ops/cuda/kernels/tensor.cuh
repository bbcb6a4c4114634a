// Tensor cores, and copies into a block's memory that go on while threads compute.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"): with
// `group` = lane / 4 and `pair` = lane % 4 * 2 a lane holds
//   a (16 x 16): a[0] row group, columns pair, pair + 1;     a[1] row group + 8, the same columns;
//                a[2] row group, columns pair + 8, pair + 9; a[3] row group + 8, those
//   b (16 x 8):  b[0] rows pair, pair + 1 of column group;   b[1] rows pair + 8, pair + 9
//   d (16 x 8):  d[0], d[1] row group, columns pair, pair + 1; d[2], d[3] row group + 8
// two numbers of 16 bits in a word, the first in its lower half. All lanes of a warp call each of these together.
#pragma once

#include "device.cuh"

// 16 bits with three more of the mantissa, up to 65,504.
struct f16 {
    uint16_t bits;
};

// 16 bytes that are moved at once.
struct alignas(16) Quad {
    u32 words[4];
};

#ifdef LOCKSTEP_EMULATED
#include "emulated_tensor.h"
#else

// Two numbers as bf16 in a word, the first in its lower half, rounded as `round_to_bf16` does.
__device__ inline u32 pack_bf16(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

// The same as f16: infinite from 65,520 on.
__device__ inline u32 pack_f16(float first, float second) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

// d += a b, numbers of bf16, sums of f32. In which order one instruction adds its 16 products is the hardware's; it is
// the same for every row and column.
__device__ inline void multiply_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with numbers of f16.
__device__ inline void multiply_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 numbers of 16 bits: lane 8 m + r has where in the block's memory row r of matrix m begins, at
// a multiple of 16 bytes. Word m of a lane is row lane / 4, columns lane % 4 * 2 and the next, of matrix m.
__device__ inline void load_matrices(u32 (&words)[4], const void *row) {
    const u32 place = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(place)
                 : "memory");
}

// The same of each matrix's transpose: rows lane % 4 * 2 and the next of column lane / 4.
__device__ inline void load_matrices_transposed(u32 (&words)[4], const void *row) {
    const u32 place = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(place)
                 : "memory");
}

// Begins to copy 16 bytes from the device's memory to the block's; zeros where nothing is there to be copied, and
// `from` is not read then. Both are at multiples of 16 bytes.
__device__ inline void begin_copy(void *to, const void *from, bool is_there) {
    const u32 place = (u32)__cvta_generic_to_shared(to), bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(bytes) : "memory");
}

// Waits for the other lanes of the warp: what they wrote to the block's memory is there.
__device__ inline void wait_for_lanes() { __syncwarp(); }

// a b + c of two numbers of bf16 each, rounded once.
__device__ inline u32 multiply_add_bf16(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// The number of f16 in the lower half of a word.
__device__ inline float widen_f16(u32 word) {
    float number;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(number) : "r"(word));
    return number;
}

// Ends a group of this thread's copies.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last LATEST of this thread's groups are under way. Other threads' copies are there after a
// barrier behind it.
template <u32 LATEST> __device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
}

#endif

__device__ inline float widen(f16 x) { return widen_f16(x.bits); }
__device__ inline void store(f16 *place, float x) { place->bits = (uint16_t)pack_f16(x, 0.0f); }

// What tensor cores do with numbers of a type.
template <class NUMBER> struct Numbers;

template <> struct Numbers<bf16> {
    static __device__ inline u32 pack(float first, float second) { return pack_bf16(first, second); }
    static __device__ inline void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        multiply_bf16(d, a, b);
    }
};

template <> struct Numbers<f16> {
    static __device__ inline u32 pack(float first, float second) { return pack_f16(first, second); }
    static __device__ inline void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        multiply_f16(d, a, b);
    }
};
