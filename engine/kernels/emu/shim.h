// Runs the CUDA kernels on a CPU, for tests: what CUDA predefines, as plain C++.
//
// A block's threads are fibres on one thread of the operating system. A fibre runs until it meets a barrier, a shuffle or a tensor-core
// instruction and goes on when all others are there; which fibre runs next is the schedule: 0 upwards, 1 downwards, n by a generator seeded
// with n. A block whose threads wait for different things is reported as a deadlock. Fibres start through ucontext and switch by
// setjmp, which needs no system call.
//
// With KVLAB_EMU_WATCH the accesses of kernels are watched: see watch.cpp.
#pragma once
#define KVLAB_EMU 1
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <mutex>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#ifdef KVLAB_EMU_WATCH
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define UNWATCHED
#endif
#define __launch_bounds__(...)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x, y, z; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }

// Never zero at the start, so that they do not lie among shared memory, which is.
static dim3 gridDim = {1, 1, 1}, blockDim = {1, 1, 1}, blockIdx = {1, 1, 1}, threadIdx = {1, 1, 1};

static inline float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
static inline unsigned __float_as_uint(float v) { unsigned u; memcpy(&u, &v, 4); return u; }
static inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline int __ffs(unsigned v) { return __builtin_ffs((int)v); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(both >> (selector >> (4 * i) & 7) * 8 & 255) << (8 * i);
    return out;
}
static inline float from_f16(unsigned short v) { _Float16 h; memcpy(&h, &v, 2); return (float)h; }
static inline unsigned short to_f16(float v) { _Float16 h = (_Float16)v; unsigned short u; memcpy(&u, &h, 2); return u; }

// ---- fibres ----

#ifdef KVLAB_EMU_WATCH
struct Range { uint64_t start, bytes, is_writable; };
extern "C" {
void watch_launch(const Range* own, size_t threads, bool is_early);
void watch_block();
void watch_thread(int now);
void watch_waited();
void watch_barrier();
void watch_turn(unsigned warp);
const char* watch_found();
// What the linker knows: where the library begins, where what is zero at the start does (shared memory), and the end of both.
#define LINKED extern __attribute__((visibility("hidden"))) char
LINKED __ehdr_start, __bss_start, _end;
}
#else
static inline void watch_block() {}
static inline void watch_thread(int) {}
static inline void watch_waited() {}
static inline void watch_barrier() {}
static inline void watch_turn(unsigned) {}
static inline const char* watch_found() { return nullptr; }
#endif

namespace emu {
enum Waits { RUNS, BARRIER, WARP, DONE };
using Collective = void (*)(void** lanes, unsigned count);

struct Fibre {
    ucontext_t start;
    jmp_buf at;
    bool started;
    Waits waits;
    Collective what;
    void* data;
};

#ifdef KVLAB_EMU_WATCH
static const size_t STACK = 256 << 10;
#else
static const size_t STACK = 64 << 10;
#endif
static std::vector<Fibre> fibres;
static std::vector<char> stacks;
static jmp_buf scheduler;
static Fibre* running;
static void (*kernel)(void**);
static void** arguments;
static char trouble[200];

UNWATCHED static inline void yield() {
    if (!_setjmp(running->at)) _longjmp(scheduler, 1);
}

UNWATCHED static inline void collective(Collective what, void* data) {
    running->waits = WARP, running->what = what, running->data = data;
    yield();
}

UNWATCHED static void begin() {
    kernel(arguments);
    running->waits = DONE;
    _longjmp(scheduler, 1);
}

#ifdef KVLAB_EMU_WATCH
extern "C" UNWATCHED void emu_stop() { _longjmp(scheduler, 1); }
#endif

// Runs a fibre until it waits.
UNWATCHED static void resume(unsigned i) {
    running = &fibres[i];
    threadIdx = {i, 0, 0};
    if (_setjmp(scheduler)) return watch_thread(-1);
    watch_thread((int)i);
    if (running->started) _longjmp(running->at, 1);
    running->started = true;
    setcontext(&running->start);
}

// A barrier of a warp.
static void meet(void**, unsigned) {}

// Lets go whoever waits for something that is now complete; whether anyone was.
static bool release() {
    unsigned threads = (unsigned)fibres.size(), alive = 0, at_barrier = 0;
    bool any = false;
    for (unsigned warp = 0; warp < threads; warp += 32) {
        void* lanes[32];
        Collective what = nullptr;
        unsigned count = 0, waiting = 0, end = warp + 32 < threads ? warp + 32 : threads;
        for (unsigned i = warp; i < end; i++) {
            Fibre& fibre = fibres[i];
            alive += fibre.waits != DONE, at_barrier += fibre.waits == BARRIER;
            count++;
            if (fibre.waits != WARP) continue;
            if (waiting && fibre.what != what) continue;
            what = fibre.what, lanes[i - warp] = fibre.data, waiting++;
        }
        if (!waiting || waiting < count) continue;
        what(lanes, count);
        // Shuffles, votes and matrix products wait for all lanes, but order no memory.
        if (what == meet) watch_turn(warp / 32);
        for (unsigned i = warp; i < end; i++) fibres[i].waits = RUNS;
        any = true;
    }
    if (!any && alive && at_barrier == alive) {
        for (Fibre& fibre : fibres)
            if (fibre.waits == BARRIER) fibre.waits = RUNS;
        watch_barrier();
        any = true;
    }
    return any;
}

static bool run_block(unsigned threads, unsigned schedule, uint64_t& random) {
    for (unsigned i = 0; i < threads; i++) {
        Fibre& fibre = fibres[i];
        getcontext(&fibre.start);
        fibre.start.uc_stack.ss_sp = stacks.data() + STACK * i;
        fibre.start.uc_stack.ss_size = STACK;
        fibre.start.uc_link = nullptr;
        makecontext(&fibre.start, begin, 0);
        fibre.started = false, fibre.waits = RUNS;
    }
    std::vector<unsigned> order(threads);
    watch_block();
    for (;;) {
        for (unsigned i = 0; i < threads; i++) order[i] = schedule == 1 ? threads - 1 - i : i;
        if (schedule > 1)
            for (unsigned i = threads; i > 1; i--) {
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                std::swap(order[i - 1], order[(random >> 33) % i]);
            }
        bool is_done = true;
        for (unsigned i : order) {
            if (fibres[i].waits == RUNS) resume(i);
            is_done = is_done && fibres[i].waits == DONE;
            if (const char* found = watch_found()) {
                snprintf(trouble, sizeof trouble, "block %u %u %u: %s", blockIdx.x, blockIdx.y, blockIdx.z, found);
                return false;
            }
        }
        if (is_done) return true;
        if (!release()) {
            unsigned counts[4] = {0, 0, 0, 0};
            for (Fibre& fibre : fibres) counts[fibre.waits]++;
            snprintf(trouble, sizeof trouble, "deadlock in block %u %u %u: %u threads wait at a barrier, %u for their warp, %u have finished", blockIdx.x,
                     blockIdx.y, blockIdx.z, counts[BARRIER], counts[WARP], counts[DONE]);
            return false;
        }
    }
}

template <class... A, size_t... I>
UNWATCHED static void unpack(void (*f)(A...), void** args, std::index_sequence<I...>) {
    f(*(A*)args[I]...);
}
template <auto F, class... A>
UNWATCHED static void call_with(void (*f)(A...), void** args) {
    unpack(f, args, std::index_sequence_for<A...>{});
}
template <auto F>
UNWATCHED static void call(void** args) {
    call_with<F>(F, args);
}

static std::mutex one_at_a_time;

// Launches as cuLaunchKernel does; null, or what went wrong. An early kernel may begin while those before it run.
static const char* launch(void (*f)(void**), const unsigned* grid, unsigned threads, void** args, unsigned schedule, bool is_early = false) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    kernel = f, arguments = args;
    fibres.resize(threads), stacks.resize(STACK * threads);
#ifdef KVLAB_EMU_WATCH
    auto range = [](const void* from, const void* to) { return Range{(uint64_t)from, (uint64_t)to - (uint64_t)from, 1}; };
    Range own[] = {range(&__bss_start, &_end), range(&__ehdr_start, &_end), range(stacks.data(), stacks.data() + stacks.size())};
    watch_launch(own, threads, is_early);
#endif
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {threads, 1, 1};
    uint64_t random = schedule;
    unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned b = 0; b < blocks; b++) {
        unsigned at = schedule == 1 ? blocks - 1 - b : b;
        blockIdx = {at % grid[0], at / grid[0] % grid[1], at / grid[0] / grid[1]};
        if (!run_block(threads, schedule, random)) return trouble;
    }
    return nullptr;
}
}  // namespace emu

UNWATCHED static inline void __syncthreads() {
    emu::running->waits = emu::BARRIER;
    emu::yield();
}

static inline void __syncwarp() { emu::collective(emu::meet, nullptr); }

template <class T>
struct Exchange {
    T value;
    unsigned from;
    T got;
};

template <class T>
static inline T exchange(T value, unsigned from) {
    Exchange<T> mine = {value, from, value};
    emu::collective(
        [](void** lanes, unsigned count) {
            for (unsigned i = 0; i < count; i++) {
                auto* lane = (Exchange<T>*)lanes[i];
                if (lane->from < count) lane->got = ((Exchange<T>*)lanes[lane->from])->value;
            }
        },
        &mine);
    return mine.got;
}

template <class T>
static inline T __shfl_sync(unsigned, T value, unsigned from) { return exchange(value, from & 31); }
template <class T>
static inline T __shfl_xor_sync(unsigned, T value, unsigned mask) { return exchange(value, (threadIdx.x & 31) ^ mask); }

static inline unsigned __ballot_sync(unsigned, bool vote) {
    Exchange<unsigned> mine = {vote, 0, 0};
    emu::collective(
        [](void** lanes, unsigned count) {
            unsigned all = 0;
            for (unsigned i = 0; i < count; i++) all |= ((Exchange<unsigned>*)lanes[i])->value << i;
            for (unsigned i = 0; i < count; i++) ((Exchange<unsigned>*)lanes[i])->got = all;
        },
        &mine);
    return mine.got;
}
static inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

// ---- tensor cores ----

namespace emu {
struct Matrices {
    bool f16;
    float* c;
    int* integers;
    unsigned a[4], b[2];
};

static inline float half_of(const Matrices& m, unsigned pair, int high) {
    unsigned short bits = (unsigned short)(high ? pair >> 16 : pair);
    return m.f16 ? from_f16(bits) : __uint_as_float((unsigned)bits << 16);
}

static inline void multiply_16(void** lanes, unsigned) {
    auto lane = [&](int i) -> Matrices& { return *(Matrices*)lanes[i]; };
    float a[16][16], b[16][8];
    for (int i = 0; i < 32; i++) {
        int g = i / 4, t = i % 4;
        for (int h = 0; h < 2; h++) {
            a[g][2 * t + h] = half_of(lane(i), lane(i).a[0], h), a[g + 8][2 * t + h] = half_of(lane(i), lane(i).a[1], h);
            a[g][2 * t + 8 + h] = half_of(lane(i), lane(i).a[2], h), a[g + 8][2 * t + 8 + h] = half_of(lane(i), lane(i).a[3], h);
            b[2 * t + h][g] = half_of(lane(i), lane(i).b[0], h), b[2 * t + 8 + h][g] = half_of(lane(i), lane(i).b[1], h);
        }
    }
    for (int i = 0; i < 32; i++)
        for (int c = 0; c < 4; c++) {
            int row = i / 4 + c / 2 * 8, column = i % 4 * 2 + c % 2;
            float sum = lane(i).c[c];
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            lane(i).c[c] = sum;
        }
}

static inline void multiply_int8(void** lanes, unsigned) {
    auto lane = [&](int i) -> Matrices& { return *(Matrices*)lanes[i]; };
    int8_t a[16][32], b[32][8];
    for (int i = 0; i < 32; i++) {
        int g = i / 4, t = i % 4;
        for (int h = 0; h < 4; h++) {
            a[g][4 * t + h] = lane(i).a[0] >> 8 * h, a[g + 8][4 * t + h] = lane(i).a[1] >> 8 * h;
            a[g][16 + 4 * t + h] = lane(i).a[2] >> 8 * h, a[g + 8][16 + 4 * t + h] = lane(i).a[3] >> 8 * h;
            b[4 * t + h][g] = lane(i).b[0] >> 8 * h, b[16 + 4 * t + h][g] = lane(i).b[1] >> 8 * h;
        }
    }
    for (int i = 0; i < 32; i++)
        for (int c = 0; c < 4; c++) {
            int row = i / 4 + c / 2 * 8, column = i % 4 * 2 + c % 2, sum = 0;
            for (int k = 0; k < 32; k++) sum += (int)a[row][k] * b[k][column];
            lane(i).integers[c] = sum;
        }
}
}  // namespace emu

static inline void emu_mma_16(bool f16, float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    emu::Matrices mine = {f16, c, nullptr, {a0, a1, a2, a3}, {b0, b1}};
    emu::collective(emu::multiply_16, &mine);
}
static inline void emu_mma_int8(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    emu::Matrices mine = {false, nullptr, c, {a0, a1, a2, a3}, {b0, b1}};
    emu::collective(emu::multiply_int8, &mine);
}

// One entry per kernel: name -> launch.
#define EMU_ENTRY(name)                                                                                                             \
    extern "C" const char* launch_##name(const unsigned* grid, unsigned threads, void** args, unsigned schedule) {                  \
        return emu::launch(emu::call<name>, grid, threads, args, schedule);                                                         \
    }
