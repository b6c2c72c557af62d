// Batches: groups spread over threads. The groups do not depend on the number of threads, so
// neither do the answers.
#pragma once
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "gradients.hpp"
#include "group.hpp"

namespace diffopt {

// Many QPs across the lanes, or one at a time.
struct Plan {
    bool across, shared, diagonal;
};

// A group across the lanes works on WIDTH times the numbers: past about this many bytes one QP at a
// time is faster, and below it a group takes as long as one QP (nothing to hold) to WIDTH of them.
// Measured on a core with 1 MB of second-level cache.
constexpr double ACROSS_BYTES = 1.6e6;

inline bool is_diagonal(const Batch& b) {
    if (b.m || !b.bounded) return false;
    const long samples = b.Q.data && b.Q.batch ? b.size : (b.Q.data ? 1 : 0);
    for (long s = 0; s < samples; s++)
        for (long i = 0; i < b.n; i++)
            for (long j = 0; j < b.n; j++)
                if (i != j && b.Q.sample(s)[i * b.n + j] != 0) return false;  // NaN too
    return true;
}

inline Plan plan(const Batch& b) {
    const bool shared = b.Q.batch == 0 && b.G.batch == 0 && b.A.batch == 0 && b.size > 1;
    const bool diagonal = is_diagonal(b);
    const double n = b.n, N = n + b.e;
    double numbers = diagonal ? (double)b.e * b.e : N * N + n * N;
    if (!shared) numbers += (double)(b.m + b.e) * n + (diagonal ? b.e * n : n * n);
    const double share = 8.0 * WIDTH * numbers / ACROSS_BYTES;
    const bool across = share < 1 && b.size > 1.5 * (1 + (WIDTH - 2) * share);
    return {across, shared, diagonal};
}

struct Memory {
    void* data;
    explicit Memory(unsigned long bytes) : data(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {
        if (!data) throw std::bad_alloc();
    }
    ~Memory() { std::free(data); }
    Memory(const Memory&) = delete;
};

// Set by whoever may be asked to stop; `ask` is called by one thread only, now and then.
struct Interrupt {
    std::atomic<bool> stop{false};
    bool (*ask)() = nullptr;
};
inline thread_local Interrupt* current = nullptr;
inline thread_local bool asks = false;
inline bool interrupted() {
    if (!current) return false;
    if (current->stop.load(std::memory_order_relaxed)) return true;
    if (asks && current->ask()) current->stop = true;
    return current->stop.load(std::memory_order_relaxed);
}

// work(i, thread's own state) for i < count on `threads` threads, of which this is one.
template <class Start>
void spread(long count, int threads, Interrupt& interrupt, Start start) {
    std::atomic<long> next{0};
    std::atomic<int> running{0};
    std::atomic<bool> out_of_memory{false};
    auto body = [&](bool caller) {
        current = &interrupt, asks = caller;
        try {
            auto work = start();
            for (long i; (i = next++) < count && !interrupted();) work(i);
        } catch (const std::bad_alloc&) {
            out_of_memory = true;
        }
        current = nullptr;
    };
    std::vector<std::thread> others;
    others.reserve(threads > 0 ? threads : 1);
    const long most = count < threads ? count : threads;
    for (long i = 1; i < most; i++) {
        running++;
        try {
            others.emplace_back([&] { body(false), running--; });
        } catch (const std::system_error&) {  // no more threads to be had: fewer do it
            running--;
            break;
        }
    }
    body(true);
    current = &interrupt, asks = true;
    while (running && interrupt.ask) {
        if (!interrupted()) std::this_thread::yield();
    }
    current = nullptr;
    for (std::thread& t : others) t.join();
    if (out_of_memory) throw std::bad_alloc();
}

// The batch, and the memory of what outlives a solve: the shared matrices, then each group.
template <class T, class E>
struct Engine {
    const Batch& batch;
    const Settings& settings;
    Plan chosen;
    unsigned long shared_bytes = 0, group_bytes, work_bytes;
    long groups;

    Engine(const Batch& batch, const Settings& settings, Plan chosen)
        : batch(batch), settings(settings), chosen(chosen) {
        Arena tape{nullptr}, work{nullptr};
        Matrices<T, E> none{};
        Group<T, E> group(batch, settings, chosen.diagonal);
        group.carve(tape, work, chosen.shared ? &none : nullptr);
        group_bytes = (tape.used + 127) / 64 * 64;
        work_bytes = work.used + Group<T, E>::room(batch);
        groups = (batch.size + T::lanes - 1) / T::lanes;
        if (!chosen.shared) return;
        Arena a{nullptr};
        shared_matrices(a);
        shared_bytes = (a.used + 127) / 64 * 64;
    }

    // Of a tape that begins at a multiple of 64.
    unsigned long tape_bytes() const { return shared_bytes + groups * group_bytes; }

    Matrices<T, E> shared_matrices(Arena& a) const {
        Matrices<T, E> out{};
        double* numbers = a.take<double>(2);
        out.carve(a, batch.n, batch.m, batch.e, chosen.diagonal);
        if (a.base) out.curvature = E{} + numbers[0], out.poison = E{} + numbers[1];
        return out;
    }

    // Equilibrated once for all. A group's matrix entries are doubles here, whatever T.
    template <class S>
    void prepare_shared(char* base) const {
        std::memset(base, 0, shared_bytes);
        Arena a{base};
        double* numbers = a.take<double>(2);
        Matrices<S, double> M;
        M.carve(a, batch.n, batch.m, batch.e, chosen.diagonal);
        Memory room(Group<S, double>::room(batch));
        std::memset(room.data, 0, Group<S, double>::room(batch));
        Loader<S>(M, batch, chosen.diagonal, Arena{(char*)room.data}).run(0);
        numbers[0] = M.curvature, numbers[1] = M.poison;
    }

    // Each group with its memory: f(group, first sample).
    template <class F>
    void each_group(void* tape, int threads, Interrupt& interrupt, bool fresh, F f) const {
        Memory own(tape || !chosen.shared ? 0 : shared_bytes);
        char* base = (char*)(tape ? tape : own.data);
        if (chosen.shared && fresh) {
            if constexpr (T::pack == 1)
                prepare_shared<Single>(base);
            else
                prepare_shared<Within>(base);
        }
        spread(groups, threads, interrupt, [&] {
            auto work = std::make_unique<Memory>(work_bytes + (tape ? 0 : group_bytes));
            return [&, work = std::move(work)](long i) {
                char* room = (char*)work->data;
                char* kept = tape ? base + shared_bytes + i * group_bytes : room + work_bytes;
                if (T::pack > 1) {  // the entries that fill up a pack have to be zero
                    std::memset(room, 0, work_bytes);
                    if (fresh) std::memset(kept, 0, group_bytes);
                }
                Arena shared_arena{base}, tape_arena{kept}, work_arena{room};
                Group<T, E> group(batch, settings, chosen.diagonal);
                Matrices<T, E> shared;
                if (chosen.shared) shared = shared_matrices(shared_arena);
                group.shared = chosen.shared, group.keep = tape != nullptr;
                group.carve(tape_arena, work_arena, chosen.shared ? &shared : nullptr);
                f(group, i * T::lanes);
            };
        });
    }

    void solve(void* tape, int threads, Interrupt& interrupt, const Warm& warm,
               const Answers& out) const {
        each_group(tape, threads, interrupt, true,
                   [&](Group<T, E>& g, long first) { g.run(first, warm, out); });
    }

    void apply_inverse(void* tape, int threads, Interrupt& interrupt, bool transpose,
                       const double* v, double* x, double* error) const {
        each_group(tape, threads, interrupt, false, [&](Group<T, E>& g, long first) {
            g.apply_inverse(first, transpose, v, x, error);
        });
    }
};

// f with the engine that `plan` chooses.
template <class F>
void with_engine(const Batch& batch, const Settings& settings, Plan chosen, F f) {
    if (!chosen.across)
        f(Engine<Within, double>(batch, settings, chosen));
    else if (chosen.shared)
        f(Engine<Across, double>(batch, settings, chosen));
    else
        f(Engine<Across, Wide>(batch, settings, chosen));
}

// `pull_back` of every sample, in runs that are worth a thread.
inline void pull_back_all(const Batch& batch, int threads, Interrupt& interrupt, const double* x,
                          const double* u, const signed char* active, const Gradients& out) {
    const long numbers = (long)batch.n * (batch.n + batch.m + batch.e) + 1;
    const long run = numbers > (1 << 17) ? 1 : (1 << 17) / numbers;
    spread((batch.size + run - 1) / run, threads, interrupt, [&] {
        return [&](long i) {
            const long end = (i + 1) * run < batch.size ? (i + 1) * run : batch.size;
            for (long s = i * run; s < end; s++) pull_back<Single>(batch, s, x, u, active, out);
        };
    });
}

}  // namespace diffopt
