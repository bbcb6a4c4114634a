// libcublasLt: opened, since libcublas needs it, and never called.
#include "cuda.h"

CUDA size_t cublasLtGetVersion() { return 130000; }
