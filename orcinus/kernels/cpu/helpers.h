// Threads that help one caller at a time, and that nobody waits for unless they are at work.
//
// OpenMP's join waits for every thread, also for one that the system hasn't let run yet: with a neighbour on its core that
// is a time slice of milliseconds, paid at each of an iteration's hundred kernels. Here the caller works through the tasks
// itself and closes the gate behind the last one; a helper that comes later finds it closed.
#pragma once
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <immintrin.h>
#include <mutex>

namespace orcinus {

class Helpers {
  public:
    using Work = void (*)(void* context);

    // Those of this process; a fork takes no threads along, so its child has its own.
    static Helpers& instance() {
        static const int registered = pthread_atfork(nullptr, nullptr, [] { current().store(new Helpers); });
        (void)registered;
        return *current().load();
    }

    // work(context) here, and at the same time on up to `count` helpers. All that began has ended on return.
    void run(int count, Work work, void* context) {
        const std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine) return work(context);  // another caller has them
        while (started_ < count && start()) {}
        work_ = work;
        context_ = context;
        wanted_.store(count, std::memory_order_relaxed);
        gate_.fetch_and(~CLOSED, std::memory_order_release);
        call_.fetch_add(1, std::memory_order_seq_cst);
        if (sleeping_.load(std::memory_order_seq_cst) > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
        work(context);
        gate_.fetch_or(CLOSED, std::memory_order_acq_rel);
        for (int turn = 0; gate_.load(std::memory_order_acquire) != CLOSED; turn++)
            turn < PATIENCE ? _mm_pause() : (void)sched_yield();
    }

  private:
    static constexpr uint32_t CLOSED = 1u << 31;  // below it: how many helpers are within
    static constexpr int PATIENCE = 5000;         // some 100 µs, longer than from one kernel to the next

    static std::atomic<Helpers*>& current() {
        static std::atomic<Helpers*> helpers{new Helpers};
        return helpers;
    }

    struct Start {
        Helpers* helpers;
        int index;
    };

    bool start() {
        auto* start = new Start{this, started_};
        sigset_t all, before;
        sigfillset(&all);
        // Signals are for the threads that Python knows.
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_t thread;
        const bool begun = pthread_create(&thread, nullptr, &Helpers::live, start) == 0;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (!begun) {
            delete start;
            return false;
        }
        pthread_detach(thread);
        started_++;
        return true;
    }

    static void* live(void* opaque) {
        auto* given = static_cast<Start*>(opaque);
        const Start me = *given;
        delete given;
        for (uint32_t seen = 0;;) {
            seen = me.helpers->wait(seen);
            if (me.index < me.helpers->wanted_.load(std::memory_order_relaxed)) me.helpers->help();
        }
        return nullptr;
    }

    // The number of a call later than `seen`.
    uint32_t wait(uint32_t seen) {
        for (int turn = 0;; turn++) {
            const uint32_t call = call_.load(std::memory_order_acquire);
            if (call != seen) return call;
            if (turn < PATIENCE) {
                _mm_pause();
                continue;
            }
            sleeping_.fetch_add(1, std::memory_order_seq_cst);
            futex(FUTEX_WAIT_PRIVATE, seen);
            sleeping_.fetch_sub(1, std::memory_order_relaxed);
        }
    }

    void help() {
        if ((gate_.fetch_add(1, std::memory_order_acq_rel) & CLOSED) == 0) work_(context_);
        gate_.fetch_sub(1, std::memory_order_release);
    }

    void futex(int operation, uint32_t value) {
        static_assert(sizeof(call_) == sizeof(uint32_t));
        syscall(SYS_futex, &call_, operation, value, nullptr, nullptr, 0);
    }

    std::mutex busy_;
    int started_ = 0;
    Work work_ = nullptr;
    void* context_ = nullptr;
    std::atomic<int> wanted_{0}, sleeping_{0};
    alignas(64) std::atomic<uint32_t> gate_{CLOSED};
    alignas(64) std::atomic<uint32_t> call_{0};
};

}  // namespace orcinus
