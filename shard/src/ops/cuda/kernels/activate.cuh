// The activations of MLPs, the same wherever one is computed.
#pragma once

#include "device.cuh"

// 0: silu, 1: gelu by tanh.
__device__ inline float activate(u32 function, float x) {
    if (function == 0) return x / (1.0f + expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.797884583f * (x + 0.044715f * x * x * x)));
}
