// Products of few rows with weights of bf16.
#include "product_few.cuh"

FEW(bf16, Bf16Rows)
