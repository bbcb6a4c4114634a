#include "candle.h"

#include <cstring>

static float number(uint64_t word) {
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

// (source, target, rows, columns, elements between rows of each)
template <class T> static void copy_2d(const uint64_t *p) {
    const T *source = (const T *)p[0];
    T *target = (T *)p[1];
    for (uint64_t row = 0; row < p[2]; row++)
        memcpy(target + row * p[5], source + row * p[4], p[3] * sizeof(T));
}

// (elements, dimensions, dimensions and strides where not contiguous, left, right, sum)
static void add(const uint64_t *p) {
    const float *left = (const float *)p[3], *right = (const float *)p[4];
    float *sum = (float *)p[5];
    for (uint64_t at = 0; at < p[0]; at++) sum[at] = left[at] + right[at];
}

// (elements, dimensions, dimensions and strides where not contiguous, input, output, factor, summand)
static void affine(const uint64_t *p) {
    const float *input = (const float *)(p[3] ? p[3] : p[4]);
    float *output = (float *)p[4];
    for (uint64_t at = 0; at < p[0]; at++) output[at] = input[at] * number(p[5]) + number(p[6]);
}

// (elements, dimensions, dimensions and strides where not contiguous, input, output)
static void round_to_bf16(const uint64_t *p) {
    const uint32_t *input = (const uint32_t *)p[3];
    uint16_t *output = (uint16_t *)p[4];
    for (uint64_t at = 0; at < p[0]; at++)
        output[at] = (uint16_t)((input[at] + 0x7fff + (input[at] >> 16 & 1)) >> 16);
}

static const CandleKernel KERNELS[] = {
    {"copy2d_f32", {8, 8, 4, 4, 4, 4}, copy_2d<uint32_t>}, {"copy2d_bf16", {8, 8, 4, 4, 4, 4}, copy_2d<uint16_t>},
    {"copy2d_f16", {8, 8, 4, 4, 4, 4}, copy_2d<uint16_t>}, {"copy2d_u8", {8, 8, 4, 4, 4, 4}, copy_2d<uint8_t>},
    {"badd_f32", {8, 8, 8, 8, 8, 8}, add},                 {"affine_f32", {8, 8, 8, 8, 8, 4, 4}, affine},
    {"cast_f32_bf16", {8, 8, 8, 8, 8}, round_to_bf16},
};

std::vector<uint64_t> CandleKernel::read(void **parameters) const {
    std::vector<uint64_t> words;
    for (size_t at = 0; sizes[at]; at++) {
        words.push_back(0);
        memcpy(&words.back(), parameters[at], sizes[at]);
    }
    return words;
}

const CandleKernel *candle_kernel(const char *name) {
    for (const CandleKernel &kernel : KERNELS)
        if (strcmp(kernel.name, name) == 0) return &kernel;
    return nullptr;
}
