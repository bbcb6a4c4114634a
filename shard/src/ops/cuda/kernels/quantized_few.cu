// Products of few rows with quantized weights.
#include "product_few.cuh"
#include "quantized.cuh"

FEW(int8, Int8)
FEW(int8_minimum, Int8Minimum)
FEW(int8_short, Int8Short)
FEW(int4, Int4)
FEW(int4_minimum, Int4Minimum)
FEW(float8, Float8)
