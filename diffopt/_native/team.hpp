// A team: the threads of a GPU that solve one problem together, a block or a warp of it.
//
// All threads run the same code on the same numbers; only the turns of loops are dealt out among
// them (`spread`), and what one has written the others may read when all have met. A branch is
// taken by all or by none: what decides has been put together, in the same order, from all.
//
// Compiled as C++ the threads are those of a CPU, one or as many as `seat` says, so that the
// arithmetic, and the meetings, are tested on machines without a GPU.
#pragma once
#include "products.hpp"

#ifndef __CUDACC__
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace diffopt {

// A warp: threads that exchange registers; a span of it: those that share a row.
#ifdef __CUDACC__
constexpr unsigned ALL = 0xffffffffu;

INLINE constexpr int warp() { return 32; }
INLINE constexpr int span() { return 8; }
INLINE constexpr int threads() { return DIFFOPT_THREADS; }
INLINE int thread() { return threadIdx.x % DIFFOPT_THREADS; }
INLINE void wait_for_all() {
    if (threads() == warp())
        __syncwarp();
    else
        __syncthreads();
}
INLINE double* mailbox() {
    __shared__ double room[DIFFOPT_THREADS / 32];
    return room;
}
// The number of the thread that is `distance` away in the warp.
INLINE double partner(double a, int distance) { return __shfl_xor_sync(ALL, a, distance); }
#else
// What a thread hands to its partners. Relaxed: like the exchange of registers, it orders nothing.
struct Wire {
    static constexpr int TURNS = 16;  // no partner is that far behind
    std::atomic<double> value[TURNS];
    std::atomic<long> turn{0};
};

// Where threads of a CPU wait for each other, and leave numbers.
struct Meeting {
    explicit Meeting(int count) : expected(count), mail(count), wires(count) {}
    void wait() {
        std::unique_lock<std::mutex> held(lock);
        const long round = rounds;
        if (++arrived == expected) {
            arrived = 0, rounds++;
            all_there.notify_all();
        } else {
            all_there.wait(held, [&] { return rounds != round; });
        }
    }
    std::mutex lock;
    std::condition_variable all_there;
    int expected, arrived = 0;
    long rounds = 0;
    std::vector<double> mail;
    std::vector<Wire> wires;
};

struct Seat {
    int thread = 0, threads = 1;
    Meeting* meeting = nullptr;
};
inline thread_local Seat seat;

INLINE int threads() { return seat.threads; }
INLINE int thread() { return seat.thread; }
// Teams of 4, 8, ... have warps of four.
INLINE int warp() { return threads() % 4 ? 1 : 4; }
INLINE int span() { return threads() % 4 ? 1 : 2; }
INLINE void wait_for_all() {
    if (seat.meeting) seat.meeting->wait();
}
INLINE double* mailbox() {
    static thread_local double own;
    return seat.meeting ? seat.meeting->mail.data() : &own;
}
inline double partner(double a, int distance) {
    Wire &own = seat.meeting->wires[thread()], &other = seat.meeting->wires[thread() ^ distance];
    const long turn = own.turn.load(std::memory_order_relaxed) + 1;
    own.value[turn % Wire::TURNS].store(a, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // enough where stores stay in order: x86
    own.turn.store(turn, std::memory_order_relaxed);
    while (other.turn.load(std::memory_order_relaxed) < turn) std::this_thread::yield();
    return other.value[turn % Wire::TURNS].load(std::memory_order_relaxed);
}
#endif

struct Team {
    using V = double;
    using P = double;
    using Mask = bool;
    static constexpr int lanes = 1, pack = 1;
    static constexpr bool team = true;
    // Odd: threads that read a column of rows in shared memory find them in different banks.
    static constexpr int stride(int n) { return n | 1; }

    static INLINE void meet() { wait_for_all(); }
    static INLINE bool leads() { return thread() == 0; }
    template <class F>
    static INLINE void spread(int begin, int end, F f) {
        ROLLED for (int j = begin + thread(); j < end; j += threads()) f(j);
    }
    template <class Row>
    static INLINE void grid(int rows, int columns, Row row) {
        ROLLED for (int t = thread(); t < rows * columns; t += threads())
            row(t / columns)(t % columns);
    }

    static OUTLINE double sum(double a) {
        return together(a, [](double x, double y) { return x + y; });
    }
    static OUTLINE double max(double a) {
        return together(a, [](double x, double y) { return largest(x, y); });
    }
    static double sum_of_threads(double a) { return sum(a); }
    static double most_of_threads(double a) { return max(a); }

    // The numbers of all threads, put together in one order: within each warp, then the warps.
    template <class F>
    static INLINE double together(double a, F f) {
        for (int distance = warp() / 2; distance; distance /= 2) a = f(a, partner(a, distance));
        if (threads() == warp()) {
            meet();
            return a;
        }
        double* mail = mailbox();
        if (thread() % warp() == 0) mail[thread() / warp()] = a;
        meet();
        a = mail[0];
        for (int w = 1; w < threads() / warp(); w++) a = f(a, mail[w]);
        meet();  // all have read it: it may be written again
        return a;
    }

    // f(row, sum over j of term(row, j)), span() threads a row; one of them calls f.
    template <class Term, class F>
    static INLINE void each_row(int rows, int n, Term term, F f) {
        const int lane = thread() % span(), own = thread() / span(), step = threads() / span();
        for (int first = 0; first < rows; first += step) {
            const int i = first + own;
            double a = 0;
            for (int j = lane; i < rows && j < n; j += span()) term(a, i, j);
            f(i, a, lane == 0 && i < rows);
        }
    }

    // y = M x.
    static OUTLINE void multiply(const double* M, int ld, int rows, int n, const double* x,
                                 double* y) {
        auto term = [&](double& a, int i, int j) { a += M[(long)i * ld + j] * x[j]; };
        each_row(rows, n, term, [&](int i, double a, bool writes) {
            for (int distance = span() / 2; distance; distance /= 2) a += partner(a, distance);
            if (writes) y[i] = a;
        });
        meet();
    }

    // out += M' y.
    static OUTLINE void multiply_transposed(const double* M, int ld, int rows, int n,
                                            const double* y, double* out) {
        spread(0, n, [&](int j) {
            double a = 0;
            for (int i = 0; i < rows; i++) a += M[(long)i * ld + j] * y[i];
            out[j] += a;
        });
        meet();
    }

    // out_i = max_j |M_ij| d_j if wanted, columns_j = max(columns_j, max_i |M_ij| e_i); and the sum
    // of 0 M_ij: zero, or NaN if an entry is not finite.
    static OUTLINE double norms(const double* M, int ld, int rows, int n, const double* d,
                                const double* e, double* out, double* columns) {
        auto term = [&](double& a, int i, int j) {
            a = greater(diffopt::size(M[(long)i * ld + j]) * d[j], a);
        };
        each_row(out ? rows : 0, n, term, [&](int i, double a, bool writes) {
            for (int distance = span() / 2; distance; distance /= 2)
                a = greater(a, partner(a, distance));
            if (writes) out[i] = a;
        });
        double zero = 0;
        spread(0, n, [&](int j) {
            double most = columns[j];
            for (int i = 0; i < rows; i++) {
                const double x = diffopt::size(M[(long)i * ld + j]);
                zero += x * 0.0, most = greater(x * e[i], most);
            }
            columns[j] = most;
        });
        return sum(zero);
    }
};

}  // namespace diffopt
