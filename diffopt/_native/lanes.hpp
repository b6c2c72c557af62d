// Values: what one entry of a matrix or vector is, so that the rest is written once.
//
// * Across: an entry holds that entry of WIDTH problems, one a SIMD lane, for batches of small QPs.
// * Within: an entry is one number of one problem, and WIDTH neighbours in a row make a pack.
// * Team (team.hpp): an entry is one number of one problem, which the threads of a GPU share.
//
// V is an entry, P a pack: what the inner loops work on. Across, both are one vector; within, V is
// a double and P a vector of a row; of a team, both are a double. Every loop that writes goes
// through T::spread or T::grid, or what is made of them (`each`, `entries`, `most`, `total`): they
// deal the turns of a loop out to the threads, which wait for each other where they T::meet.
//
// Only the compiler's vector extensions are used: no intrinsics, no standard library. That vectors
// and their entries may share memory is promised by GCC and Clang.
#pragma once

#ifdef __CUDACC__
#define INLINE __forceinline__
#define OUTLINE __noinline__  // what has many callers: inlined, compilation takes minutes
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")  // of few turns: unrolled, compilation takes minutes
#else
#define INLINE inline __attribute__((always_inline))
#define OUTLINE
#define ROLLED
#define UNROLL _Pragma("GCC unroll 8")  // what is indexed stays in registers only if unrolled
#endif

namespace diffopt {

#if defined(__CUDACC__)
constexpr int TILE_ROWS = 4, TILE_PACKS = 4;
#elif defined(__AVX512F__)
constexpr int WIDTH = 8, TILE_ROWS = 4, TILE_PACKS = 4;  // 16 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int WIDTH = 4, TILE_ROWS = 2, TILE_PACKS = 4;  // 8 of 16
#else
constexpr int WIDTH = 2, TILE_ROWS = 2, TILE_PACKS = 4;
#endif

INLINE double pick(bool m, double a, double b) { return m ? a : b; }
INLINE bool no(bool m) { return !m; }
INLINE bool any(bool m) { return m; }
INLINE double lane(double a, int) { return a; }
INLINE void set_lane(double& a, int, double x) { a = x; }

// A number and its bits.
#ifdef __CUDACC__
INLINE double size(double a) { return fabs(a); }
INLINE double root(double a) { return sqrt(a); }
INLINE long long bits(double a) { return __double_as_longlong(a); }
INLINE double of_bits(long long a) { return __longlong_as_double(a); }
#else
INLINE double size(double a) { return __builtin_fabs(a); }
INLINE double root(double a) { return __builtin_sqrt(a); }
INLINE long long bits(double a) {
    long long out;
    __builtin_memcpy(&out, &a, sizeof out);
    return out;
}
INLINE double of_bits(long long a) {
    double out;
    __builtin_memcpy(&out, &a, sizeof out);
    return out;
}
#endif
constexpr long long BITS_OF_INFINITY = 0x7ff0000000000000LL;
INLINE double infinity() { return of_bits(BITS_OF_INFINITY); }
// The nearest power of two (up to a factor 1.5): multiplying by it rounds nothing.
INLINE double power_of_two(double a) {
    return of_bits((bits(a) + 0x0008000000000000LL) & BITS_OF_INFINITY);
}

#ifndef __CUDACC__
typedef double Wide __attribute__((vector_size(8 * WIDTH)));
typedef decltype(Wide{} < Wide{}) WideMask;

INLINE Wide pick(WideMask m, Wide a, Wide b) { return m ? a : b; }
INLINE Wide pick(bool m, Wide a, Wide b) { return m ? a : b; }

INLINE WideMask no(WideMask m) { return ~m; }
INLINE bool any(WideMask m) {
    long out = 0;
    for (int l = 0; l < WIDTH; l++) out |= m[l];
    return out != 0;
}

INLINE Wide size(Wide a) { return (Wide)((WideMask)a & 0x7fffffffffffffffLL); }
INLINE Wide root(Wide a) {
    Wide out;
    for (int l = 0; l < WIDTH; l++) out[l] = __builtin_sqrt(a[l]);
    return out;
}
INLINE Wide power_of_two(Wide a) {
    return (Wide)(((WideMask)a + 0x0008000000000000LL) & 0x7ff0000000000000LL);
}
INLINE double lane(Wide a, int l) { return a[l]; }
INLINE void set_lane(Wide& a, int l, double x) { a[l] = x; }

#endif

// NaN in either argument gives b.
template <class X>
INLINE X lesser(X a, X b) {
    return pick(a < b, a, b);
}
template <class X>
INLINE X greater(X a, X b) {
    return pick(a > b, a, b);
}
// NaN in either stays.
template <class X>
INLINE X largest(X a, X b) {
    return pick((a > b) | (a != a), a, b);
}

#ifndef __CUDACC__
// One thread has every turn of a loop.
struct Alone {
    static constexpr bool team = false;
    template <class F>
    static INLINE void spread(int begin, int end, F f) {
        for (int j = begin; j < end; j++) f(j);
    }
    // f(j) of every column, with f = row(i), which holds what is the same along a row.
    template <class Row>
    static INLINE void grid(int rows, int columns, Row row) {
        for (int i = 0; i < rows; i++) {
            auto f = row(i);
            for (int j = 0; j < columns; j++) f(j);
        }
    }
    static INLINE void meet() {}
    static INLINE bool leads() { return true; }
    // What the threads have found, put together.
    template <class V>
    static INLINE V sum_of_threads(V a) {
        return a;
    }
    template <class V>
    static INLINE V most_of_threads(V a) {
        return a;
    }
};

struct Across : Alone {
    using V = Wide;
    using P = Wide;
    using Mask = WideMask;
    static constexpr int lanes = WIDTH, pack = 1;
    static INLINE V sum(P a) { return a; }
    static INLINE V max(P a) { return a; }
    // Odd: rows that are a power of two apart would share a few sets of the cache.
    static constexpr int stride(int n) { return n | 1; }
};

struct Within : Alone {
    using V = double;
    using P = Wide;
    using Mask = bool;
    static constexpr int lanes = 1, pack = WIDTH;
    static INLINE V sum(P a) {
        double out = a[0];
        for (int l = 1; l < WIDTH; l++) out += a[l];
        return out;
    }
    static INLINE V max(P a) {
        double out = a[0];
        for (int l = 1; l < WIDTH; l++) out = largest(a[l], out);
        return out;
    }
    static constexpr int stride(int n) { return ((n + WIDTH - 1) / WIDTH | 1) * WIDTH; }
};

// One number of one problem at a time: what is done once for all problems.
struct Single : Alone {
    using V = double;
    using P = double;
    using Mask = bool;
    static constexpr int lanes = 1, pack = 1;
    static INLINE V sum(P a) { return a; }
    static INLINE V max(P a) { return a; }
    static constexpr int stride(int n) { return Across::stride(n); }
};

#endif

// An entry, or a number, as a pack.
template <class T>
INLINE typename T::P splat(typename T::P x) {
    return x;
}
template <class T, class X>
INLINE typename T::P splat(X x) {
    return typename T::P{} + x;
}

// Number of packs of n entries, and n rounded up to whole packs.
template <class T>
constexpr int packs(int n) {
    return (n + T::pack - 1) / T::pack;
}
template <class T>
constexpr int padded(int n) {
    return packs<T>(n) * T::pack;
}

// Pack j of a row or vector; an entry that all lanes share is a double and fills them.
template <class T, class E>
INLINE typename T::P packed(const E* row, int j) {
    if constexpr (T::pack > 1 || sizeof(E) == sizeof(typename T::P))
        return ((const typename T::P*)row)[j];
    else
        return splat<T>(row[j]);
}
template <class T>
INLINE typename T::P& at(typename T::V* x, int j) {
    return ((typename T::P*)x)[j];
}
template <class T>
INLINE typename T::P at(const typename T::V* x, int j) {
    return ((const typename T::P*)x)[j];
}

// f of every pack of n entries, and of every entry.
template <class T, class F>
INLINE void each(int count, F f) {
    T::spread(0, packs<T>(count), f);
    T::meet();
}
template <class T, class F>
INLINE void entries(int count, F f) {
    T::spread(0, count, f);
    T::meet();
}
// The largest of nonnegative packs, and the sum of packs, entry by entry of V.
template <class T, class F>
INLINE typename T::V most(int count, F f) {
    typename T::P out = {};
    T::spread(0, packs<T>(count), [&](int j) {
        typename T::P x = f(j);
        out = largest(x, out);
    });
    return T::max(out);
}
template <class T, class F>
INLINE typename T::V total(int count, F f) {
    typename T::P out = {};
    T::spread(0, packs<T>(count), [&](int j) { out += f(j); });
    return T::sum(out);
}
// The largest of nonnegative entries, NaN aside.
template <class T, class F>
INLINE typename T::V most_entry(int count, F f) {
    typename T::V out = {};
    T::spread(0, count, [&](int j) { out = greater(f(j), out); });
    return T::most_of_threads(out);
}

// to <- from in the lanes of `mask`.
template <class T>
INLINE void replace(typename T::Mask mask, typename T::V* to, const typename T::V* from,
                    int count) {
    each<T>(count, [&](int j) { at<T>(to, j) = pick(mask, at<T>(from, j), at<T>(to, j)); });
}

}  // namespace diffopt
