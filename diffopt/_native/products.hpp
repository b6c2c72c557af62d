// Products of a matrix with a vector, and the tiles that products of matrices are made of: a tile
// of TILE_ROWS x TILE_PACKS accumulators reads a stream of rows once.
#pragma once
#include "lanes.hpp"

namespace diffopt {

// y = M x for `rows` rows; x and the rows of M are padded with zeros.
template <class T, class E>
void multiply(const E* M, int ld, int rows, int n, const typename T::V* x, typename T::V* y) {
    if constexpr (T::team) return T::multiply(M, ld, rows, n, x, y);
    using P = typename T::P;
    const int w = packs<T>(n);
    int i = 0;
    for (; i + 4 <= rows; i += 4) {
        P a = {}, b = {}, c = {}, d = {};
        const E *r0 = M + (long)i * ld, *r1 = r0 + ld, *r2 = r1 + ld, *r3 = r2 + ld;
        for (int j = 0; j < w; j++) {
            P v = at<T>(x, j);
            a += packed<T>(r0, j) * v, b += packed<T>(r1, j) * v;
            c += packed<T>(r2, j) * v, d += packed<T>(r3, j) * v;
        }
        y[i] = T::sum(a), y[i + 1] = T::sum(b), y[i + 2] = T::sum(c), y[i + 3] = T::sum(d);
    }
    for (; i < rows; i++) {
        P a = {};
        for (int j = 0; j < w; j++) a += packed<T>(M + (long)i * ld, j) * at<T>(x, j);
        y[i] = T::sum(a);
    }
}

// out += M' y.
template <class T, class E>
void multiply_transposed(const E* M, int ld, int rows, int n, const typename T::V* y,
                         typename T::V* out) {
    if constexpr (T::team) return T::multiply_transposed(M, ld, rows, n, y, out);
    using P = typename T::P;
    const int w = packs<T>(n);
    int i = 0;
    for (; i + 4 <= rows; i += 4) {
        P a = splat<T>(y[i]), b = splat<T>(y[i + 1]), c = splat<T>(y[i + 2]),
          d = splat<T>(y[i + 3]);
        const E *r0 = M + (long)i * ld, *r1 = r0 + ld, *r2 = r1 + ld, *r3 = r2 + ld;
        for (int j = 0; j < w; j++)
            at<T>(out, j) += (packed<T>(r0, j) * a + packed<T>(r1, j) * b) +
                             (packed<T>(r2, j) * c + packed<T>(r3, j) * d);
    }
    for (; i < rows; i++) {
        P a = splat<T>(y[i]);
        for (int j = 0; j < w; j++) at<T>(out, j) += packed<T>(M + (long)i * ld, j) * a;
    }
}

// Columns [i, i + rows) of `count` rows of M, each times weight(k), for `tile`.
template <class T, class E, class F>
INLINE void fill_panel(typename T::V* panel, const E* M, int ld, int count, int i, int rows,
                       F weight) {
    entries<T>(count, [&](int k) {
        typename T::V w = weight(k);
        for (int r = 0; r < TILE_ROWS; r++)
            panel[k * TILE_ROWS + r] = r < rows ? w * M[(long)k * ld + i + r] : typename T::V{};
    });
}

// acc_rc += sum over k of panel_kr M_kc, packs j to j + C of each row.
template <class T, int C, class E>
INLINE void tile(typename T::P (&acc)[TILE_ROWS][C], const typename T::V* panel, const E* M, int ld,
                 int count, int j) {
    for (int k = 0; k < count; k++) {
        typename T::P b[C];
        UNROLL for (int c = 0; c < C; c++) b[c] = packed<T>(M + (long)k * ld, j + c);
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            typename T::P a = splat<T>(panel[k * TILE_ROWS + r]);
            UNROLL for (int c = 0; c < C; c++) acc[r][c] += a * b[c];
        }
    }
}

// A product that a block of rows is made of: panel' M on the packs before `end`.
template <class V, class E>
struct Product {
    const V* panel;
    const E* M;
    int ld, count, end;
};

}  // namespace diffopt
