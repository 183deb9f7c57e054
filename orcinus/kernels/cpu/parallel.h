// Work on as many threads as torch is told to use.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "helpers.h"

namespace orcinus {

using NumThreads = int32_t (*)(uint32_t* num_threads);

// Torch's, by address. Set once by the loader, before any kernel runs.
inline NumThreads& num_threads() {
    static NumThreads function = nullptr;
    return function;
}

// Calls task(i, next) for i in 0 .. count - 1, each once, in any order, on any thread; `next` is what the same thread will
// be given afterwards (count: nothing), so that it can be fetched meanwhile. Tasks are dealt one by one, because a
// neighbour on one core would otherwise hold up the whole product; nothing in a task may depend on who runs it.
template <class Task>
void for_each_task_ahead(int64_t count, const Task& task) {
    uint32_t available = 1;
    if (count > 1) num_threads()(&available);
    if (available <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++) task(i, i + 1);
        return;
    }
    struct Context {
        const Task* task;
        int64_t count;
        std::atomic<int64_t> next;

        int64_t claim() {
            const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
            return i < count ? i : count;
        }
    } context{&task, count, {0}};
    const int64_t workers = count < available ? count : available;
    Helpers::instance().run(
        static_cast<int>(workers - 1),
        [](void* opaque) {
            auto* shared = static_cast<Context*>(opaque);
            for (int64_t i = shared->claim(); i < shared->count;) {
                const int64_t next = shared->claim();
                (*shared->task)(i, next);
                i = next;
            }
        },
        &context);
}

// The same where what comes next doesn't matter.
template <class Task>
void for_each_task(int64_t count, const Task& task) {
    for_each_task_ahead(count, [&](int64_t i, int64_t) { task(i); });
}

// Splits rows into ranges of at least `grain` rows; each range is [begin, end).
template <class Range>
void for_row_ranges(int64_t rows, int64_t grain, const Range& range) {
    if (grain < 1) grain = 1;
    const int64_t count = (rows + grain - 1) / grain;
    for_each_task(count, [&](int64_t i) { range(i * grain, i + 1 == count ? rows : (i + 1) * grain); });
}

// Scratch memory that grows and is reused by its thread, aligned to a cache line. Holds no state between calls.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    template <class T>
    T* take(int64_t count) {
        const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        if (bytes > bytes_) {
            std::free(memory_);
            memory_ = std::aligned_alloc(64, bytes);
            if (memory_ == nullptr) std::abort();
            bytes_ = bytes;
        }
        return static_cast<T*>(memory_);
    }

  private:
    void* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace orcinus
