// Rows that go to one expert, computed together.
#pragma once

#include "device.cuh"

struct Bundle {
    u32 expert; // among those that are here
    u32 first;  // place
    u32 rows;   // places that follow each other, no more than the product of few rows takes; 0: nothing is to be done
};
