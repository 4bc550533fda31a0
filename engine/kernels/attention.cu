// Attention over cells: split decode with its merge, prefill, the scan of a physical range, and a plain one.
//
// A warp takes 16 or 32 tokens at a time. K goes from device memory straight into the B fragment of Q K^T, V into fragments of keys x dims, whose
// pairs of neighbouring tokens are made by byte permutation. G query heads of a KV head are rows of one tile, so K and V are read once for all of them.

struct Sequence {
    u32 table, shift, first, len, row, rows, token, unused;
};

// The cell of the j-th token that has one.
DEVICE u32 cell_of(const u32* table, u32 shift, u32 j) {
    return shift >= 31 ? table[0] + j : table[j >> shift] + (j & ((1u << shift) - 1));
}

// First token that token i sees.
DEVICE u32 first_seen(const Sequence& s, u32 i, u32 window) {
    u32 from = i >= window ? i - window + 1 : 0;
    return max_u(from, s.first);
}

template <int KT>
DEVICE u32 pack(float low, float high) {
    return KT == KV_BF16 ? pack_bf16(low, high) : pack_f16(low, high);
}

// Four int8 biased by `bias` in unsigned bytes, times a scale: two pairs of f16.
DEVICE uint2 widen(u32 bytes, u32 bias_f16x2, u32 scale_f16x2) {
    u32 low = sub_f16x2(__byte_perm(bytes, 0x64646464u, 0x4140), bias_f16x2);
    u32 high = sub_f16x2(__byte_perm(bytes, 0x64646464u, 0x4342), bias_f16x2);
    return make_uint2(mul_f16x2(low, scale_f16x2), mul_f16x2(high, scale_f16x2));
}

#define BIAS_Q8 0x64806480u // 1024 + 128
#define BIAS_Q4 0x64086408u // 1024 + 8

DEVICE uint2 widen_q8(u32 bytes, u32 scale) { return widen(bytes ^ 0x80808080u, BIAS_Q8, scale); }
DEVICE uint2 widen_q4(u32 nibbles, u32 scale) { return widen(nibbles & 0x0f0f0f0fu, BIAS_Q4, scale); }

// Where a head's numbers and scales begin in a record.
struct Place {
    u32 numbers, scales;
};

template <int KT, int HD>
DEVICE Place place_of(u32 KV, u32 head) {
    u32 bytes = KT == KV_BF16 ? HD * 2 : KT == KV_Q8 ? HD : HD / 2;
    Place at = {head * bytes, KV * bytes + head * (HD / 32) * 2};
    return at;
}

// The i-th of the 8 dims of lane t in a step of 32 dims.
template <int KT>
DEVICE u32 k_dim(u32 t, u32 i) {
    return KT == KV_Q4 && i >= 4 ? 16 + 4 * t + i - 4 : KT == KV_Q4 ? 4 * t + i : 8 * t + i;
}

// Lane t's 8 numbers of step s of a key.
template <int KT>
DEVICE uint4 load_k(const u8* record, const Place& at, u32 s, u32 t) {
    if (KT == KV_BF16) return *(const uint4*)(record + at.numbers + s * 64 + t * 16);
    u32 scale = *(const u16*)(record + at.scales + s * 2);
    scale |= scale << 16;
    uint2 low, high;
    if (KT == KV_Q8) {
        uint2 raw = *(const uint2*)(record + at.numbers + s * 32 + t * 8);
        low = widen_q8(raw.x, scale), high = widen_q8(raw.y, scale);
    } else {
        u32 raw = *(const u32*)(record + at.numbers + s * 16 + t * 4);
        low = widen_q4(raw, scale), high = widen_q4(raw >> 4, scale);
    }
    return make_uint4(low.x, low.y, high.x, high.y);
}

// Dims per lane and dims per chunk of V.
template <int HD>
struct VShape {
    static const int LANE = HD >= 64 ? 8 : 4, CHUNK = LANE * 8, CHUNKS = HD / CHUNK;
};

// The j-th dim of lane row g in a chunk.
template <int KT, int HD>
DEVICE u32 v_dim(u32 g, u32 j) {
    if (KT != KV_Q4) return g * VShape<HD>::LANE + j;
    if (HD >= 64) return g / 4 * 32 + j / 4 * 16 + g % 4 * 4 + j % 4;
    return g / 4 * 16 + g % 4 * 4 + j;
}

// Lane g's numbers of chunk c of one token: LANE / 2 pairs of dims.
template <int KT, int HD>
DEVICE void load_v_row(u32 (&pairs)[VShape<HD>::LANE / 2], const u8* record, const Place& at, u32 c, u32 g) {
    const int LANE = VShape<HD>::LANE, CHUNK = VShape<HD>::CHUNK;
    if (KT == KV_BF16) {
        const u8* from = record + at.numbers + (c * CHUNK + g * LANE) * 2;
        if (LANE == 8) {
            uint4 raw = *(const uint4*)from;
            pairs[0] = raw.x, pairs[1] = raw.y, pairs[LANE / 2 - 2] = raw.z, pairs[LANE / 2 - 1] = raw.w;
        } else {
            uint2 raw = *(const uint2*)from;
            pairs[0] = raw.x, pairs[1] = raw.y;
        }
        return;
    }
    u32 block = KT == KV_Q8 ? (c * CHUNK + g * LANE) / 32 : HD >= 64 ? c * 2 + g / 4 : 0;
    u32 scale = *(const u16*)(record + at.scales + block * 2);
    scale |= scale << 16;
    if (KT == KV_Q8) {
        const u8* from = record + at.numbers + c * CHUNK + g * LANE;
#pragma unroll
        for (int i = 0; i < LANE / 4; i++) {
            uint2 wide = widen_q8(((const u32*)from)[i], scale);
            pairs[2 * i] = wide.x, pairs[2 * i + 1] = wide.y;
        }
    } else {
        u32 raw = *(const u32*)(record + at.numbers + block * 16 + g % 4 * 4);
        if (LANE == 4 && g >= 4) raw >>= 4;
        uint2 low = widen_q4(raw, scale);
        pairs[0] = low.x, pairs[1] = low.y;
        if (LANE == 8) {
            uint2 high = widen_q4(raw >> 4, scale);
            pairs[LANE / 2 - 2] = high.x, pairs[LANE / 2 - 1] = high.y;
        }
    }
}

// 16 tokens x one chunk: [dim of lane][tokens 2t, 2t+1 | 2t+8, 2t+9].
template <int KT, int HD>
DEVICE void load_v(u32 (&to)[VShape<HD>::LANE][2], const u8* const (&records)[4], const Place& at, u32 c, u32 g) {
    const int LANE = VShape<HD>::LANE;
    u32 rows[4][LANE / 2];
#pragma unroll
    for (int i = 0; i < 4; i++) load_v_row<KT, HD>(rows[i], records[i], at, c, g);
#pragma unroll
    for (int i = 0; i < LANE; i++) {
        u32 select = i % 2 ? 0x7632 : 0x5410;
        to[i][0] = __byte_perm(rows[0][i / 2], rows[1][i / 2], select);
        to[i][1] = __byte_perm(rows[2][i / 2], rows[3][i / 2], select);
    }
}

// The part of [lo, hi) that this block takes.
DEVICE void split_range(u32& lo, u32& hi) {
    u32 per = div_up(div_up(hi - lo, gridDim.x), 64) * 64;
    u32 from = min_u(hi, lo + blockIdx.x * per);
    hi = min_u(hi, from + per);
    lo = from;
}

// One new token a sequence. part [sequence][split][head][HD] is not yet divided by the sum of weights; ml holds (largest score, sum).
template <int KT, int HD, bool SCAN>
DEVICE void decode(const float* q, const u8* k, const u8* v, u32 krec, u32 vrec, const Sequence* seqs, const u32* table, const u32* walk, u32 H, u32 KV,
                   u32 window, float scale, float* part, float* ml) {
    const int STEPS = HD / 32, LANE = VShape<HD>::LANE, CHUNK = VShape<HD>::CHUNK, CHUNKS = VShape<HD>::CHUNKS;
    __shared__ float sums[4][8][HD];
    __shared__ float weights[4][8][2];
    __shared__ uint4 queries[STEPS][32];
    start_next();
    wait_for_inputs();
    Sequence seq = seqs[blockIdx.z];
    if (seq.rows == 0) return;
    u32 lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, G = H / KV, kv = blockIdx.y;
    u32 token = seq.token, seen_from = first_seen(seq, token, window);
    u32 lo = SCAN ? walk[0] : seen_from, hi = SCAN ? walk[1] : token + 1;
    const u32* own_table = table + seq.table;
    u32 scan_lo = lo;
    split_range(lo, hi);

    // Rows 0..G of Q, for all warps; the tile's other rows are zero.
    float factor = scale * 1.4426950408889634f;
    for (int s = warp; s < STEPS; s += 4) {
        const float* at = q + ((u64)seq.row * H + kv * G + min_u(g, G - 1)) * HD + s * 32;
        u32 packed[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 dim = k_dim<KT>(t, 2 * i);
            packed[i] = g < G ? pack<KT>(at[dim] * factor, at[dim + 1] * factor) : 0;
        }
        queries[s][lane] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
    __syncthreads();
    float acc[CHUNKS][LANE / 2][4];
#pragma unroll
    for (int i = 0; i < CHUNKS * LANE * 2; i++) acc[i / (LANE * 2)][i / 4 % (LANE / 2)][i % 4] = 0.0f;
    float most = -INFINITY_F, sum = 0.0f;
    Place k_at = place_of<KT, HD>(KV, kv), v_at = k_at;

    u32 base = lo + warp * 16;
    u32 cell = 0;
    if (base < hi) {
        u32 at = min_u(base + (lane & 15), hi - 1);
        cell = SCAN ? at : cell_of(own_table, seq.shift, at - seq.first);
    }
    while (base < hi) {
        u32 next = base + 64, next_cell = 0;
        if (next < hi) {
            u32 at = min_u(next + (lane & 15), hi - 1);
            next_cell = SCAN ? at : cell_of(own_table, seq.shift, at - seq.first);
        }
        u32 owner = SCAN ? own_table[cell - scan_lo] : 0;
        const u8* k0 = k + (u64)__shfl_sync(FULL, cell, g) * krec;
        const u8* k1 = k + (u64)__shfl_sync(FULL, cell, g + 8) * krec;
        float score[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            uint4 a = load_k<KT>(k0, k_at, s, t), b = load_k<KT>(k1, k_at, s, t), row = queries[s][lane];
            mma_16<KT != KV_BF16>(score[0], row.x, 0, row.y, 0, a.x, a.y);
            mma_16<KT != KV_BF16>(score[1], row.x, 0, row.y, 0, b.x, b.y);
            mma_16<KT != KV_BF16>(score[0], row.z, 0, row.w, 0, a.z, a.w);
            mma_16<KT != KV_BF16>(score[1], row.z, 0, row.w, 0, b.z, b.w);
        }
        // Row g is a head; its tokens are 2t, 2t+1 and 2t+8, 2t+9.
        float p[4] = {score[0][0], score[0][1], score[1][0], score[1][1]};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 index = 2 * t + i % 2 + i / 2 * 8;
            bool seen = base + index < hi;
            if (SCAN) {
                u32 of = __shfl_sync(FULL, owner, index);
                seen = seen && of <= token && of >= seen_from;
            }
            if (!seen) p[i] = -INFINITY_F;
        }
        float high = fmaxf(fmaxf(p[0], p[1]), fmaxf(p[2], p[3]));
        high = fmaxf(high, __shfl_xor_sync(FULL, high, 1));
        high = fmaxf(high, __shfl_xor_sync(FULL, high, 2));
        if (__any_sync(FULL, high > most)) {
            float now = fmaxf(high, most), shrink = most == -INFINITY_F ? 0.0f : exp2f(most - now);
            sum *= shrink;
            most = now;
            float even = __shfl_sync(FULL, shrink, 8 * t), odd = __shfl_sync(FULL, shrink, 8 * t + 4);
#pragma unroll
            for (int i = 0; i < CHUNKS * LANE * 2; i++) acc[i / (LANE * 2)][i / 4 % (LANE / 2)][i % 4] *= i % 2 ? odd : even;
        }
        float base_score = most == -INFINITY_F ? 0.0f : most;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            p[i] = exp2f(p[i] - base_score);
            sum += p[i];
        }
        u32 p0 = pack<KT>(p[0], p[1]), p1 = pack<KT>(p[2], p[3]);
        const u8* records[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) records[i] = v + (u64)__shfl_sync(FULL, cell, 2 * t + i % 2 + i / 2 * 8) * vrec;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 values[LANE][2];
            load_v<KT, HD>(values, records, v_at, c, g);
#pragma unroll
            for (int j = 0; j < LANE / 2; j++)
                mma_16<KT != KV_BF16>(acc[c][j], values[2 * j][0], values[2 * j + 1][0], values[2 * j][1], values[2 * j + 1][1], p0, p1);
        }
        base = next;
        cell = next_cell;
    }
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);

    if (t == 0) weights[warp][g][0] = most, weights[warp][g][1] = sum;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
        for (int i = 0; i < LANE * 2; i++) {
            u32 head = 2 * t + i % 2, dim = c * CHUNK + v_dim<KT, HD>(g, i / 4 * 2 + i % 4 / 2);
            if (head < G) sums[warp][head][dim] = acc[c][i / 4][i % 4];
        }
    }
    __syncthreads();
    u64 out = ((u64)blockIdx.z * gridDim.x + blockIdx.x) * H + kv * G;
    for (u32 i = threadIdx.x; i < G * HD; i += 128) {
        u32 head = i / HD, dim = i % HD;
        float top = -INFINITY_F, total = 0.0f, denominator = 0.0f;
#pragma unroll
        for (int w = 0; w < 4; w++) top = fmaxf(top, weights[w][head][0]);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            float weight = weights[w][head][0] == -INFINITY_F ? 0.0f : exp2f(weights[w][head][0] - top);
            total += weight * sums[w][head][dim];
            denominator += weight * weights[w][head][1];
        }
        part[(out + head) * HD + dim] = total;
        if (dim == 0) ml[(out + head) * 2] = top, ml[(out + head) * 2 + 1] = denominator;
    }
}

// The splits of a row and head, in order.
KERNEL(256, 4) attn_merge(const float* part, const float* ml, const Sequence* seqs, u32 splits, u32 H, u32 hd, float* h32, u16* h16, i8* hq, float* hd_out,
                          u32 kpad) {
    start_next();
    wait_for_inputs();
    ActOut out = {h32, h16, hq, hd_out, kpad};
    Sequence seq = seqs[blockIdx.y];
    if (seq.rows == 0) return;
    u64 first = (u64)blockIdx.y * splits * H + blockIdx.x;
    float top = -INFINITY_F, total = 0.0f, denominator = 0.0f;
    for (u32 s = 0; s < splits; s++) top = fmaxf(top, ml[(first + s * H) * 2]);
    for (u32 s = 0; s < splits; s++) {
        u64 at = first + s * H;
        float most = ml[at * 2];
        if (most == -INFINITY_F) continue;
        float weight = exp2f(most - top);
        total += weight * part[at * hd + threadIdx.x];
        denominator += weight * ml[at * 2 + 1];
    }
    float v = denominator > 0.0f ? total / denominator : 0.0f;
    write_act(out, seq.row, H * hd, blockIdx.x * hd + threadIdx.x, v);
}

// New tokens after context. A warp's 16 rows are (query, head) pairs, G heads to a query.
template <int KT, int HD, bool SCAN>
DEVICE void prefill(const float* q, const u8* k, const u8* v, u32 krec, u32 vrec, const Sequence* seqs, const u32* table, const u32* walk, u32 H, u32 KV,
                    u32 window, float scale, float* o32, u16* o16) {
    const int STEPS = HD / 32, LANE = VShape<HD>::LANE, CHUNK = VShape<HD>::CHUNK, CHUNKS = VShape<HD>::CHUNKS;
    __shared__ uint4 queries[4][STEPS][2][32];
    start_next();
    wait_for_inputs();
    Sequence seq = seqs[blockIdx.z];
    u32 lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, G = H / KV, kv = blockIdx.y;
    u32 tile = blockIdx.x * 64 + warp * 16;
    if (tile >= seq.rows * G) return;
    const u32* own_table = table + seq.table;
    u32 last_query = min_u(seq.rows - 1, (tile + 15) / G);
    u32 pair[2] = {tile + g, tile + g + 8}, from[2], upto[2];
    float factor = scale * 1.4426950408889634f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        u32 query = min_u(pair[r] / G, seq.rows - 1), head = kv * G + pair[r] % G;
        upto[r] = seq.token + query;
        from[r] = first_seen(seq, upto[r], window);
        const float* at = q + ((u64)(seq.row + query) * H + head) * HD;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            u32 packed[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* two = at + s * 32 + k_dim<KT>(t, 2 * i);
                packed[i] = pack<KT>(two[0] * factor, two[1] * factor);
            }
            queries[warp][s][r][lane] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        }
    }
    u32 lo = SCAN ? walk[0] : first_seen(seq, seq.token + tile / G, window);
    u32 hi = SCAN ? walk[1] : seq.token + last_query + 1;
    u32 scan_lo = lo;
    float acc[CHUNKS * LANE][4];
#pragma unroll
    for (int i = 0; i < CHUNKS * LANE * 4; i++) acc[i / 4][i % 4] = 0.0f;
    float most[2] = {-INFINITY_F, -INFINITY_F}, sum[2] = {0.0f, 0.0f};
    Place k_at = place_of<KT, HD>(KV, kv), v_at = k_at;

    for (u32 base = lo; base < hi; base += 32) {
        u32 at = min_u(base + lane, hi - 1);
        u32 cell = SCAN ? at : cell_of(own_table, seq.shift, at - seq.first);
        u32 owner = SCAN ? (base + lane < hi ? own_table[at - scan_lo] : NONE) : base + lane;
        const u8* keys[4];
        float score[4][4];
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            keys[n] = k + (u64)__shfl_sync(FULL, cell, n * 8 + g) * krec;
            score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.0f;
        }
#pragma unroll(HD == 256 ? 1 : 2)
        for (int s = 0; s < STEPS; s++) {
            uint4 a = queries[warp][s][0][lane], b = queries[warp][s][1][lane];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                uint4 x = load_k<KT>(keys[n], k_at, s, t);
                mma_16<KT != KV_BF16>(score[n], a.x, b.x, a.y, b.y, x.x, x.y);
                mma_16<KT != KV_BF16>(score[n], a.z, b.z, a.w, b.w, x.z, x.w);
            }
        }
        float high[2] = {-INFINITY_F, -INFINITY_F};
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            u32 of = __shfl_sync(FULL, owner, i / 4 * 8 + 2 * t + i % 2), r = i % 4 / 2;
            if (of < from[r] || of > upto[r]) score[i / 4][i % 4] = -INFINITY_F;
            high[r] = fmaxf(high[r], score[i / 4][i % 4]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            high[r] = fmaxf(high[r], __shfl_xor_sync(FULL, high[r], 1));
            high[r] = fmaxf(high[r], __shfl_xor_sync(FULL, high[r], 2));
        }
        if (__any_sync(FULL, high[0] > most[0] || high[1] > most[1])) {
            float shrink[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float now = fmaxf(most[r], high[r]);
                shrink[r] = most[r] == -INFINITY_F ? 0.0f : exp2f(most[r] - now);
                sum[r] *= shrink[r];
                most[r] = now;
            }
#pragma unroll
            for (int i = 0; i < CHUNKS * LANE * 4; i++) acc[i / 4][i % 4] *= shrink[i % 4 / 2];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int r = i % 4 / 2;
            float p = exp2f(score[i / 4][i % 4] - (most[r] == -INFINITY_F ? 0.0f : most[r]));
            score[i / 4][i % 4] = p;
            sum[r] += p;
        }
        u32 p[8];
#pragma unroll
        for (int i = 0; i < 8; i++) p[i] = pack<KT>(score[i / 2][i % 2 * 2], score[i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const u8* records[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) records[i] = v + (u64)__shfl_sync(FULL, cell, h * 16 + 2 * t + i % 2 + i / 2 * 8) * vrec;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                u32 values[LANE][2];
                if (HD == 256) keep_order();
                load_v<KT, HD>(values, records, v_at, c, g);
#pragma unroll
                for (int j = 0; j < LANE; j++) mma_16<KT != KV_BF16>(acc[c * LANE + j], p[4 * h], p[4 * h + 1], p[4 * h + 2], p[4 * h + 3], values[j][0], values[j][1]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(FULL, sum[r], 1);
        sum[r] += __shfl_xor_sync(FULL, sum[r], 2);
        if (pair[r] >= seq.rows * G) continue;
        float inverse = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
        u64 out = ((u64)(seq.row + pair[r] / G) * H + kv * G + pair[r] % G) * HD;
#pragma unroll
        for (int i = 0; i < CHUNKS * LANE * 2; i++) {
            u32 dim = i / 2 / LANE * CHUNK + v_dim<KT, HD>(2 * t + i % 2, i / 2 % LANE);
            float value = acc[i / 2][2 * r + i % 2] * inverse;
            if (o32) o32[out + dim] = value;
            if (o16) o16[out + dim] = to_bf16(value);
        }
    }
}

#define ARGUMENTS                                                                                                                                   \
    const float *q, const u8 *k, const u8 *v, u32 krec, u32 vrec, const Sequence *seqs, const u32 *table, const u32 *walk, u32 H, u32 KV, u32 window, \
        float scale
#define ATTENTION(type, name, hd)                                                                                                          \
    KERNEL(128, 3) attn_decode_##name##_##hd(ARGUMENTS, float* part, float* ml) {                                                          \
        decode<type, hd, false>(q, k, v, krec, vrec, seqs, table, walk, H, KV, window, scale, part, ml);                                   \
    }                                                                                                                                      \
    KERNEL(128, 3) attn_scan_##name##_##hd(ARGUMENTS, float* part, float* ml) {                                                            \
        decode<type, hd, true>(q, k, v, krec, vrec, seqs, table, walk, H, KV, window, scale, part, ml);                                    \
    }                                                                                                                                      \
    KERNEL(128, 2) attn_prefill_##name##_##hd(ARGUMENTS, float* o32, u16* o16) {                                                           \
        prefill<type, hd, false>(q, k, v, krec, vrec, seqs, table, walk, H, KV, window, scale, o32, o16);                                  \
    }                                                                                                                                      \
    KERNEL(128, 2) attn_prefill_scan_##name##_##hd(ARGUMENTS, float* o32, u16* o16) {                                                      \
        prefill<type, hd, true>(q, k, v, krec, vrec, seqs, table, walk, H, KV, window, scale, o32, o16);                                   \
    }
#define ATTENTIONS(type, name) \
    ATTENTION(type, name, 32)  \
    ATTENTION(type, name, 64)  \
    ATTENTION(type, name, 128) \
    ATTENTION(type, name, 256)

ATTENTIONS(KV_BF16, bf16)
ATTENTIONS(KV_Q8, q8_0)
ATTENTIONS(KV_Q4, q4_0)

// Any type, any grouping, f32 throughout: a block a query head and row, a thread a token.
KERNEL(128, 4) attn_plain(const float* q, const u8* k, const u8* v, u32 ktype, u32 vtype, u32 krec, u32 vrec, const Sequence* seqs, const u32* table, u32 H,
                          u32 KV, u32 hd, u32 window, float scale, float* o32, u16* o16) {
    __shared__ float query[256], weights[128], scratch[32];
    __shared__ u32 cells[128];
    start_next();
    wait_for_inputs();
    Sequence seq = seqs[blockIdx.z];
    if (blockIdx.y >= seq.rows) return;
    u32 tid = threadIdx.x, head = blockIdx.x, kv = head / (H / KV), token = seq.token + blockIdx.y;
    u64 row = ((u64)(seq.row + blockIdx.y) * H + head) * hd;
    for (u32 i = tid; i < hd; i += 128) query[i] = q[row + i] * scale;
    float acc[2] = {0.0f, 0.0f}, most = -INFINITY_F, sum = 0.0f;
    for (u32 base = first_seen(seq, token, window); base <= token; base += 128) {
        u32 count = min_u(128, token + 1 - base);
        __syncthreads();
        float score = -INFINITY_F;
        if (tid < count) {
            u32 cell = cell_of(table + seq.table, seq.shift, base + tid - seq.first);
            Head key = head_of((u8*)k + (u64)cell * krec, ktype, KV, hd, kv);
            score = 0.0f;
            for (u32 i = 0; i < hd; i++) score += query[i] * number_of(key, ktype, i);
            cells[tid] = cell;
        }
        weights[tid] = score;
        __syncthreads();
        float now = most;
        for (u32 i = 0; i < count; i++) now = fmaxf(now, weights[i]);
        float weight = tid < count ? expf(score - now) : 0.0f, shrink = most == -INFINITY_F ? 0.0f : expf(most - now);
        sum = sum * shrink + block_sum(weight, scratch);
        weights[tid] = weight;
        most = now;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u32 dim = tid + j * 128;
            acc[j] *= shrink;
            if (dim >= hd) continue;
            for (u32 i = 0; i < count; i++)
                acc[j] += weights[i] * number_of(head_of((u8*)v + (u64)cells[i] * vrec, vtype, KV, hd, kv), vtype, dim);
        }
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 dim = tid + j * 128;
        if (dim >= hd) continue;
        if (o32) o32[row + dim] = acc[j] / sum;
        if (o16) o16[row + dim] = to_bf16(acc[j] / sum);
    }
}
