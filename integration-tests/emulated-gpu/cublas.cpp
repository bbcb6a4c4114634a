// libcublas: candle makes a handle with every device. Nobody multiplies by it here.
#include "cuda.h"

CUDA int cublasCreate_v2(void **handle) {
    static int one;
    *handle = &one;
    return 0;
}

CUDA int cublasDestroy_v2(void *) { return 0; }
CUDA int cublasSetStream_v2(void *, void *) { return 0; }
