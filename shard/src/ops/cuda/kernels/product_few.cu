// Products of few rows with weights of bf16 and f16.
#include "product_few.cuh"

FEW(bf16, Rows<bf16>)
FEW(f16, Rows<f16>)
