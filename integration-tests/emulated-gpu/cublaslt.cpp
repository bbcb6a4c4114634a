// libcublasLt: products as they are called, each sum in an order that depends on the number of rows, as its is.
#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "device.h"

using namespace gpu;

enum Status : int { OK = 0, NOT_INITIALIZED = 1, BAD_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Element : int { F32 = 0, F16 = 2, BF16 = 14 };
enum Transpose : int { AS_IT_IS = 0, TRANSPOSED = 1 };
enum DescriptorAttribute : int { TRANSPOSE_A = 3, TRANSPOSE_B = 4 };
enum PreferenceAttribute : int { WORKSPACE_BYTES = 1, ALIGNMENT_A = 5, ALIGNMENT_B = 6, ALIGNMENT_C = 7, ALIGNMENT_D = 8 };
constexpr int COMPUTE_F32 = 68;
constexpr uint64_t OURS = 0x4c6f636b73746570, MOST_USED_ALIGNMENT = 16, WORKSPACE_ALIGNMENT = 256;

// ---- What a program makes and has to give back ----

struct Library {
    int device;
};

struct Descriptor {
    int compute, scale, transpose_a = AS_IT_IS, transpose_b = AS_IT_IS;
};

struct Layout {
    int element;
    uint64_t rows, columns;
    int64_t stride;
};

struct Preference {
    uint64_t workspace_bytes = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

static int libraries, made;

template <class T> static int make(void **made_one, T one) {
    Alone alone;
    *made_one = new T(one);
    made++;
    return OK;
}

template <class T> static int destroy(void *one) {
    Alone alone;
    delete (T *)one;
    made--;
    return OK;
}

CUDA int cublasLtCreate(void **library) {
    Alone alone;
    if (failure() != SUCCESS || current_device() < 0) return NOT_INITIALIZED;
    // It takes memory of the device.
    if (check_no_capture("cublasLtCreate") != SUCCESS) return NOT_INITIALIZED;
    *library = new Library{current_device()};
    libraries++;
    return OK;
}

CUDA int cublasLtDestroy(void *library) {
    Alone alone;
    check_no_capture("cublasLtDestroy");
    delete (Library *)library;
    if (--libraries == 0 && made != 0) report("cublasLtDestroy leaves %d descriptors that nobody destroyed", made);
    return OK;
}

CUDA int cublasLtMatmulDescCreate(void **descriptor, int compute, int scale) {
    return make(descriptor, Descriptor{compute, scale});
}

CUDA int cublasLtMatmulDescDestroy(void *descriptor) { return destroy<Descriptor>(descriptor); }

CUDA int cublasLtMatmulDescSetAttribute(void *handle, int attribute, const void *value, size_t bytes) {
    if (bytes != sizeof(int)) return BAD_VALUE;
    Descriptor *descriptor = (Descriptor *)handle;
    switch (attribute) {
    case TRANSPOSE_A: descriptor->transpose_a = *(const int *)value; return OK;
    case TRANSPOSE_B: descriptor->transpose_b = *(const int *)value; return OK;
    default: report("attribute %d of a product is not known", attribute); return BAD_VALUE;
    }
}

CUDA int cublasLtMatrixLayoutCreate(void **layout, int element, uint64_t rows, uint64_t columns, int64_t stride) {
    return make(layout, Layout{element, rows, columns, stride});
}

CUDA int cublasLtMatrixLayoutDestroy(void *layout) { return destroy<Layout>(layout); }

CUDA int cublasLtMatmulPreferenceCreate(void **preference) { return make(preference, Preference{}); }

CUDA int cublasLtMatmulPreferenceDestroy(void *preference) { return destroy<Preference>(preference); }

CUDA int cublasLtMatmulPreferenceSetAttribute(void *handle, int attribute, const void *value, size_t bytes) {
    Preference *preference = (Preference *)handle;
    switch (attribute) {
    case WORKSPACE_BYTES:
        if (bytes != sizeof(uint64_t)) return BAD_VALUE;
        preference->workspace_bytes = *(const uint64_t *)value;
        return OK;
    case ALIGNMENT_A:
    case ALIGNMENT_B:
    case ALIGNMENT_C:
    case ALIGNMENT_D:
        if (bytes != sizeof(uint32_t)) return BAD_VALUE;
        preference->alignment[attribute - ALIGNMENT_A] = *(const uint32_t *)value;
        return OK;
    default: report("attribute %d of a preference is not known", attribute); return BAD_VALUE;
    }
}

// ---- Algorithms ----

// What is found for a product, and computes no other.
struct Algorithm {
    uint64_t ours, m, n, k, alignments, workspace_bytes;
    int64_t stride;
    int element;
    uint32_t begin_at;
};

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Algorithm) == 64 && sizeof(HeuristicResult) == 96);

struct Described {
    const Descriptor *product;
    const Layout *a, *b, *c, *d;

    uint64_t m() const { return a->columns; }
    uint64_t n() const { return b->columns; }
    uint64_t k() const { return a->rows; }

    int check() const {
        const bool is_known = product->transpose_a == TRANSPOSED && product->transpose_b == AS_IT_IS &&
                              product->compute == COMPUTE_F32 && product->scale == F32 && c->element == F32 &&
                              d->element == F32 && a->element == b->element &&
                              (a->element == F32 || a->element == F16 || a->element == BF16);
        if (!is_known) {
            report("cublasLtMatmul is called in a way that is not emulated");
            return NOT_SUPPORTED;
        }
        const auto is_wide = [](const Layout *of) { return of->stride >= 0 && (uint64_t)of->stride >= of->rows; };
        const bool is_one = b->rows == k() && c->rows == m() && d->rows == m() && c->columns == n() && d->columns == n() &&
                            c->stride == d->stride && a->stride == (int64_t)k() && b->stride == (int64_t)k();
        return m() && n() && k() && is_one && is_wide(d) ? OK : BAD_VALUE;
    }
};

// A word of all alignments that an algorithm counts on.
static uint64_t counted_on(const uint32_t *alignment) {
    uint64_t all = 0;
    for (int at = 0; at < 4; at++) all |= std::min<uint64_t>(alignment[at], MOST_USED_ALIGNMENT) << (8 * at);
    return all;
}

CUDA int cublasLtMatmulAlgoGetHeuristic(void *, void *product, void *a, void *b, void *c, void *d, void *wish, int most,
                                        HeuristicResult *results, int *count) {
    Alone alone;
    const Described of{(Descriptor *)product, (Layout *)a, (Layout *)b, (Layout *)c, (Layout *)d};
    *count = 0;
    if (const int status = of.check()) return status;
    const Preference &preference = *(Preference *)wish;
    const uint32_t element_bytes = of.a->element == F32 ? 4 : 2;
    const uint32_t *alignment = preference.alignment;
    if (alignment[0] < element_bytes || alignment[1] < element_bytes || alignment[2] < 4 || alignment[3] < 4)
        return NOT_SUPPORTED;
    if (most < 1) return BAD_VALUE;
    // Where there is room, sums of the first half wait in the workspace.
    const uint64_t waiting = of.m() * of.n() * sizeof(float);
    const uint64_t workspace_bytes = of.k() > 1 && waiting <= preference.workspace_bytes ? waiting : 0;
    results[0] = HeuristicResult{};
    results[0].algorithm = {OURS, of.m(), of.n(), of.k(), counted_on(alignment), workspace_bytes, of.d->stride, of.a->element,
                            (uint32_t)(of.n() % 16)};
    results[0].workspace_bytes = workspace_bytes;
    *count = 1;
    return OK;
}

// ---- Products ----

static float half_precision(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
    const uint32_t wide = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static float brain_float(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static std::vector<float> row_of(DevicePointer matrix, int element, size_t first, size_t count) {
    std::vector<float> values(count);
    if (element == F32) {
        memcpy(values.data(), (const float *)matrix + first, count * sizeof(float));
        return values;
    }
    const uint16_t *bits = (const uint16_t *)matrix + first;
    for (size_t at = 0; at < count; at++) values[at] = element == F16 ? half_precision(bits[at]) : brain_float(bits[at]);
    return values;
}

static float dot(const float *a, const float *b, size_t count, size_t begin_at) {
    float sums[16] = {};
    for (size_t at = 0; at < count; at++) sums[(at + begin_at) % 16] += a[at] * b[at];
    float sum = 0;
    for (float part : sums) sum += part;
    return sum;
}

struct Product {
    Algorithm by;
    DevicePointer a, b, d, workspace;

    bool check_all() const {
        const size_t size = by.element == F32 ? sizeof(float) : sizeof(uint16_t);
        const size_t of_d = ((size_t)(by.n - 1) * (size_t)by.stride + by.m) * sizeof(float);
        return check("a product", a, by.m * by.k * size) && check("a product", b, by.n * by.k * size) &&
               check("a product", d, of_d) && check("a product's workspace", workspace, by.workspace_bytes);
    }

    void run() const {
        if (!check_all()) return;
        std::vector<std::vector<float>> columns;
        for (size_t column = 0; column < by.n; column++) columns.push_back(row_of(b, by.element, column * by.k, by.k));
        const size_t halfway = by.workspace_bytes ? by.k / 2 : 0;
        float *waiting = (float *)workspace;
        for (size_t row = 0; row < by.m; row++) {
            const std::vector<float> values = row_of(a, by.element, row * by.k, by.k);
            for (size_t column = 0; column < by.n; column++) {
                const float *other = columns[column].data();
                float sum = dot(values.data() + halfway, other + halfway, by.k - halfway, by.begin_at);
                if (halfway) waiting[column * by.m + row] = dot(values.data(), other, halfway, by.begin_at);
                ((float *)d)[column * (size_t)by.stride + row] = sum;
            }
        }
        for (size_t column = 0; halfway && column < by.n; column++)
            for (size_t row = 0; row < by.m; row++)
                ((float *)d)[column * (size_t)by.stride + row] += waiting[column * by.m + row];
    }
};

static int check_call(const Library *library, const Described &of, const Algorithm *by, const DevicePointer *places) {
    if (const int status = of.check()) return status;
    if (library->device != current_device()) {
        report("cublasLtMatmul with the library of device %d, and device %d is the current one", library->device,
               current_device());
        return NOT_INITIALIZED;
    }
    if (!by || by->ours != OURS || by->m != of.m() || by->n != of.n() || by->k != of.k() || by->element != of.a->element ||
        by->stride != of.d->stride) {
        report("cublasLtMatmul is given an algorithm that was found for another product");
        return NOT_SUPPORTED;
    }
    for (int at = 0; at < 4; at++) {
        const uint64_t alignment = by->alignments >> (8 * at) & 255;
        if (places[at] % alignment == 0) continue;
        report("cublasLtMatmul is given %#lx, and its algorithm counts on an alignment of %lu", places[at], alignment);
        return NOT_SUPPORTED;
    }
    return OK;
}

// Kernels of a product are loaded when it is computed for the first time, which a capture does not allow.
static bool loads(Stream *stream, const Algorithm &by) {
    static std::set<std::tuple<int, int, uint64_t, uint64_t, uint64_t, uint64_t>> loaded;
    const auto kernel = std::make_tuple(current_device(), by.element, by.m, by.n, by.k, by.alignments);
    if (loaded.count(kernel)) return true;
    if (stream->capture_status != CAPTURE_NONE) {
        break_capture(stream, "the first product of its kind");
        return false;
    }
    loaded.insert(kernel);
    return true;
}

CUDA int cublasLtMatmul(void *handle, void *product, const void *alpha, const void *a, void *of_a, const void *b, void *of_b,
                        const void *beta, const void *c, void *of_c, void *d, void *of_d, const Algorithm *by,
                        void *workspace, size_t workspace_bytes, void *stream) {
    Alone alone;
    if (failure() != SUCCESS) return EXECUTION_FAILED;
    const Described of{(Descriptor *)product, (Layout *)of_a, (Layout *)of_b, (Layout *)of_c, (Layout *)of_d};
    const DevicePointer places[] = {(DevicePointer)a, (DevicePointer)b, (DevicePointer)c, (DevicePointer)d};
    if (const int status = check_call((const Library *)handle, of, by, places)) return status;
    if (*(const float *)alpha != 1 || *(const float *)beta != 0 || c != d) {
        report("cublasLtMatmul is called in a way that is not emulated");
        return NOT_SUPPORTED;
    }
    if (workspace_bytes < by->workspace_bytes || (DevicePointer)workspace % WORKSPACE_ALIGNMENT != 0) {
        report("cublasLtMatmul is given a workspace of %zu bytes at %p, and its algorithm needs %lu", workspace_bytes,
               workspace, by->workspace_bytes);
        return BAD_VALUE;
    }
    Stream *on = stream_of(stream);
    if (!loads(on, *by)) return EXECUTION_FAILED;
    const Product whole{*by, places[0], places[1], places[3], (DevicePointer)workspace};
    return submit(on, {"a product", [whole] { whole.run(); }}) == SUCCESS ? OK : EXECUTION_FAILED;
}
