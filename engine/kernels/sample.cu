// The most likely token; the lowest index wins a tie.

DEVICE bool is_better(float value, u32 index, float than, u32 at) { return value > than || (value == than && index < at); }

// The best of a block, in every thread; warps whole, at most 8.
DEVICE void block_best(float& value, u32& index) {
    __shared__ float values[8];
    __shared__ u32 indices[8];
#pragma unroll
    for (u32 step = 16; step; step >>= 1) {
        float other = __shfl_xor_sync(FULL, value, step);
        u32 at = __shfl_xor_sync(FULL, index, step);
        if (is_better(other, at, value, index)) value = other, index = at;
    }
    if ((threadIdx.x & 31) == 0) values[threadIdx.x >> 5] = value, indices[threadIdx.x >> 5] = index;
    __syncthreads();
    for (u32 w = 0; w < blockDim.x / 32; w++)
        if (is_better(values[w], indices[w], value, index)) value = values[w], index = indices[w];
}

// part: (bits of the value, index) of each block's stripe.
KERNEL(256, 4) argmax_part(const float* logits, u32 vocab, uint2* part) {
    start_next();
    wait_for_inputs();
    u32 per = div_up(vocab, gridDim.x), end = min_u(vocab, (blockIdx.x + 1) * per);
    float value = -INFINITY_F;
    u32 index = NONE;
    for (u32 i = blockIdx.x * per + threadIdx.x; i < end; i += 256) {
        float v = logits[(u64)blockIdx.y * vocab + i];
        if (is_better(v, i, value, index)) value = v, index = i;
    }
    block_best(value, index);
    if (threadIdx.x == 0) part[blockIdx.y * gridDim.x + blockIdx.x] = make_uint2(__float_as_uint(value), index);
}

KERNEL(128, 8) argmax_final(const uint2* part, u32 blocks, u32* out) {
    start_next();
    wait_for_inputs();
    float value = -INFINITY_F;
    u32 index = NONE;
    for (u32 i = threadIdx.x; i < blocks; i += 128) {
        uint2 p = part[blockIdx.x * blocks + i];
        if (is_better(__uint_as_float(p.x), p.y, value, index)) value = __uint_as_float(p.x), index = p.y;
    }
    block_best(value, index);
    if (threadIdx.x == 0) out[blockIdx.x] = index == NONE ? 0 : index;
}
