// Linear layers on few columns: decode, and prefill where there is no library.
//
// A warp multiplies 16-row tiles of weights by 8-column tiles of inputs on tensor cores; registers are filled straight
// from device memory, 16 bytes a lane: as both factors' k is permuted alike, no shared memory is needed. Warps of a block share k, and so do
// splits (grid y).

enum { W_BF16 = 0, W_Q8 = 1, W_Q4 = 2 };

// One lane's part of a chunk of k for its two rows (g, g + 8) of a tile: 64 bf16, or 128 quantised weights.
template <int WT>
struct Tile {
    uint4 low[WT == W_Q4 ? 1 : 2], high[WT == W_Q4 ? 1 : 2];
    uint2 low_scales, high_scales;
};

template <int WT>
DEVICE void load_row(uint4 (&to)[WT == W_Q4 ? 1 : 2], uint2& scales, const u8* w, const u16* ws, u32 row, u32 k, u32 chunk, u32 t) {
    if (WT == W_BF16) {
        const u8* at = w + ((u64)row * k + chunk * 64 + t * 8) * 2;
        to[0] = load_streamed(at);
        to[WT == W_Q4 ? 0 : 1] = chunk * 64 + 32 < k ? load_streamed(at + 64) : make_uint4(0, 0, 0, 0);
    } else {
        u32 kpad = div_up(k, 128) * 128;
        if (WT == W_Q4) {
            to[0] = load_streamed(w + ((u64)row * kpad + chunk * 128) / 2 + t * 16);
        } else {
            const u8* at = w + (u64)row * kpad + chunk * 128 + t * 16;
            to[0] = load_streamed(at);
            to[WT == W_Q4 ? 0 : 1] = load_streamed(at + 64);
        }
        scales = *(const uint2*)(ws + (u64)row * (kpad / 32) + chunk * 4);
    }
}

template <int WT, int NT>
struct Inputs {
    uint4 x[NT][2];
};

template <int WT, int NT>
DEVICE void load_inputs(Inputs<WT, NT>& to, const u8* x, u32 k, u32 n, u32 column, u32 chunk, u32 t) {
    u32 kpad = div_up(k, 128) * 128;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        u64 c = min_u(column + nt * 8, n - 1);
        if (WT == W_BF16) {
            const u8* at = x + (c * k + chunk * 64 + t * 8) * 2;
            to.x[nt][0] = *(const uint4*)at;
            to.x[nt][1] = chunk * 64 + 32 < k ? *(const uint4*)(at + 64) : make_uint4(0, 0, 0, 0);
        } else {
            const u8* at = x + c * kpad + chunk * 128 + t * 16;
            to.x[nt][0] = *(const uint4*)at;
            to.x[nt][1] = *(const uint4*)(at + 64);
        }
    }
}

DEVICE u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEVICE float scale_of(const uint2& scales, int block) {
    u32 pair = block < 2 ? scales.x : scales.y;
    return from_f16((u16)(block & 1 ? pair >> 16 : pair));
}

template <int WT, int NT>
DEVICE void multiply(float (&acc)[NT][4], const Tile<WT>& tile, const Inputs<WT, NT>& in, const float* xd, const u32 (&places)[NT][2]) {
    if constexpr (WT == W_BF16) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 &a = tile.low[WT == W_Q4 ? 0 : half], &b = tile.high[WT == W_Q4 ? 0 : half];
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                const uint4& x = in.x[nt][half];
                mma_16<false>(acc[nt], a.x, b.x, a.y, b.y, x.x, x.y);
                mma_16<false>(acc[nt], a.z, b.z, a.w, b.w, x.z, x.w);
            }
        }
    } else {
#pragma unroll
    for (int block = 0; block < 4; block++) {
        u32 a0, a1, a2, a3;
        if (WT == W_Q4) {
            u32 a = word(tile.low[0], block), b = word(tile.high[0], block);
            a0 = minus_8(a & 0x0f0f0f0fu), a2 = minus_8((a >> 4) & 0x0f0f0f0fu);
            a1 = minus_8(b & 0x0f0f0f0fu), a3 = minus_8((b >> 4) & 0x0f0f0f0fu);
        } else {
            const uint4 &a = tile.low[WT == W_Q4 ? 0 : block / 2], &b = tile.high[WT == W_Q4 ? 0 : block / 2];
            a0 = word(a, block % 2 * 2), a2 = word(a, block % 2 * 2 + 1);
            a1 = word(b, block % 2 * 2), a3 = word(b, block % 2 * 2 + 1);
        }
        float d0 = scale_of(tile.low_scales, block), d1 = scale_of(tile.high_scales, block);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            const uint4& x = in.x[nt][block / 2];
            int c[4];
            mma_int8(c, a0, a1, a2, a3, word(x, block % 2 * 2), word(x, block % 2 * 2 + 1));
            float x0 = xd[places[nt][0] + block], x1 = xd[places[nt][1] + block];
            acc[nt][0] += d0 * x0 * (float)c[0];
            acc[nt][1] += d0 * x1 * (float)c[1];
            acc[nt][2] += d1 * x0 * (float)c[2];
            acc[nt][3] += d1 * x1 * (float)c[3];
        }
    }
    }
}

template <int WT, int MT>
DEVICE void load_tiles(Tile<WT> (&tiles)[MT], const u8* w, const u16* ws, const u32 (&rows)[MT][2], u32 k, u32 chunk, u32 t) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
        load_row<WT>(tiles[mt].low, tiles[mt].low_scales, w, ws, rows[mt][0], k, chunk, t);
        load_row<WT>(tiles[mt].high, tiles[mt].high_scales, w, ws, rows[mt][1], k, chunk, t);
    }
}

// rows: outputs; with GLU the gate's, and the up rows follow them in w.
template <int WT, int NT, int MT, bool GLU>
DEVICE void linear(const u8* w, const u16* ws, const u8* x, const float* xd, float* y32, u16* y16, u32 rows, u32 k, u32 n) {
    __shared__ float partial[4 * MT * NT * 4 * 32];
    const int TILES = GLU ? MT / 2 : MT;
    u32 lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    u32 base = blockIdx.x * TILES * 16, first_column = blockIdx.z * NT * 8;
    u32 row_of[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
        u32 offset = GLU && mt >= TILES ? rows : 0;
        row_of[mt][0] = min_u(base + mt % TILES * 16 + g, rows - 1) + offset;
        row_of[mt][1] = min_u(base + mt % TILES * 16 + g + 8, rows - 1) + offset;
    }
    float acc[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) acc[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;

    u32 chunks = div_up(k, WT == W_BF16 ? 64 : 128), per = div_up(chunks, gridDim.y);
    u32 chunk = blockIdx.y * per + warp, end = min_u(chunks, (blockIdx.y + 1) * per);
    // The next chunk's weights are asked for before this chunk's are used, where registers allow.
    const bool AHEAD = WT != W_Q8, INPUTS_AHEAD = WT == W_BF16 && NT == 1;
    Tile<WT> tiles[MT], tiles_next[AHEAD ? MT : 1];
    Inputs<WT, NT> in, in_next;
    if (chunk < end) load_tiles<WT, MT>(tiles, w, ws, row_of, k, chunk, t);
    start_next();
    wait_for_inputs();
    if (INPUTS_AHEAD && chunk < end) load_inputs<WT, NT>(in, x, k, n, first_column + g, chunk, t);
    u32 places[NT][2];
#pragma unroll
    for (int i = 0; i < NT * 2; i++)
        places[i / 2][i % 2] = min_u(first_column + i / 2 * 8 + 2 * t + i % 2, n - 1) * (div_up(k, 128) * 4);
    while (chunk < end) {
        u32 next = chunk + warps;
        if (!INPUTS_AHEAD) load_inputs<WT, NT>(in, x, k, n, first_column + g, chunk, t);
        if constexpr (AHEAD) {
            if (next < end) load_tiles<WT, MT>(tiles_next, w, ws, row_of, k, next, t);
        }
        if (INPUTS_AHEAD && next < end) load_inputs<WT, NT>(in_next, x, k, n, first_column + g, next, t);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) multiply<WT, NT>(acc[mt], tiles[mt], in, xd + chunk * 4, places);
        if constexpr (AHEAD) {
#pragma unroll
            for (int mt = 0; mt < MT; mt++) tiles[mt] = tiles_next[mt];
        } else {
            if (next < end) load_tiles<WT, MT>(tiles, w, ws, row_of, k, next, t);
        }
        if (INPUTS_AHEAD) in = in_next;
        chunk = next;
    }

    // The warps' sums, halved from above: the order depends on the number of warps alone.
    for (u32 live = warps; live > 1;) {
        u32 half = (live + 1) / 2;
        if (warp >= half && warp < live) {
#pragma unroll
            for (int i = 0; i < MT * NT * 4; i++)
                partial[((warp - half) * MT * NT * 4 + i) * 32 + lane] = acc[i / (NT * 4)][i / 4 % NT][i % 4];
        }
        __syncthreads();
        if (warp < live - half) {
#pragma unroll
            for (int i = 0; i < MT * NT * 4; i++)
                acc[i / (NT * 4)][i / 4 % NT][i % 4] += partial[(warp * MT * NT * 4 + i) * 32 + lane];
        }
        __syncthreads();
        live = half;
    }
    if (warp != 0) return;
#pragma unroll
    for (int mt = 0; mt < TILES; mt++) {
#pragma unroll
        for (int i = 0; i < NT * 4; i++) {
            u32 row = base + mt * 16 + g + (i % 4 >= 2 ? 8 : 0), column = first_column + i / 4 * 8 + 2 * t + i % 2;
            if (row >= rows || column >= n) continue;
            float v = acc[mt][i / 4][i % 4];
            if (GLU) {
                v = gelu_tanh(v) * acc[(mt + TILES) % MT][i / 4][i % 4];
                if (y32) y32[(u64)column * rows + row] = v;
                if (y16) y16[(u64)column * rows + row] = to_bf16(v);
            } else {
                y32[((u64)blockIdx.y * n + column) * rows + row] = v;
            }
        }
    }
}

#define LINEAR(type, name, columns, NT, MT, blocks)                                                                        \
    KERNEL(256, blocks) lin_##name##_##columns(const u8* w, const u16* ws, const u8* x, const float* xd, float* y, u32 rows, u32 k, u32 n) { \
        linear<type, NT, MT, false>(w, ws, x, xd, y, nullptr, rows, k, n);                                                 \
    }                                                                                                                      \
    KERNEL(256, blocks) glu_##name##_##columns(const u8* w, const u16* ws, const u8* x, const float* xd, float* y32, u16* y16, u32 ffn,      \
                                               u32 k, u32 n) {                                                             \
        linear<type, NT, MT, true>(w, ws, x, xd, y32, y16, ffn, k, n);                                                     \
    }

LINEAR(W_BF16, bf16, 8, 1, 2, 2)
LINEAR(W_BF16, bf16, 16, 2, 2, 2)
LINEAR(W_BF16, bf16, 32, 4, 4, 1)
LINEAR(W_Q8, q8_0, 8, 1, 2, 2)
LINEAR(W_Q8, q8_0, 16, 2, 2, 1)
LINEAR(W_Q8, q8_0, 32, 4, 2, 1)
LINEAR(W_Q4, q4_0, 8, 1, 2, 2)
LINEAR(W_Q4, q4_0, 16, 2, 2, 1)
LINEAR(W_Q4, q4_0, 32, 4, 2, 1)

// Plain f32 arithmetic, a warp a row and eight columns: for comparison with references.
template <bool BF16>
DEVICE void plain(const void* w, const float* x, float* y, u32 rows, u32 k, u32 n) {
    wait_for_inputs();
    u32 lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5), column = blockIdx.y * 8;
    if (row >= rows) return;
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (u32 i = lane; i < k; i += 32) {
        u64 at = (u64)row * k + i;
        float v = BF16 ? from_bf16(((const u16*)w)[at]) : ((const float*)w)[at];
#pragma unroll
        for (u32 c = 0; c < 8; c++) sum[c] += v * x[(u64)min_u(column + c, n - 1) * k + i];
    }
#pragma unroll
    for (u32 c = 0; c < 8; c++) {
        float total = warp_sum(sum[c]);
        if (lane == 0 && column + c < n) y[(u64)(column + c) * rows + row] = total;
    }
}

KERNEL(128, 4) lin_plain_f32(const void* w, const float* x, float* y, u32 rows, u32 k, u32 n) { plain<false>(w, x, y, rows, k, n); }
KERNEL(128, 4) lin_plain_bf16(const void* w, const float* x, float* y, u32 rows, u32 k, u32 n) { plain<true>(w, x, y, rows, k, n); }

KERNEL(256, 4) glu_plain(const float* gate_up, float* h32, u16* h16, i8* hq, float* hd, u32 kpad, u32 ffn) {
    start_next();
    wait_for_inputs();
    ActOut out = {h32, h16, hq, hd, kpad};
    u32 i = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    if (i >= ffn) return;
    const float* at = gate_up + (u64)row * 2 * ffn + i;
    write_act(out, row, ffn, i, gelu_tanh(at[0]) * at[ffn]);
}

KERNEL(256, 4) act_quant(const float* src, i8* hq, float* hd, u32 kpad, u32 k) {
    start_next();
    wait_for_inputs();
    ActOut out = {nullptr, nullptr, hq, hd, kpad};
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i < k) write_act(out, blockIdx.y, k, i, src[(u64)blockIdx.y * k + i]);
}

// ---- weights: repacking, widening, making them up ----

DEVICE u16 two_bytes(const u8* at) { return (u16)(at[0] | at[1] << 8); }

KERNEL(64, 8) repack_q4_0(const u8* blocks, u8* quants, u16* scales, u32 rows, u32 k) {
    wait_for_inputs();
    u32 block = blockIdx.x * 64 + threadIdx.x, per_row = div_up(k, 128) * 4, row = blockIdx.y;
    if (block >= per_row) return;
    bool real = block < k / 32;
    const u8* from = blocks + ((u64)row * (k / 32) + block) * 18;
    scales[(u64)row * per_row + block] = real ? two_bytes(from) : 0;
    u8* to = quants + ((u64)row * per_row + (block & ~3u)) * 16 + (block & 3) * 4;
    for (u32 i = 0; i < 16; i++) to[i / 4 * 16 + i % 4] = real ? from[2 + i] : 0;
}

KERNEL(64, 8) repack_q8_0(const u8* blocks, u8* quants, u16* scales, u32 rows, u32 k) {
    wait_for_inputs();
    u32 block = blockIdx.x * 64 + threadIdx.x, per_row = div_up(k, 128) * 4, row = blockIdx.y;
    if (block >= per_row) return;
    bool real = block < k / 32;
    const u8* from = blocks + ((u64)row * (k / 32) + block) * 34;
    scales[(u64)row * per_row + block] = real ? two_bytes(from) : 0;
    u8* to = quants + (u64)row * per_row * 32;
    for (u32 i = 0; i < 32; i++) to[quant_place(block * 32 + i)] = real ? from[2 + i] : 0;
}

// One weight of a repacked matrix.
template <bool Q4>
DEVICE float repacked(const u8* quants, const u16* scales, u64 row, u32 i, u32 kpad) {
    float d = from_f16(scales[row * (kpad / 32) + i / 32]);
    if (!Q4) return d * (float)(i8)quants[row * kpad + quant_place(i)];
    u32 at = i % 16;
    u8 byte = quants[(row * kpad + (i & ~127u)) / 2 + at / 4 * 16 + (i / 32 % 4) * 4 + at % 4];
    return d * (float)((int)(i % 32 < 16 ? byte & 15 : byte >> 4) - 8);
}

template <bool Q4>
DEVICE void dequantise(const u8* quants, const u16* scales, u16* out, u32 k) {
    wait_for_inputs();
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i < k) out[(u64)blockIdx.y * k + i] = to_bf16(repacked<Q4>(quants, scales, blockIdx.y, i, div_up(k, 128) * 128));
}

KERNEL(256, 4) dequant_q4_0(const u8* quants, const u16* scales, u16* out, u32 rows, u32 k) { dequantise<true>(quants, scales, out, k); }
KERNEL(256, 4) dequant_q8_0(const u8* quants, const u16* scales, u16* out, u32 rows, u32 k) { dequantise<false>(quants, scales, out, k); }

// The output function of SplitMix64 (Steele, Lea, Flood 2014), as in synthetic.rs.
DEVICE float unit(u64 key, u64 index) {
    u64 mixed = key + (index + 1) * 0x9E3779B97F4A7C15ull;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
    mixed ^= mixed >> 31;
    return __fmul_rn((float)(u32)(mixed >> 40) / 8388608.0f - 1.0f, 1.7320508f);
}

KERNEL(256, 4) synth_bf16(u16* out, u64 count, u64 key, float scale) {
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < count; i += (u64)gridDim.x * 256)
        out[i] = to_bf16(__fmul_rn(unit(key, i), scale));
}

KERNEL(256, 4) synth_norm(float* out, u64 count, u64 key) {
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < count; i += (u64)gridDim.x * 256)
        out[i] = __fadd_rn(1.0f, __fmul_rn(0.3f, unit(key, i)));
}
