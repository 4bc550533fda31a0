// A cuBLASLt without a device: products as the backend asks for them, in plain loops, over the memory of cuda.cpp. It takes
// what the real one documents and nothing else: column-major matrices of bf16 into one of f32, sums in f32.
#include <cstdint>
#include <cstdio>
#include <cstring>

typedef int Status;
static const Status OK = 0, INVALID = 7, NOT_SUPPORTED = 15;
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, TRANSA = 3, MAX_WORKSPACE = 1 };
static const uint64_t CHOSEN = 0x6b766c6162;

struct Product { int compute, scale, transposed; };
struct Layout { int type; uint64_t rows, cols; int64_t stride; };
struct Wish { uint64_t workspace; };
struct Algorithm { uint64_t data[8]; };
struct Found { Algorithm algorithm; size_t workspace; Status state; float waves; int reserved[4]; };

extern "C" {
int imitated_queue(int (*)(const uint64_t*), const uint64_t*, size_t, void*);
int imitated_inside(uint64_t, size_t);
}

static float bf16(uint64_t at) {
    uint32_t bits = (uint32_t)*(uint16_t*)at << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

// A, B, D, rows of D, columns of D, what is summed over, and the strides of the three.
static int multiply(const uint64_t* words) {
    uint64_t a = words[0], b = words[1], d = words[2], rows = words[3], cols = words[4], inner = words[5];
    for (uint64_t j = 0; j < cols; j++)
        for (uint64_t i = 0; i < rows; i++) {
            float sum = 0;
            for (uint64_t k = 0; k < inner; k++) sum += bf16(a + (i * words[6] + k) * 2) * bf16(b + (j * words[7] + k) * 2);
            *(float*)(d + (j * words[8] + i) * 4) = sum;
        }
    return 0;
}

// Whether a layout is a whole matrix of a type.
static bool fits(const Layout& m, int type, uint64_t rows, uint64_t cols) {
    return m.type == type && m.rows == rows && m.cols == cols && m.stride >= (int64_t)rows;
}
// All columns of a matrix lie in one piece of memory.
static bool lies(uint64_t at, const Layout& m, size_t bytes) { return imitated_inside(at, ((m.cols - 1) * m.stride + m.rows) * bytes); }

static Status agree(const Product& p, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    uint64_t rows = d.rows, cols = d.cols, inner = b.rows;
    bool known = p.compute == COMPUTE_32F && p.scale == R_32F && p.transposed == 1;
    bool shapes = fits(a, R_16BF, inner, rows) && fits(b, R_16BF, inner, cols) && fits(c, R_32F, rows, cols) && fits(d, R_32F, rows, cols);
    return !known ? NOT_SUPPORTED : shapes && rows && cols && inner ? OK : INVALID;
}

extern "C" {
Status cublasLtCreate(void** handle) { return *handle = new int(0), OK; }
Status cublasLtDestroy(void* handle) { return delete (int*)handle, OK; }
Status cublasLtMatmulDescCreate(Product** product, int compute, int scale) { return *product = new Product{compute, scale, 0}, OK; }
Status cublasLtMatmulDescDestroy(Product* product) { return delete product, OK; }
Status cublasLtMatmulDescSetAttribute(Product* product, int what, const void* value, size_t bytes) {
    if (what != TRANSA || bytes != 4) return INVALID;
    return memcpy(&product->transposed, value, 4), OK;
}
Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    return *layout = new Layout{type, rows, cols, stride}, OK;
}
Status cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, OK; }
Status cublasLtMatmulPreferenceCreate(Wish** wish) { return *wish = new Wish{0}, OK; }
Status cublasLtMatmulPreferenceDestroy(Wish* wish) { return delete wish, OK; }
Status cublasLtMatmulPreferenceSetAttribute(Wish* wish, int what, const void* value, size_t bytes) {
    if (what != MAX_WORKSPACE || bytes != 8) return INVALID;
    return memcpy(&wish->workspace, value, 8), OK;
}
Status cublasLtMatmulAlgoGetHeuristic(void*, Product* product, Layout* a, Layout* b, Layout* c, Layout* d, Wish* wish, int wanted, Found* found,
                                      int* count) {
    *count = 0;
    if (wanted < 1) return INVALID;
    if (Status status = agree(*product, *a, *b, *c, *d)) return status;
    *found = {{{CHOSEN}}, wish->workspace, OK, 1, {0}};
    return *count = 1, OK;
}
Status cublasLtMatmul(void*, Product* product, const float* alpha, uint64_t a, Layout* al, uint64_t b, Layout* bl, const float* beta, uint64_t c,
                      Layout* cl, uint64_t d, Layout* dl, const Algorithm* algorithm, uint64_t workspace, size_t bytes, void* stream) {
    if (Status status = agree(*product, *al, *bl, *cl, *dl)) return status;
    bool known = *alpha == 1 && *beta == 0 && c == d && algorithm->data[0] == CHOSEN;
    if (!known || !lies(a, *al, 2) || !lies(b, *bl, 2) || !lies(d, *dl, 4) || !imitated_inside(workspace, bytes)) return INVALID;
    uint64_t words[] = {a, b, d, dl->rows, dl->cols, bl->rows, (uint64_t)al->stride, (uint64_t)bl->stride, (uint64_t)dl->stride};
    return imitated_queue(multiply, words, 9, stream) ? INVALID : OK;
}
}
