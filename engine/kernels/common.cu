// What all kernels share: number formats, tensor-core wrappers, the order of dependent launches.
// No header is included, so that NVRTC needs no include path; the CPU shim defines what CUDA predefines.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define FULL 0xffffffffu
#define NONE 0xffffffffu
#define INFINITY_F __uint_as_float(0x7f800000u)

#if !defined(KVLAB_EMU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define HAS_MMA 1
#else
#define HAS_MMA 0
#endif

// sm_75 multiplies smaller matrices of f16 and int8, and none of bf16.
#if defined(KVLAB_EMU_TURING) || (!defined(KVLAB_EMU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
#define HAS_SMALL_MMA 1
#else
#define HAS_SMALL_MMA 0
#endif

// Types of K and V.
enum { KV_F32 = 0, KV_F16 = 1, KV_BF16 = 2, KV_Q8 = 3, KV_Q4 = 4 };

// Waits until the kernels before this one have finished and their results are visible.
DEVICE void wait_for_inputs() {
#ifdef KVLAB_EMU
    watch_waited();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start; it waits for our results itself.
DEVICE void start_next() {
#if !defined(KVLAB_EMU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Keeps the compiler from moving loads up across this point, which would cost registers that are not there.
DEVICE void keep_order() {
#ifndef KVLAB_EMU
    asm volatile("" ::: "memory");
#endif
}

DEVICE u32 min_u(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max_u(u32 a, u32 b) { return a > b ? a : b; }
DEVICE u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }

// ---- bf16 and f16 as bits: sm_75 has no bf16 instructions ----

DEVICE float from_bf16(u16 v) { return __uint_as_float((u32)v << 16); }

DEVICE u16 to_bf16(float v) {
    u32 bits = __float_as_uint(v);
    if (v != v) return 0x7fc0;
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

DEVICE u32 pack_bf16(float low, float high) {
#if HAS_MMA
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return (u32)to_bf16(low) | (u32)to_bf16(high) << 16;
#endif
}

#ifndef KVLAB_EMU
DEVICE float from_f16(u16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
}

DEVICE u16 to_f16(float v) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}

DEVICE u32 sub_f16x2(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

DEVICE u32 mul_f16x2(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
#else
DEVICE u32 sub_f16x2(u32 a, u32 b) {
    u32 low = to_f16(from_f16((u16)a) - from_f16((u16)b));
    return low | (u32)to_f16(from_f16((u16)(a >> 16)) - from_f16((u16)(b >> 16))) << 16;
}

DEVICE u32 mul_f16x2(u32 a, u32 b) {
    u32 low = to_f16(from_f16((u16)a) * from_f16((u16)b));
    return low | (u32)to_f16(from_f16((u16)(a >> 16)) * from_f16((u16)(b >> 16))) << 16;
}
#endif

DEVICE u32 pack_f16(float low, float high) { return (u32)to_f16(low) | (u32)to_f16(high) << 16; }

// 16 bytes of weights, read once: past the L1 cache.
DEVICE uint4 load_streamed(const void* at) {
#ifndef KVLAB_EMU
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
#else
    return *(const uint4*)at;
#endif
}

// Subtracts 8 from each byte of four nibbles in bytes.
DEVICE u32 minus_8(u32 nibbles) { return ((nibbles | 0x80808080u) - 0x08080808u) ^ 0x80808080u; }

// ---- tensor cores. Lane = 4 * g + t. ----
// A, 16 rows: a0 (row g, k 2t, 2t+1), a1 (row g+8), a2 (row g, k 2t+8, +9), a3 (row g+8).
// B, 8 columns: b0 (k 2t, 2t+1, column g), b1 (k 2t+8, +9). C: c0 c1 (row g, columns 2t, 2t+1), c2 c3 (row g+8).

DEVICE float bf16_of(u32 pair, int high) { return from_bf16((u16)(high ? pair >> 16 : pair)); }

#if HAS_SMALL_MMA
// c += A B with 8 numbers of k in f16: the first half of what mma_16 takes.
DEVICE void small_mma_f16(float (&c)[4], u32 a0, u32 a1, u32 b) {
#ifdef KVLAB_EMU
    emu_mma_16(true, c, a0, a1, 0, 0, b, 0);
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
#endif
}

// c += A B of 8 rows with 16 int8 of k.
DEVICE void small_mma_int8(int& c0, int& c1, u32 a, u32 b) {
#ifdef KVLAB_EMU
    int c[4];
    emu_mma_int8(c, a, 0, 0, 0, b, 0);
    c0 += c[0], c1 += c[1];
#else
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c0), "+r"(c1) : "r"(a), "r"(b));
#endif
}

// c += A B with 16 numbers of k in bf16, by shuffles: every lane sends its part of A and B around.
DEVICE void shuffled_mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    u32 lane = threadIdx.x & 31, t = lane & 3, row = lane & 28;
#pragma unroll 1
    for (u32 s = 0; s < 4; s++) {
        u32 p[4] = {__shfl_sync(FULL, a0, row + s), __shfl_sync(FULL, a1, row + s),
                    __shfl_sync(FULL, a2, row + s), __shfl_sync(FULL, a3, row + s)};
#pragma unroll
        for (u32 column = 0; column < 2; column++) {
            u32 q0 = __shfl_sync(FULL, b0, (2 * t + column) * 4 + s);
            u32 q1 = __shfl_sync(FULL, b1, (2 * t + column) * 4 + s);
#pragma unroll
            for (int high = 0; high < 2; high++) {
                float x0 = bf16_of(q0, high), x1 = bf16_of(q1, high);
                c[column] += bf16_of(p[0], high) * x0 + bf16_of(p[2], high) * x1;
                c[2 + column] += bf16_of(p[1], high) * x0 + bf16_of(p[3], high) * x1;
            }
        }
    }
}
#endif

// c += A B with 16 numbers of k, bf16 or f16.
template <bool F16>
DEVICE void mma_16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if HAS_MMA
    if (F16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#elif HAS_SMALL_MMA
    if (F16) {
        small_mma_f16(c, a0, a1, b0);
        small_mma_f16(c, a2, a3, b1);
    } else {
        shuffled_mma(c, a0, a1, a2, a3, b0, b1);
    }
#else
    emu_mma_16(F16, c, a0, a1, a2, a3, b0, b1);
#endif
}

// c = A B with 32 int8 of k: as above, four numbers a register, k 4t.. and 16 + 4t...
DEVICE void mma_int8(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    c[0] = c[1] = c[2] = c[3] = 0;
#if HAS_MMA
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#elif HAS_SMALL_MMA
    small_mma_int8(c[0], c[1], a0, b0);
    small_mma_int8(c[0], c[1], a2, b1);
    small_mma_int8(c[2], c[3], a1, b0);
    small_mma_int8(c[2], c[3], a3, b1);
#else
    emu_mma_int8(c, a0, a1, a2, a3, b0, b1);
#endif
}

// ---- sums over a warp or a block; every lane gets the same bits ----

DEVICE float warp_sum(float v) {
#pragma unroll
    for (u32 step = 16; step; step >>= 1) v += __shfl_xor_sync(FULL, v, step);
    return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
    for (u32 step = 16; step; step >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
    return v;
}

// scratch: 32 floats of shared memory, free again after the call. The block is whole warps.
DEVICE float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    u32 lane = threadIdx.x & 31;
    return warp_sum(lane < blockDim.x / 32 ? scratch[lane] : 0.0f);
}

// ---- inputs of linear layers, in up to three forms ----

struct ActOut {
    float* h32;
    u16* h16;
    i8* hq;
    float* hd;
    u32 kpad;
};

// Where number i of a quantised row lies: the order in which lanes of mma_int8 want it.
DEVICE u32 quant_place(u32 i) {
    return (i & ~63u) + ((i >> 2) & 3) * 16 + ((i >> 5) & 1) * 8 + ((i >> 4) & 1) * 4 + (i & 3);
}

// Called by whole warps: lanes hold neighbouring numbers i, the first a multiple of 32.
DEVICE void write_act(const ActOut& out, u32 row, u32 k, u32 i, float v) {
    if (out.h32) out.h32[(u64)row * k + i] = v;
    if (out.h16) out.h16[(u64)row * k + i] = to_bf16(v);
    if (out.hq) {
        float d = warp_max(fabsf(v)) / 127.0f;
        float inverse = d > 0.0f ? 1.0f / d : 0.0f;
        out.hq[(u64)row * out.kpad + quant_place(i)] = (i8)(int)roundf(v * inverse);
        if ((i & 31) == 0) out.hd[(u64)row * (out.kpad / 32) + i / 32] = d;
    }
}

DEVICE float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}
