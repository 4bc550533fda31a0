// The cache of K and V: cell records, and what is done to them between and within steps.

// Bytes of one head's numbers in a record, without scales.
DEVICE u32 head_bytes(u32 type, u32 hd) { return type == KV_F32 ? hd * 4 : type == KV_Q8 ? hd : type == KV_Q4 ? hd / 2 : hd * 2; }

// A head of a record, its scales apart.
struct Head {
    u8* numbers;
    u16* scales;
};

DEVICE Head head_of(u8* record, u32 type, u32 KV, u32 hd, u32 head) {
    u32 bytes = head_bytes(type, hd);
    Head at = {record + head * bytes, (u16*)(record + KV * bytes) + head * (hd / 32)};
    return at;
}

DEVICE float number_of(const Head& head, u32 type, u32 i) {
    if (type == KV_F32) return ((const float*)head.numbers)[i];
    if (type == KV_F16) return from_f16(((const u16*)head.numbers)[i]);
    if (type == KV_BF16) return from_bf16(((const u16*)head.numbers)[i]);
    float d = from_f16(head.scales[i / 32]);
    if (type == KV_Q8) return d * (float)(i8)head.numbers[i];
    u8 byte = head.numbers[i / 32 * 16 + i % 16];
    return d * (float)((int)(i % 32 < 16 ? byte & 15 : byte >> 4) - 8);
}

// Stores numbers i = lane + 32 j of a head by a whole warp; quantisation as in GGUF. v: shared memory, of which a lane reads its own numbers.
DEVICE void store_head(const Head& head, u32 type, u32 hd, const float* v) {
    u32 lane = threadIdx.x & 31;
    for (u32 i = lane; i < hd; i += 32) {
        float number = v[i];
        if (type == KV_F32) {
            ((float*)head.numbers)[i] = number;
        } else if (type == KV_F16) {
            ((u16*)head.numbers)[i] = to_f16(number);
        } else if (type == KV_BF16) {
            ((u16*)head.numbers)[i] = to_bf16(number);
        } else if (type == KV_Q8) {
            float d = warp_max(fabsf(number)) / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
            ((i8*)head.numbers)[i] = (i8)(int)roundf(number * inverse);
            if (lane == 0) head.scales[i / 32] = to_f16(d);
        } else {
            // The first number of the largest size, with its sign.
            float most = warp_max(fabsf(number));
            u32 who = __ffs(__ballot_sync(FULL, fabsf(number) == most)) - 1;
            float d = __shfl_sync(FULL, number, who) / -8.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
            u32 nibble = min_u(15, (u32)(int)(number * inverse + 8.5f));
            u32 above = __shfl_sync(FULL, nibble, (lane + 16) & 31);
            if (lane < 16) head.numbers[i / 32 * 16 + lane] = (u8)(nibble | above << 4);
            if (lane == 0) head.scales[i / 32] = to_f16(d);
        }
    }
}

// Cosine and sine of pair i at a position from two exact table entries.
DEVICE float2 angle_of(const float2* rope, u32 position, u32 i, u32 half) {
    float2 low = rope[(position & 255) * half + i], high = rope[(u64)(256 + (position >> 8)) * half + i];
    return make_float2(low.x * high.x - low.y * high.y, low.y * high.x + low.x * high.y);
}

// Rotates a head in the warp's shared memory; sign -1 turns back.
DEVICE void rotate_head(float* v, const float2* rope, u32 position, float sign, u32 hd) {
    u32 half = hd / 2;
    for (u32 i = threadIdx.x & 31; i < half; i += 32) {
        float2 turn = angle_of(rope, position, i, half);
        float a = v[i], b = v[i + half], sine = sign * turn.y;
        v[i] = a * turn.x - b * sine;
        v[i + half] = b * turn.x + a * sine;
    }
    __syncwarp();
}

// Q and K: norm, rotation; K and V: into the cache. A warp a head.
KERNEL(128, 4) qk_rope_store(const float* y, u32 splits, u32 n, u32 H, u32 KV, u32 hd, const float* q_norm, const float* k_norm, float eps,
                             const float2* rope, const u32* positions, const u32* cells, float* q, u8* k, u8* v, u32 ktype, u32 vtype, u32 krec,
                             u32 vrec) {
    __shared__ float heads[4][256];
    start_next();
    wait_for_inputs();
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.x * 4 + warp, row = blockIdx.y;
    if (head >= H + 2 * KV) return;
    u32 width = (H + 2 * KV) * hd;
    float* own = heads[warp];
    float squares = 0.0f;
    for (u32 i = lane; i < hd; i += 32) {
        float sum = 0.0f;
        for (u32 s = 0; s < splits; s++) sum += y[((u64)s * n + row) * width + head * hd + i];
        own[i] = sum;
        squares += sum * sum;
    }
    if (head < H + KV) {
        const float* weight = head < H ? q_norm : k_norm;
        float scale = rsqrtf(warp_sum(squares) / (float)hd + eps);
        for (u32 i = lane; i < hd; i += 32) own[i] = own[i] * scale * weight[i];
        __syncwarp();
        rotate_head(own, rope, positions[row], 1.0f, hd);
    }
    if (head < H) {
        for (u32 i = lane; i < hd; i += 32) q[((u64)row * H + head) * hd + i] = own[i];
        return;
    }
    u64 cell = cells[row];
    if (head < H + KV)
        store_head(head_of(k + cell * krec, ktype, KV, hd, head - H), ktype, hd, own);
    else
        store_head(head_of(v + cell * vrec, vtype, KV, hd, head - H - KV), vtype, hd, own);
}

// Turns K of cells by so many positions; each buffer is one layer's K.
KERNEL(256, 2) rotate_k(const u64* bufs, const u64* ropes, const u32* cells, const int* deltas, u32 KV, u32 hd, u32 ktype, u32 record) {
    __shared__ float heads[8][256];
    wait_for_inputs();
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int delta = deltas[blockIdx.x];
    if (delta == 0) return;
    u8* at = (u8*)bufs[blockIdx.y] + (u64)cells[blockIdx.x] * record;
    float* own = heads[warp];
    for (u32 head = warp; head < KV; head += blockDim.x >> 5) {
        Head from = head_of(at, ktype, KV, hd, head);
        for (u32 i = lane; i < hd; i += 32) own[i] = number_of(from, ktype, i);
        __syncwarp();
        rotate_head(own, (const float2*)ropes[blockIdx.y], delta < 0 ? -delta : delta, delta < 0 ? -1.0f : 1.0f, hd);
        store_head(from, ktype, hd, own);
    }
}

// Cells of one type into cells of another.
KERNEL(256, 2) kv_convert(u8* from, u8* to, const u32* from_cells, const u32* to_cells, u32 KV, u32 hd, u32 from_type, u32 to_type, u32 from_record,
                          u32 to_record) {
    __shared__ float heads[8][256];
    wait_for_inputs();
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float* own = heads[warp];
    for (u32 head = warp; head < KV; head += blockDim.x >> 5) {
        Head source = head_of(from + (u64)from_cells[blockIdx.x] * from_record, from_type, KV, hd, head);
        for (u32 i = lane; i < hd; i += 32) own[i] = number_of(source, from_type, i);
        store_head(head_of(to + (u64)to_cells[blockIdx.x] * to_record, to_type, KV, hd, head), to_type, hd, own);
    }
}

// Pairs (from, to) in order. A block owns a stripe of 128 bytes of every record of a buffer and takes tile after tile: all loads of a tile
// come before its stores, so a run may move onto itself towards lower cells.
KERNEL(256, 4) cells_copy(const u64* bufs, u32 record, const uint2* pairs, const u32* tiles, u32 count) {
    wait_for_inputs();
    u32 stripe = blockIdx.x * 128 + (threadIdx.x & 7) * 16, slot = threadIdx.x >> 3;
    u8* buffer = (u8*)bufs[blockIdx.y] + stripe;
    bool mine = stripe < record;
    for (u32 tile = 0; tile < count; tile++) {
        u32 first = tiles[tile], end = tiles[tile + 1];
        uint4 held[4];
        u32 to[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 at = first + slot + j * 32;
            if (mine && at < end) {
                uint2 pair = pairs[at];
                to[j] = pair.y;
                held[j] = *(const uint4*)(buffer + (u64)pair.x * record);
            }
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (mine && first + slot + j * 32 < end) *(uint4*)(buffer + (u64)to[j] * record) = held[j];
        __syncthreads();
    }
}

KERNEL(64, 8) cells_gather(const u64* bufs, u32 record, const u32* cells, u32 m, u8* out) {
    wait_for_inputs();
    const u8* from = (const u8*)bufs[blockIdx.y] + (u64)cells[blockIdx.x] * record;
    u8* to = out + ((u64)blockIdx.y * m + blockIdx.x) * record;
    for (u32 i = threadIdx.x * 16; i < record; i += 64 * 16) *(uint4*)(to + i) = *(const uint4*)(from + i);
}

KERNEL(64, 8) cells_scatter(const u64* bufs, u32 record, const u32* cells, u32 m, const u8* in) {
    wait_for_inputs();
    u8* to = (u8*)bufs[blockIdx.y] + (u64)cells[blockIdx.x] * record;
    const u8* from = in + ((u64)blockIdx.y * m + blockIdx.x) * record;
    for (u32 i = threadIdx.x * 16; i < record; i += 64 * 16) *(uint4*)(to + i) = *(const uint4*)(from + i);
}
