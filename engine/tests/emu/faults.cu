// What kernels must not do, a kernel each, and what they may: names begin with `wrong_` or `right_`.

// Every thread stores, and loads what another has stored, with something in between.
#define EXCHANGE(name, threads, other, between)  \
    KERNEL(threads, 1) name(float* out) {        \
        __shared__ float held[threads];          \
        held[threadIdx.x] = 0.0f;                \
        __syncthreads();                         \
        held[threadIdx.x] = 1.0f;                \
        between;                                 \
        out[threadIdx.x] = held[other];          \
    }

EXCHANGE(wrong_shared, 64, 63 - threadIdx.x, )
EXCHANGE(right_shared, 64, 63 - threadIdx.x, __syncthreads())
EXCHANGE(wrong_lanes, 32, threadIdx.x ^ 1, )
EXCHANGE(right_lanes, 32, threadIdx.x ^ 1, __syncwarp())
// A shuffle waits for all lanes, and orders nothing that they stored.
EXCHANGE(wrong_shuffle, 32, threadIdx.x ^ 1, __shfl_sync(FULL, 0, 0))
// A warp's own order says nothing to another warp.
EXCHANGE(wrong_warps, 64, threadIdx.x ^ 32, __syncwarp())

// What a barrier comes before, not after.
KERNEL(64, 1) wrong_reuse(float* out) {
    __shared__ float held[64];
    held[threadIdx.x] = 1.0f;
    __syncthreads();
    float other = held[63 - threadIdx.x];
    held[threadIdx.x] = other;
    out[threadIdx.x] = other;
}

// Many lanes of a warp load, then one of another warp stores.
KERNEL(64, 1) wrong_reuse_of_one(float* out) {
    __shared__ float held;
    if (threadIdx.x == 40) held = 1.0f;
    __syncthreads();
    if (threadIdx.x < 32) out[threadIdx.x] = held;
    if (threadIdx.x == 40) held = 2.0f;
}

// All lanes store the same: which of them is the last does not matter, and still nothing says so.
KERNEL(32, 1) wrong_equals(float* out) { out[0] = 1.0f; }

KERNEL(32, 1) wrong_blocks(float* out) {
    if (threadIdx.x == 0) out[0] += 1.0f;
}

KERNEL(32, 1) wrong_between_blocks(float* out) {
    if (threadIdx.x == 0) out[1 + blockIdx.x] = out[blockIdx.x];
}

KERNEL(32, 1) right_blocks(float* out) { out[blockIdx.x * 32 + threadIdx.x] += 1.0f; }

// The first block stores, so that the second finds something.
KERNEL(32, 1) wrong_stale(float* out) {
    __shared__ float held[32];
    if (blockIdx.x == 0) held[threadIdx.x] = 1.0f;
    out[blockIdx.x * 32 + threadIdx.x] = held[threadIdx.x];
}

KERNEL(32, 1) wrong_end(float* out) { out[threadIdx.x + 33] = 1.0f; }
KERNEL(32, 1) wrong_begin(float* out) { out[threadIdx.x] = out[(int)threadIdx.x - 1]; }

KERNEL(32, 1) wrong_vector(float* out) {
    if (threadIdx.x == 0) *(uint4*)(out + 1) = *(const uint4*)(out + 4);
}

KERNEL(32, 1) wrong_store(float* out, const float* in) {
    if (threadIdx.x == 0) ((float*)in)[0] = out[0];
}
