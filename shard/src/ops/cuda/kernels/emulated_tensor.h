// What tensor.cuh has, on the host. Products are added one after the other, which hardware does in an order of its
// own; copies arrive when they are waited for and not before, so that a wait that is missing is found.
#pragma once

#include <deque>

namespace emulation {

// What a warp's lanes bring to an instruction.
struct Brought {
    u32 words[6];
    const void *place;
};

inline Brought (&brought())[1024] {
    static Brought of_threads[1024];
    return of_threads;
}

inline u32 current_lane() { return block()->current % 32; }

// Of a lane of the current thread's warp.
inline const Brought &of_lane(u32 lane) { return brought()[block()->current / 32 * 32 + lane]; }

inline float bf16_in(u32 word, u32 half) { return from_bits((word >> (16 * half) & 0xffffu) << 16); }

inline float f16_in(u32 word, u32 half) {
    _Float16 number;
    const uint16_t bits = (uint16_t)(word >> (16 * half));
    memcpy(&number, &bits, sizeof number);
    return (float)number;
}

template <class Number> void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], Number number) {
    Brought &mine = brought()[block()->current];
    memcpy(mine.words, a, sizeof a);
    memcpy(mine.words + 4, b, sizeof b);
    wait_for_warp();
    const u32 group = current_lane() / 4, pair = current_lane() % 4 * 2;
    for (u32 at = 0; at < 4; at++) {
        const u32 below = at / 2, column = pair + at % 2;
        for (u32 inner = 0; inner < 16; inner++) {
            const u32 of_pair = inner % 8 / 2, further = inner / 8;
            const float x = number(of_lane(group * 4 + of_pair).words[below + 2 * further], inner % 2);
            const float y = number(of_lane(column * 4 + of_pair).words[4 + further], inner % 2);
            d[at] = fmaf(x, y, d[at]);
        }
    }
    wait_for_warp();
}

inline u32 two_of(const void *first, const void *second) {
    uint16_t lower, upper;
    memcpy(&lower, first, sizeof lower);
    memcpy(&upper, second, sizeof upper);
    return lower | (u32)upper << 16;
}

inline void load(u32 (&words)[4], const void *row, bool is_transposed) {
    brought()[block()->current].place = row;
    wait_for_warp();
    const u32 group = current_lane() / 4, pair = current_lane() % 4 * 2;
    for (u32 matrix = 0; matrix < 4; matrix++) {
        auto number = [&](u32 r, u32 column) { return (const char *)of_lane(8 * matrix + r).place + 2 * column; };
        words[matrix] = is_transposed ? two_of(number(pair, group), number(pair + 1, group))
                                      : two_of(number(group, pair), number(group, pair + 1));
    }
    wait_for_warp();
}

struct Copy {
    void *to;
    const void *from;
};

// Groups of a thread's copies that have not arrived; the last is not ended.
inline std::deque<std::vector<Copy>> &copies() {
    static std::deque<std::vector<Copy>> of_threads[1024];
    return of_threads[block()->current];
}

inline void check_place(const void *place) {
    if ((uintptr_t)place % 16 == 0) return;
    fprintf(stderr, "emulate a kernel: it moves 16 bytes at %p, which is no multiple of 16\n", place);
    abort();
}

} // namespace emulation

inline u32 pack_bf16(float first, float second) {
    return (u32)round_to_bf16(first).bits | (u32)round_to_bf16(second).bits << 16;
}

inline u32 pack_f16(float first, float second) {
    const _Float16 both[2] = {(_Float16)first, (_Float16)second};
    u32 word;
    memcpy(&word, both, sizeof word);
    return word;
}

inline void multiply_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply(d, a, b, emulation::bf16_in);
}

inline void multiply_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulation::multiply(d, a, b, emulation::f16_in);
}

inline void load_matrices(u32 (&words)[4], const void *row) {
    emulation::check_place(row);
    emulation::load(words, row, false);
}

inline void load_matrices_transposed(u32 (&words)[4], const void *row) {
    emulation::check_place(row);
    emulation::load(words, row, true);
}

inline void begin_copy(void *to, const void *from, bool is_there) {
    emulation::check_place(to);
    emulation::check_place(from);
    memset(to, 0xff, 16);
    auto &groups = emulation::copies();
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({to, is_there ? from : nullptr});
}

inline void wait_for_lanes() { emulation::wait_for_warp(); }

inline u32 multiply_add_bf16(u32 a, u32 b, u32 c) {
    auto half = [&](u32 at) {
        return fmaf(emulation::bf16_in(a, at), emulation::bf16_in(b, at), emulation::bf16_in(c, at));
    };
    return pack_bf16(half(0), half(1));
}

inline float widen_f16(u32 word) { return emulation::f16_in(word, 0); }

inline void end_copies() {
    auto &groups = emulation::copies();
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}

template <u32 LATEST> void wait_for_copies() {
    auto &groups = emulation::copies();
    // The last is not ended, and is not waited for.
    while (groups.size() > LATEST + 1) {
        for (const emulation::Copy &copy : groups.front()) {
            if (copy.from) memcpy(copy.to, copy.from, 16);
            else memset(copy.to, 0, 16);
        }
        groups.pop_front();
    }
}
