// A CUDA driver library without a device: what the backend calls, over the CPU shim of the kernels. Memory is host memory that
// begins as NaNs, graphs are lists of launches. Streams do their work at once; or, where a test says so, as late as they may, which is when
// somebody waits for it, and then no more of it than that takes; or now and then, by chance. kernels.inc names all kernels and the most threads
// that a block of each may have: NAMED(name, threads).
#include "shim.h"
#include "all.cu"

#ifdef KVLAB_EMU_WATCH
extern "C" void emu_announce(const Range*, size_t);
extern "C" void emu_settle();
extern "C" void emu_overwritten(uint64_t at, size_t bytes);
#else
static inline void emu_settle() {}
static inline void emu_overwritten(uint64_t, size_t) {}
#endif

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <string>

using Handle = void*;
typedef int Result;
static const Result OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, UNSUPPORTED = 900, SPOILT = 901, NOT_FOUND = 500, TOO_MANY_THREADS = 701, FAILED = 719;
static const size_t MEMORY = (size_t)1 << 30;
static size_t used = 0;
static std::map<uint64_t, size_t> sizes, pinned;

struct Entry {
    const char* name;
    void (*call)(void**);
    size_t arguments;
    unsigned threads;
};
template <class... A>
static size_t count(void (*)(A...)) { return sizeof...(A); }
static const Entry entries[] = {
#define NAMED(name, threads) {#name, emu::call<name>, count(name), threads},
#include "kernels.inc"
#undef NAMED
};

// A kernel over blocks, or what a library computes by itself from some words.
struct Launch {
    const Entry* entry;
    unsigned grid[3], threads;
    std::vector<uint64_t> words;
    Result (*library)(const uint64_t*);
    // It may begin before those before it in its stream have ended.
    bool is_early;
    Result run() {
        if (library) return library(words.data());
        std::vector<void*> at;
        for (uint64_t& word : words) at.push_back(&word);
#ifdef KVLAB_EMU_WATCH
        std::vector<Range> ranges;
        for (auto& [start, bytes] : sizes) ranges.push_back({start, bytes, 1});
        emu_announce(ranges.data(), ranges.size());
#endif
        const char* wrong = emu::launch(entry->call, grid, threads, at.data(), 0, is_early);
        if (wrong) fprintf(stderr, "%s: %s\n", entry->name, wrong);
        return wrong ? FAILED : OK;
    }
};
struct Graph { std::vector<Launch> launches; };
static Graph* recorded = nullptr;
static bool spoilt = false;
static double now = 0;

// Both ends must lie in one allocation.
static bool lies_in(const std::map<uint64_t, size_t>& sizes, uint64_t at, size_t bytes) {
    auto after = sizes.upper_bound(at);
    if (after == sizes.begin()) return false;
    --after;
    return at + bytes <= after->first + after->second;
}
static bool inside(uint64_t at, size_t bytes) { return lies_in(sizes, at, bytes); }

// ---- streams ----

struct Stream;
// One recording of an event: waiting for an event is waiting for the recording that it had last.
struct Recording {
    Stream* stream;
    bool is_done = false;
    double time = 0;
};
static std::deque<Recording> recordings;
struct Event { Recording* last = nullptr; };
struct Work {
    std::function<Result()> run;
    // Of another stream, before this.
    Recording* after;
};
struct Stream {
    std::deque<Work> queue;
    // What went wrong, until somebody asks.
    Result failure = OK;
};
static std::vector<Stream*> streams;
// When work is done: 0 at once, 1 late, n by a generator seeded with n.
static unsigned pace = 0;
static uint64_t chance;

// Does a stream's work until a recording is done; without one, all of it, or so many pieces.
static Result finish(Stream* stream, Recording* until, unsigned pieces = ~0u) {
    while (pieces-- && !stream->queue.empty() && !(until && until->is_done)) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        if (work.after && !work.after->is_done) finish(work.after->stream, work.after);
        Result result = work.run ? work.run() : OK;
        if (result) stream->failure = result;
    }
    return stream->failure;
}
static Result finish_all() {
    Result result = OK;
    for (Stream* stream : streams)
        if (Result failure = finish(stream, nullptr)) result = failure;
    emu_settle();
    return result;
}
static bool is_stream(Handle stream) { return std::count(streams.begin(), streams.end(), (Stream*)stream); }
static Result queue(Handle stream, std::function<Result()> run, Recording* after = nullptr) {
    Stream* at = (Stream*)stream;
    if (!is_stream(stream)) return INVALID;
    at->queue.push_back({std::move(run), after});
    if (!pace) return finish(at, nullptr);
    if (pace == 1) return OK;
    for (Stream* stream : streams) {
        chance = chance * 6364136223846793005ull + 1442695040888963407ull;
        // Less than is queued, so that work heaps up, and now and then a few pieces at once.
        unsigned pieces = chance >> 33 & 15;
        finish(stream, nullptr, pieces < 4 ? pieces : 0);
    }
    return OK;
}

struct Config {
    unsigned grid[3], block[3], shared;
    Handle stream, attributes;
    unsigned count;
};

// Devices: one, or as many as a test says.
static int devices() {
    const char* said = getenv("IMITATED_DEVICES");
    return said ? atoi(said) : 1;
}

// What a thread may not do while it records a graph, and what is not imitated there; it spoils the graph.
#define NOT_WHILE_RECORDING \
    if (recorded) return spoilt = true, UNSUPPORTED

extern "C" {
void imitated_pace(unsigned said) { finish_all(), pace = said, chance = said; }
// For cublaslt.cpp: work that a stream takes, and whether memory is of the device.
Result imitated_queue(Result (*library)(const uint64_t*), const uint64_t* words, size_t count, Handle stream) {
    Launch launch = {nullptr, {1, 1, 1}, 1, std::vector<uint64_t>(words, words + count), library, false};
    if (recorded) return recorded->launches.push_back(launch), OK;
    return queue(stream, [launch]() mutable { return launch.run(); });
}
int imitated_inside(uint64_t at, size_t bytes) { return inside(at, bytes); }

Result cuInit(unsigned) { return devices() ? OK : NO_DEVICE; }
// 12.8, or what a test says.
Result cuDriverGetVersion(int* version) {
    const char* said = getenv("IMITATED_DRIVER");
    return *version = said ? atoi(said) : 12080, OK;
}
Result cuDeviceGetCount(int* count) { return *count = devices(), OK; }
Result cuDeviceGet(int* device, int) { return *device = 0, OK; }
Result cuDeviceGetName(char* name, int len, int) { return snprintf(name, len, "no device"), OK; }
Result cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = MEMORY, OK; }
Result cuDeviceGetAttribute(int* value, int what, int) {
    *value = what == 75 ? 9 : what == 76 ? 0 : what == 16 ? 4 : 1 << 20;
    return OK;
}
Result cuDevicePrimaryCtxRetain(Handle* context, int) { return *context = (Handle)1, OK; }
Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }
Result cuCtxSetCurrent(Handle) { return OK; }
Result cuCtxSynchronize() {
    NOT_WHILE_RECORDING;
    return finish_all();
}
Result cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = MEMORY - used, *total = MEMORY, OK; }
Result cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    NOT_WHILE_RECORDING;
    if (bytes > MEMORY - used) return NO_MEMORY;
    void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(memory, 0xff, bytes);
    emu_overwritten((uint64_t)memory, bytes);
    *at = (uint64_t)memory, sizes[*at] = bytes, used += bytes;
    return OK;
}
Result cuMemFree_v2(uint64_t at) {
    NOT_WHILE_RECORDING;
    if (!sizes.count(at)) return INVALID;
    finish_all();
    used -= sizes[at], sizes.erase(at), free((void*)at);
    return OK;
}
Result cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    NOT_WHILE_RECORDING;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return pinned[(uint64_t)*at] = bytes, OK;
}
// Waits for nobody: a copy that comes later finds the memory gone.
Result cuMemFreeHost(void* at) {
    NOT_WHILE_RECORDING;
    if (!pinned.erase((uint64_t)at)) return INVALID;
    return free(at), OK;
}
Result cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    NOT_WHILE_RECORDING;
    if (!inside(to, bytes)) return INVALID;
    return emu_overwritten(to, bytes), memcpy((void*)to, from, bytes), OK;
}
Result cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    NOT_WHILE_RECORDING;
    if (!inside(from, bytes)) return INVALID;
    return memcpy(to, (void*)from, bytes), OK;
}
// Host memory of these two must be pinned, and still be there when its turn comes.
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Handle stream) {
    NOT_WHILE_RECORDING;
    return queue(stream, [=] { return lies_in(pinned, (uint64_t)from, bytes) ? cuMemcpyHtoD_v2(to, from, bytes) : INVALID; });
}
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Handle stream) {
    NOT_WHILE_RECORDING;
    return queue(stream, [=] { return lies_in(pinned, (uint64_t)to, bytes) ? cuMemcpyDtoH_v2(to, from, bytes) : INVALID; });
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Handle stream) {
    NOT_WHILE_RECORDING;
    if (!inside(to, bytes) || !inside(from, bytes)) return INVALID;
    return queue(stream, [=] { return emu_overwritten(to, bytes), memmove((void*)to, (void*)from, bytes), OK; });
}
Result cuMemsetD8_v2(uint64_t at, unsigned char byte, size_t bytes) {
    NOT_WHILE_RECORDING;
    if (!inside(at, bytes)) return INVALID;
    return emu_overwritten(at, bytes), memset((void*)at, byte, bytes), OK;
}
Result cuStreamCreate(Handle* stream, unsigned) { return streams.push_back(new Stream), *stream = streams.back(), OK; }
Result cuStreamDestroy_v2(Handle stream) {
    auto at = std::find(streams.begin(), streams.end(), (Stream*)stream);
    if (at == streams.end()) return INVALID;
    finish(*at, nullptr);
    return delete *at, streams.erase(at), OK;
}
Result cuStreamSynchronize(Handle stream) {
    NOT_WHILE_RECORDING;
    if (!is_stream(stream)) return INVALID;
    Result result = finish((Stream*)stream, nullptr);
    return emu_settle(), result;
}
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned) {
    NOT_WHILE_RECORDING;
    return queue(stream, nullptr, ((Event*)event)->last);
}
Result cuEventCreate(Handle* event, unsigned) { return *event = new Event, OK; }
Result cuEventDestroy_v2(Handle event) { return delete (Event*)event, OK; }
Result cuEventRecord(Handle event, Handle stream) {
    NOT_WHILE_RECORDING;
    Recording* recording = &recordings.emplace_back(Recording{(Stream*)stream});
    ((Event*)event)->last = recording;
    return queue(stream, [recording] { return recording->time = now += 1, recording->is_done = true, OK; });
}
Result cuEventSynchronize(Handle event) {
    NOT_WHILE_RECORDING;
    Recording* last = ((Event*)event)->last;
    return last && !last->is_done ? finish(last->stream, last) : OK;
}
Result cuEventElapsedTime(float* ms, Handle start, Handle end) {
    Recording *first = ((Event*)start)->last, *last = ((Event*)end)->last;
    if (!first || !last || !first->is_done || !last->is_done) return INVALID;
    return *ms = (float)(last->time - first->time), OK;
}
Result cuModuleLoadData(Handle* module, const void*) { return *module = (Handle)3, OK; }
Result cuModuleUnload(Handle) { return finish_all(); }
Result cuModuleGetFunction(Handle* function, Handle, const char* name) {
    for (const Entry& entry : entries)
        if (!strcmp(entry.name, name)) return *function = (Handle)&entry, OK;
    return NOT_FOUND;
}
Result cuLaunchKernelEx(const Config* config, Handle function, void** arguments, void**) {
    const Entry* entry = (const Entry*)function;
    const unsigned *grid = config->grid, threads = config->block[0];
    if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535 || !threads) return INVALID;
    if (threads > entry->threads) return TOO_MANY_THREADS;
    // Where a test says so, launches with attributes cannot be captured, and spoil what is recorded.
    if (recorded && config->count && getenv("IMITATED_PLAIN_GRAPHS")) return spoilt = true, INVALID;
    Launch launch = {entry, {grid[0], grid[1], grid[2]}, threads, {}, nullptr, config->count > 0};
    for (size_t i = 0; i < entry->arguments; i++) launch.words.push_back(*(uint64_t*)arguments[i]);
    if (recorded) return recorded->launches.push_back(launch), OK;
    return queue(config->stream, [launch]() mutable { return launch.run(); });
}
Result cuStreamBeginCapture_v2(Handle, unsigned) { return recorded = new Graph, OK; }
Result cuStreamEndCapture(Handle, Handle* graph) {
    Graph* done = recorded;
    recorded = nullptr;
    if (!spoilt) return *graph = done, OK;
    delete done;
    return spoilt = false, *graph = nullptr, SPOILT;
}
Result cuGraphInstantiateWithFlags(Handle* exec, Handle graph, unsigned long long) { return *exec = new Graph(*(Graph*)graph), OK; }
Result cuGraphDestroy(Handle graph) { return delete (Graph*)graph, OK; }
Result cuGraphExecDestroy(Handle exec) { return delete (Graph*)exec, OK; }
Result cuGraphLaunch(Handle exec, Handle stream) {
    NOT_WHILE_RECORDING;
    Graph graph = *(Graph*)exec;
    return queue(stream, [graph]() mutable {
        for (Launch& launch : graph.launches)
            if (Result result = launch.run()) return result;
        return OK;
    });
}
Result cuGetErrorName(Result, const char** text) { return *text = "ERROR", OK; }
Result cuGetErrorString(Result result, const char** text) {
    return *text = result == NO_DEVICE ? "no CUDA-capable device is detected" : "an error", OK;
}
}
