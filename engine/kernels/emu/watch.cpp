// Watches what kernels do with memory on the CPU shim, as a sanitizer does on a device: built beside the kernels, which the compiler
// then makes call here before every load and store (-fsanitize=thread, whose own run-time library is not linked).
//
// Reported are accesses outside what a kernel was given, stores to what it may only read, vectors that do not lie on a multiple of
// their size, shared memory that is read before its block has written it, and races: two accesses to one byte, one of them a store, by
// two threads that nothing orders. What orders threads is a barrier of the block or, within a warp, of the warp; shuffles and votes do not, as CUDA says
// of them. A race is found whatever the schedule, as order is a matter of these and not of who came first.
//
// Of kernels that may begin while those before them run, a driver has reported what they touch too early: before they wait for the others
// (wait_for_inputs), nothing may be stored, and nothing loaded that a kernel has stored since the host last waited for the device. There rows that
// pad a batch may store to one cell, which nobody reads: two stores that race are reported when what they left is loaded.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

// Memory of a launch; the layout is that of the tests' Rust.
struct Range { uint64_t start, bytes, is_writable; };

// Who touched a byte last, and when: barriers of the block and turns of the warp count up.
struct Mark {
    uint32_t block, barrier, turn;
    int32_t thread;
    // Since that barrier other warps did so, too; in that turn other lanes; in this launch other blocks.
    bool warps, lanes, blocks;
};
struct Byte {
    Mark write, read;
    // Of a driver's launches: the last that stored here, and whether two of its stores raced.
    uint32_t stored;
    bool is_raced;
};

static const uintptr_t PAGE = 4096;
static thread_local std::vector<Range> announced;
static std::vector<Range> ranges;
static std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages;
static std::vector<uint32_t> turns;
// Threads that have waited for the kernels before theirs.
static std::vector<bool> waited;
// Of a driver's launches: all, and those that the host has waited for.
static uint32_t launches = 0, settled = 0;
static bool is_driven = false, is_early = false;
static Range shared, module, stacks;
static int32_t thread = -1;
// Blocks of all launches count up; the first of this one.
static uint32_t block = 0, first_block = 1, barrier = 0;
static char found[200];

static bool holds(const Range& range, uint64_t at, uint64_t bytes) { return at - range.start < range.bytes && at + bytes - range.start <= range.bytes; }

// The shim's: ends what the running thread does. What it was about to do does not happen.
extern "C" void emu_stop();

static void report(const char* what, int32_t other, uint64_t at) {
    bool is_shared = holds(shared, at, 1);
    int length = snprintf(found, sizeof found, "%s: thread %d", what, thread);
    if (other >= 0) length += snprintf(found + length, sizeof found - length, " and thread %d", other);
    snprintf(found + length, sizeof found - length, ", %s memory, after %u barriers", is_shared ? "shared" : "global", barrier);
    emu_stop();
}

static Byte& byte_at(uint64_t at) {
    static uintptr_t last = 0;
    static Byte* held = nullptr;
    if (pages.empty() || at / PAGE != last || !held) {
        auto& page = pages[at / PAGE];
        if (!page) page.reset(new Byte[PAGE]());
        last = at / PAGE, held = page.get();
    }
    return held[at % PAGE];
}

static bool is_of_launch(const Mark& mark) { return mark.block >= first_block; }

// Whether what a mark says came before this thread's next access.
static bool is_before(const Mark& mark) {
    if (!is_of_launch(mark)) return true;
    if (mark.blocks || mark.block != block) return false;
    if (mark.barrier < barrier) return true;
    if (mark.warps || mark.thread / 32 != thread / 32) return false;
    return mark.turn < turns[thread / 32] || (!mark.lanes && mark.thread == thread);
}

static Mark mark_now() { return {block, barrier, turns[thread / 32], thread, false, false, false}; }

// A load joins those before it.
static Mark joined(const Mark& mark) {
    Mark now = mark_now();
    if (!is_of_launch(mark)) return now;
    now.blocks = mark.blocks || mark.block != block;
    if (mark.block != block || mark.barrier < barrier) return now;
    now.warps = mark.warps || mark.thread / 32 != thread / 32;
    now.lanes = mark.turn == now.turn && (mark.lanes || mark.thread != thread);
    return now;
}

static void touch(uint64_t at, uint64_t bytes, bool is_store) {
    if (thread < 0 || holds(stacks, at, bytes)) return;
    bool is_shared = holds(shared, at, bytes);
    if (!is_shared) {
        if (holds(module, at, bytes) && !is_store) return;
        auto after = std::upper_bound(ranges.begin(), ranges.end(), at, [](uint64_t at, const Range& range) { return at < range.start; });
        const Range* range = after == ranges.begin() ? nullptr : &*(after - 1);
        if (!range || !holds(*range, at, bytes)) return report(is_store ? "a store out of bounds" : "a load out of bounds", -1, at);
        if (is_store && !range->is_writable) return report("a store to what is only read", -1, at);
        if (!range->is_writable) return;
    }
    bool is_too_early = is_early && !is_shared && !waited[thread];
    if (is_too_early && is_store) return report("a store before the kernels before have ended", -1, at);
    for (uint64_t i = at; i < at + bytes; i++) {
        Byte& byte = byte_at(i);
        if (is_driven && !is_shared) {
            if (!is_store && byte.is_raced) return report("a load of what two stores raced for", -1, i);
            if (is_too_early && byte.stored > settled) return report("a load before the kernels before have ended", -1, i);
            if (is_store && byte.stored != launches) byte.stored = launches, byte.is_raced = false;
        }
        // Every block has shared memory of its own.
        if (is_shared && byte.write.block != block) byte.write = Mark();
        if (is_shared && byte.read.block != block) byte.read = Mark();
        if (!is_before(byte.write)) {
            if (!is_store || !is_driven || is_shared) return report(is_store ? "two stores race" : "a load races with a store", byte.write.thread, i);
            byte.is_raced = true;
        }
        if (is_store) {
            if (!is_before(byte.read)) return report("a store races with a load", byte.read.thread, i);
            byte.write = mark_now(), byte.read = Mark();
        } else {
            if (is_shared && !is_of_launch(byte.write)) return report("a load of what no thread has stored", -1, i);
            byte.read = joined(byte.read);
        }
    }
}

static void aligned(void* at, uint64_t bytes, bool is_store) {
    if (thread >= 0 && (uint64_t)at % bytes) return report(is_store ? "a store off its alignment" : "a load off its alignment", -1, (uint64_t)at);
    touch((uint64_t)at, bytes, is_store);
}

// ---- what the shim says ----

extern "C" {
// Memory of the next launch by this thread of the operating system.
void emu_announce(const Range* given, size_t count) {
    announced.assign(given, given + count);
    std::sort(announced.begin(), announced.end(), [](const Range& a, const Range& b) { return a.start < b.start; });
}

void watch_launch(const Range* own, size_t threads, bool may_be_early) {
    ranges.swap(announced);
    announced.clear();
    shared = own[0], module = own[1], stacks = own[2];
    turns.assign((threads + 31) / 32, 0);
    waited.assign(threads, false);
    // A driver's memory stays where it is; that of others is somebody else's by now.
    if (!is_driven) pages.clear();
    first_block = block + 1, found[0] = 0, is_early = may_be_early, launches++;
}
void watch_block() {
    block++, barrier = 0;
    std::fill(turns.begin(), turns.end(), 0);
    std::fill(waited.begin(), waited.end(), false);
}
// A thread's code runs from here on; -1: the shim's own.
void watch_thread(int now) { thread = now; }
// The running thread knows that the kernels before have ended.
void watch_waited() { waited[thread] = true; }
// A driver's host has waited for all that was launched.
void emu_settle() { is_driven = true, settled = launches; }
// A driver has put something else there, or has given the memory to somebody else.
void emu_overwritten(uint64_t at, size_t bytes) {
    for (uint64_t i = at; i < at + bytes; i++) {
        auto page = pages.find(i / PAGE);
        if (page != pages.end()) page->second[i % PAGE].stored = 0, page->second[i % PAGE].is_raced = false;
    }
}
void watch_barrier() { barrier++; }
void watch_turn(unsigned warp) { turns[warp]++; }
const char* watch_found() { return found[0] ? found : nullptr; }

// ---- what the compiler calls ----

#define WATCH(bytes)                                                                           \
    void __tsan_read##bytes(void* at) { aligned(at, bytes, false); }                           \
    void __tsan_write##bytes(void* at) { aligned(at, bytes, true); }                           \
    void __tsan_unaligned_read##bytes(void* at) { touch((uint64_t)at, bytes, false); }         \
    void __tsan_unaligned_write##bytes(void* at) { touch((uint64_t)at, bytes, true); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
void __tsan_read_range(void* at, size_t bytes) { touch((uint64_t)at, bytes, false); }
void __tsan_write_range(void* at, size_t bytes) { touch((uint64_t)at, bytes, true); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    touch((uint64_t)from, bytes, false), touch((uint64_t)to, bytes, true);
    return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    touch((uint64_t)to, bytes, true);
    return memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
