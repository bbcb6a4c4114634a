// The few of candle's kernels that are called, each as one loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct CandleKernel {
    const char *name;
    // Of each parameter its bytes, ended by 0.
    unsigned char sizes[8];
    void (*run)(const uint64_t *parameters);

    std::vector<uint64_t> read(void **parameters) const;
};

const CandleKernel *candle_kernel(const char *name);
