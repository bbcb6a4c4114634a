// libcublas: products as they are called, each sum in an order that depends on the number of rows, as its is.
#include <cstring>
#include <vector>

#include "device.h"

using namespace gpu;

enum Status : int { OK = 0, NOT_SUPPORTED = 15, BAD_VALUE = 7, EXECUTION_FAILED = 13 };
enum Element : int { F32 = 0, F16 = 2, BF16 = 14 };
enum Transpose : int { AS_IT_IS = 0, TRANSPOSED = 1 };
constexpr int COMPUTE_F32 = 68;

struct Handle {
    void *stream = nullptr;
    // A library takes memory at its first product, which it may not during a capture.
    bool is_warm = false;
};

CUDA int cublasCreate_v2(void **handle) {
    *handle = new Handle;
    return OK;
}

CUDA int cublasDestroy_v2(void *handle) {
    delete (Handle *)handle;
    return OK;
}

CUDA int cublasSetStream_v2(void *handle, void *stream) {
    ((Handle *)handle)->stream = stream;
    return OK;
}

static std::vector<float> row_of(const void *matrix, int element, size_t first, size_t count) {
    std::vector<float> values(count);
    if (element == F32) {
        memcpy(values.data(), (const float *)matrix + first, count * sizeof(float));
        return values;
    }
    if (element == F16) {
        for (size_t at = 0; at < count; at++) values[at] = (float)((const _Float16 *)matrix)[first + at];
        return values;
    }
    for (size_t at = 0; at < count; at++) {
        const uint32_t bits = (uint32_t)((const uint16_t *)matrix)[first + at] << 16;
        memcpy(&values[at], &bits, sizeof bits);
    }
    return values;
}

static float dot(const std::vector<float> &a, const std::vector<float> &b, size_t begin_at) {
    float sums[16] = {};
    for (size_t at = 0; at < a.size(); at++) sums[(at + begin_at) % 16] += a[at] * b[at];
    float sum = 0;
    for (float part : sums) sum += part;
    return sum;
}

struct Product {
    int m, n, k, element;
    DevicePointer a, b, c;
    int lda, ldb, ldc;

    void run() const {
        const size_t size = element == F32 ? sizeof(float) : sizeof(uint16_t);
        const size_t of_a = ((size_t)(m - 1) * lda + k) * size, of_b = ((size_t)(n - 1) * ldb + k) * size;
        const size_t of_c = ((size_t)(n - 1) * ldc + m) * sizeof(float);
        if (!check("a product", a, of_a) || !check("a product", b, of_b) || !check("a product", c, of_c)) return;
        std::vector<std::vector<float>> columns;
        for (int column = 0; column < n; column++)
            columns.push_back(row_of((const void *)b, element, (size_t)column * ldb, (size_t)k));
        for (int row = 0; row < m; row++) {
            const std::vector<float> values = row_of((const void *)a, element, (size_t)row * lda, (size_t)k);
            for (int column = 0; column < n; column++)
                ((float *)c)[(size_t)column * ldc + row] = dot(values, columns[(size_t)column], (size_t)n % 16);
        }
    }
};

CUDA int cublasGemmEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a,
                      int type_a, int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c,
                      int ldc, int compute, int) {
    Alone alone;
    if (failure() != SUCCESS) return EXECUTION_FAILED;
    const bool is_known = transpose_a == TRANSPOSED && transpose_b == AS_IT_IS && compute == COMPUTE_F32 && type_c == F32 &&
                          type_a == type_b && (type_a == F32 || type_a == F16 || type_a == BF16) && *(const float *)alpha == 1 &&
                          *(const float *)beta == 0;
    if (!is_known) {
        report("cublasGemmEx is called in a way that is not emulated");
        return NOT_SUPPORTED;
    }
    if (m <= 0 || n <= 0 || k <= 0 || lda < k || ldb < k || ldc < m) return BAD_VALUE;
    Handle *of = (Handle *)handle;
    Stream *stream = (Stream *)of->stream;
    if (!of->is_warm && stream->capture_status != CAPTURE_NONE) {
        break_capture(stream, "the first product of cuBLAS");
        return EXECUTION_FAILED;
    }
    of->is_warm = true;
    const Product product{m, n, k, type_a, (DevicePointer)a, (DevicePointer)b, (DevicePointer)c, lda, ldb, ldc};
    return submit(stream, {"a product", [product] { product.run(); }}) == SUCCESS ? OK : EXECUTION_FAILED;
}
