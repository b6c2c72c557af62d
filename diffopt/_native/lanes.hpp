// Values: what one entry of a matrix or vector is, so that the rest is written once.
//
// * Across: an entry holds that entry of WIDTH problems, one a SIMD lane, for batches of small QPs.
// * Within: an entry is one number of one problem, and WIDTH neighbours in a row make a pack.
//
// V is an entry, P a pack: what the inner loops work on. Across, both are one vector; within, V is
// a double and P a vector of a row. Every loop over entries goes through `each`, `most` and
// `total`, which a GPU would spread over the threads of a block (V = P = double).
//
// Only the compiler's vector extensions are used: no intrinsics, no standard library. That vectors
// and their entries may share memory is promised by GCC and Clang.
#pragma once

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")  // what is indexed stays in registers only if unrolled

namespace diffopt {

#if defined(__AVX512F__)
constexpr int WIDTH = 8, TILE_ROWS = 4, TILE_PACKS = 4;  // 16 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int WIDTH = 4, TILE_ROWS = 2, TILE_PACKS = 4;  // 8 of 16
#else
constexpr int WIDTH = 2, TILE_ROWS = 2, TILE_PACKS = 4;
#endif

typedef double Wide __attribute__((vector_size(8 * WIDTH)));
typedef decltype(Wide{} < Wide{}) WideMask;

INLINE double pick(bool m, double a, double b) { return m ? a : b; }
INLINE Wide pick(WideMask m, Wide a, Wide b) { return m ? a : b; }
INLINE Wide pick(bool m, Wide a, Wide b) { return m ? a : b; }

INLINE bool no(bool m) { return !m; }
INLINE WideMask no(WideMask m) { return ~m; }
INLINE bool any(bool m) { return m; }
INLINE bool any(WideMask m) {
    long out = 0;
    for (int l = 0; l < WIDTH; l++) out |= m[l];
    return out != 0;
}

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
INLINE double size(double a) { return __builtin_fabs(a); }
INLINE Wide size(Wide a) { return (Wide)((WideMask)a & 0x7fffffffffffffffLL); }
INLINE double root(double a) { return __builtin_sqrt(a); }
INLINE Wide root(Wide a) {
    Wide out;
    for (int l = 0; l < WIDTH; l++) out[l] = __builtin_sqrt(a[l]);
    return out;
}

// The nearest power of two (up to a factor 1.5): multiplying by it rounds nothing.
INLINE Wide power_of_two(Wide a) {
    return (Wide)(((WideMask)a + 0x0008000000000000LL) & 0x7ff0000000000000LL);
}
INLINE double power_of_two(double a) { return power_of_two(Wide{} + a)[0]; }

INLINE double lane(double a, int) { return a; }
INLINE double lane(Wide a, int l) { return a[l]; }
INLINE void set_lane(double& a, int, double x) { a = x; }
INLINE void set_lane(Wide& a, int l, double x) { a[l] = x; }

struct Across {
    using V = Wide;
    using P = Wide;
    using Mask = WideMask;
    static constexpr int lanes = WIDTH, pack = 1;
    static INLINE V sum(P a) { return a; }
    static INLINE V max(P a) { return a; }
    // Odd: rows that are a power of two apart would share a few sets of the cache.
    static constexpr int stride(int n) { return n | 1; }
};

struct Within {
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
struct Single {
    using V = double;
    using P = double;
    using Mask = bool;
    static constexpr int lanes = 1, pack = 1;
    static INLINE V sum(P a) { return a; }
    static INLINE V max(P a) { return a; }
    static constexpr int stride(int n) { return Across::stride(n); }
};

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

template <class T, class F>
INLINE void each(int count, F f) {
    for (int j = 0; j < packs<T>(count); j++) f(j);
}
// The largest of nonnegative packs, and the sum of packs, entry by entry of V.
template <class T, class F>
INLINE typename T::V most(int count, F f) {
    typename T::P out = {};
    for (int j = 0; j < packs<T>(count); j++) {
        typename T::P x = f(j);
        out = largest(x, out);
    }
    return T::max(out);
}
template <class T, class F>
INLINE typename T::V total(int count, F f) {
    typename T::P out = {};
    for (int j = 0; j < packs<T>(count); j++) out += f(j);
    return T::sum(out);
}

// to <- from in the lanes of `mask`.
template <class T>
INLINE void replace(typename T::Mask mask, typename T::V* to, const typename T::V* from,
                    int count) {
    each<T>(count, [&](int j) { at<T>(to, j) = pick(mask, at<T>(from, j), at<T>(to, j)); });
}

}  // namespace diffopt
