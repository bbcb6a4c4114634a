// Rows that go to one expert, computed together.
#pragma once

#include "device.cuh"

constexpr u32 EXPERT_ROWS = 64; // at most: what the product of few rows takes

struct ExpertRows {
    u32 expert; // among those that are here
    u32 first;  // place
    u32 rows;   // places that follow each other; 0 where nothing is to be done
};
