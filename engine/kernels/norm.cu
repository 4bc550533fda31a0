// Embedding, residual and norms: one block a row, the row in registers.

// Numbers a thread holds: rows of up to 8 * 1024.
#define HELD 8

// The row's input of a linear layer: rms norm of v, block-wide.
DEVICE void norm_and_write(const float (&v)[HELD], const float* weight, float eps, const ActOut& out, u32 row, u32 d, float* scratch) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < HELD; j++) squares += v[j] * v[j];
    float scale = rsqrtf(block_sum(squares, scratch) / (float)d + eps);
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        u32 i = threadIdx.x + j * blockDim.x;
        if (i < d) write_act(out, row, d, i, v[j] * scale * weight[i]);
    }
}

enum { E_F32 = 0, E_BF16 = 1, E_Q8 = 2, E_Q4 = 3 };

template <int ET>
DEVICE void embed(const void* e, const u16* es, const u32* tokens, float scale, const float* norm, float eps, float* x, const ActOut& out, u32 d) {
    __shared__ float scratch[32];
    start_next();
    wait_for_inputs();
    u64 token = tokens[blockIdx.x];
    float v[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        u32 i = threadIdx.x + j * blockDim.x;
        v[j] = 0.0f;
        if (i >= d) continue;
        float number = ET == E_F32    ? ((const float*)e)[token * d + i]
                       : ET == E_BF16 ? from_bf16(((const u16*)e)[token * d + i])
                                      : repacked<ET == E_Q4>((const u8*)e, es, token, i, div_up(d, 128) * 128);
        v[j] = number * scale;
        x[(u64)blockIdx.x * d + i] = v[j];
    }
    norm_and_write(v, norm, eps, out, blockIdx.x, d, scratch);
}

#define EMBED(type, name)                                                                                                        \
    KERNEL(1024, 1) embed_##name(const void* e, const u16* es, const u32* tokens, float scale, const float* norm, float eps, float* x, float* h32, \
                                 u16* h16, i8* hq, float* hd, u32 kpad, u32 d) {                                                 \
        ActOut out = {h32, h16, hq, hd, kpad};                                                                                   \
        embed<type>(e, es, tokens, scale, norm, eps, x, out, d);                                                                 \
    }

EMBED(E_F32, f32)
EMBED(E_BF16, bf16)
EMBED(E_Q8, q8_0)
EMBED(E_Q4, q4_0)

// x += rms(sum of y's splits, post); out = rms(x, next).
KERNEL(1024, 1) add_norm(const float* y, u32 splits, const float* post, const float* next, float eps, float* x, float* h32, u16* h16, i8* hq, float* hd,
                         u32 kpad, u32 d) {
    __shared__ float scratch[32];
    start_next();
    wait_for_inputs();
    ActOut out = {h32, h16, hq, hd, kpad};
    u64 row = (u64)blockIdx.x * d, stride = (u64)gridDim.x * d;
    float v[HELD], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        u32 i = threadIdx.x + j * blockDim.x;
        v[j] = 0.0f;
        if (i < d)
            for (u32 s = 0; s < splits; s++) v[j] += y[s * stride + row + i];
        squares += v[j] * v[j];
    }
    float scale = rsqrtf(block_sum(squares, scratch) / (float)d + eps);
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        u32 i = threadIdx.x + j * blockDim.x;
        if (i >= d) continue;
        v[j] = x[row + i] + v[j] * scale * post[i];
        x[row + i] = v[j];
    }
    norm_and_write(v, next, eps, out, blockIdx.x, d, scratch);
}

KERNEL(1024, 1) norm_rows(const float* x, const u32* rows, const float* norm, float eps, float* h32, u16* h16, i8* hq, float* hd, u32 kpad, u32 d) {
    __shared__ float scratch[32];
    start_next();
    wait_for_inputs();
    ActOut out = {h32, h16, hq, hd, kpad};
    u64 row = (u64)rows[blockIdx.x] * d;
    float v[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        u32 i = threadIdx.x + j * blockDim.x;
        v[j] = i < d ? x[row + i] : 0.0f;
    }
    norm_and_write(v, norm, eps, out, blockIdx.x, d, scratch);
}
