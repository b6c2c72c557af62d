// The triangular factor
//
//   [H  B'; B  -S] = U' D U,    D = diag(I, -I),
//
// of a positive definite H and a nonnegative diagonal S, row by row (left-looking). A block of
// TILE_ROWS rows is made in tiles, from the products G'WG that H is made of and the rows of U above
// the block. The diagonal is kept as reciprocals, and U has zeros on and, within a pack, left of
// it.
#pragma once
#include "products.hpp"

namespace diffopt {

constexpr double EPS = 2.220446049250313e-16;

template <class T>
struct Upper {
    using V = typename T::V;
    using P = typename T::P;
    V* U;
    V* inverse;  // of the diagonal
    V* panel;    // scratch, N x TILE_ROWS
    int N, ld;
    V lowest = {};  // the least pivot before it was raised

    V* row(int i) { return U + (long)i * ld; }
    const V* row(int i) const { return U + (long)i * ld; }

    // Rows i to i + rows of U: `base(r, j)` pack j of row r before anything, plus `product`, minus
    // what the rows of U above say; those above `flip` count with the other sign.
    template <class Base, class E>
    void block(int i, int rows, int flip, Base base, Product<V, E> product) {
        fill_panel<T>(panel, U, ld, i, i, rows,
                      [&](int k) { return V{} + (k < flip ? 1.0 : -1.0); });
        V diagonal[TILE_ROWS], solve[TILE_ROWS][TILE_ROWS];
        const int first = i / T::pack, last = packs<T>(N);
        const int stop = product.count && product.end < last ? product.end : last;
        const int head = first + TILE_PACKS < stop ? first + TILE_PACKS : stop;
        auto made = [&](auto width, int j) {
            constexpr int C = decltype(width)::value;
            P acc[TILE_ROWS][C];
            UNROLL for (int r = 0; r < TILE_ROWS; r++) UNROLL for (int c = 0; c < C; c++)
                acc[r][c] = r < rows ? base(i + r, j + c) : P{};
            if (j < stop) tile<T, C>(acc, product.panel, product.M, product.ld, product.count, j);
            if (j == first) {
                if constexpr (T::pack == 1) {
                    UNROLL for (int r = 0; r < TILE_ROWS; r++) if (r < C) diagonal[r] = acc[r][r];
                } else {
                    put<C>(acc, i, rows, j);
                    for (int r = 0; r < rows; r++) diagonal[r] = row(i + r)[i + r];
                }
            }
            tile<T, C>(acc, panel, U, ld, i, j);
            if (j != first)
                apply<C>(acc, i, rows, solve);
            else if constexpr (T::pack == 1)
                eliminate_tile<C>(acc, i, rows, diagonal, solve);
            put<C>(acc, i, rows, j);
        };
        with_width(head - first, made, first);
        if constexpr (T::pack > 1) {
            eliminate(i, rows, diagonal, solve);
            finish(i, rows, first, head, solve);
        }
        for (int j = head; j < stop; j += TILE_PACKS) with_width(stop - j, made, j);
        for (int j = stop; j < last; j += TILE_PACKS) with_width(last - j, made, j);
    }

    template <int C>
    INLINE void put(const P (&acc)[TILE_ROWS][C], int i, int rows, int j) {
        UNROLL for (int r = 0; r < TILE_ROWS; r++) if (r < rows) UNROLL for (int c = 0; c < C; c++)
            at<T>(row(i + r), j + c) = acc[r][c];
    }

    template <int C>
    struct Width {
        static constexpr int value = C;
    };
    // f with the width of the tile that begins at pack j, `left` packs or TILE_PACKS, as a
    // constant.
    template <class F>
    static INLINE void with_width(int left, F f, int j) {
        if (left >= 4)
            f(Width<4>{}, j);
        else if (left == 3)
            f(Width<3>{}, j);
        else if (left == 2)
            f(Width<2>{}, j);
        else if (left == 1)
            f(Width<1>{}, j);
    }
    static_assert(TILE_PACKS == 4 && TILE_ROWS <= 4,
                  "see with_width; a block's diagonal is in its head");

    // The packs that hold the block on the diagonal, once that is factorised.
    void finish(int i, int rows, int first, int head, V (*solve)[TILE_ROWS]) {
        for (int c = first; c < head; c++) {
            P acc[TILE_ROWS][1];
            UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[r][0] =
                r < rows ? at<T>(row(i + r), c) : P{};
            apply<1>(acc, i, rows, solve);
            put<1>(acc, i, rows, c);
        }
        for (int r = 0; r < rows; r++)
            for (int c = first * T::pack; c <= i + r; c++) row(i + r)[c] = V{};
    }

    // The triangular factor of the block on the diagonal: `solve` are its rows. A pivot below the
    // rounding errors of its diagonal is raised to them (they are relative to the diagonal: Demmel,
    // "On floating point errors in Cholesky", LAPACK Working Note 14, 1989).
    void eliminate(int i, int rows, const V* diagonal, V (*solve)[TILE_ROWS]) {
        for (int r = 0; r < rows; r++) {
            for (int c = r; c < rows; c++) {
                V a = row(i + r)[i + c];
                for (int k = 0; k < r; k++) a -= solve[k][r] * solve[k][c];
                if (c == r) {
                    lowest = lesser(a, lowest);
                    a = greater(a, 50 * EPS * diagonal[r]);
                    inverse[i + r] = 1.0 / root(a);
                } else {
                    a *= inverse[i + r];
                }
                solve[r][c] = a;
            }
        }
    }

    // The same where the block is one tile, in registers.
    template <int C>
    INLINE void eliminate_tile(P (&acc)[TILE_ROWS][C], int i, int rows, const V* diagonal,
                               V (*solve)[TILE_ROWS]) {
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            if (r >= rows || r >= C) break;
            lowest = lesser(acc[r][r], lowest);
            P a = 1.0 / root(greater(acc[r][r], 50 * EPS * diagonal[r]));
            inverse[i + r] = a;
            UNROLL for (int c = 0; c < C; c++) {
                acc[r][c] = c > r ? acc[r][c] * a : P{};
                if (c < TILE_ROWS) solve[r][c] = acc[r][c];
            }
            UNROLL for (int k = r + 1; k < TILE_ROWS; k++)
                UNROLL for (int c = k; c < C; c++) if (k < C) acc[k][c] -= acc[r][k] * acc[r][c];
        }
    }

    template <int C>
    INLINE void apply(P (&acc)[TILE_ROWS][C], int i, int rows, V (*solve)[TILE_ROWS]) {
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            if (r >= rows) break;
            UNROLL for (int k = 0; k < r; k++) {
                P a = splat<T>(solve[k][r]);
                UNROLL for (int c = 0; c < C; c++) acc[r][c] -= a * acc[k][c];
            }
            P a = splat<T>(inverse[i + r]);
            UNROLL for (int c = 0; c < C; c++) acc[r][c] *= a;
        }
    }

    // x <- (U' D U)^-1 x, where D is -1 from `flip` on; rows from `first` on, columns likewise.
    void solve(V* x, int flip) const {
        forward(x);
        for (int i = flip; i < N; i++) x[i] = -x[i];
        backward(x);
    }

    void forward(V* x) const {
        int i = 0;
        for (; i + 4 <= N; i += 4) {
            for (int r = 0; r < 4; r++) {
                x[i + r] *= inverse[i + r];
                for (int c = r + 1; c < 4; c++) x[i + c] -= row(i + r)[i + c] * x[i + r];
            }
            P a = splat<T>(x[i]), b = splat<T>(x[i + 1]), c = splat<T>(x[i + 2]),
              d = splat<T>(x[i + 3]);
            const V *r0 = row(i), *r1 = row(i + 1), *r2 = row(i + 2), *r3 = row(i + 3);
            int j = (i + 4) / T::pack;
            if (j * T::pack < i + 4) {  // this pack holds finished entries too
                for (int q = i + 4; q < (j + 1) * T::pack && q < N; q++)
                    x[q] -= r0[q] * x[i] + r1[q] * x[i + 1] + r2[q] * x[i + 2] + r3[q] * x[i + 3];
                j++;
            }
            for (; j < packs<T>(N); j++)
                at<T>(x, j) -=
                    (at<T>(r0, j) * a + at<T>(r1, j) * b) + (at<T>(r2, j) * c + at<T>(r3, j) * d);
        }
        for (; i < N; i++) {
            x[i] *= inverse[i];
            for (int q = i + 1; q < N; q++) x[q] -= row(i)[q] * x[i];
        }
    }

    void backward(V* x) const {
        int i = N;
        for (; i % 4; i--) last(x, i - 1);
        for (i -= 4; i >= 0; i -= 4) {
            P a = {}, b = {}, c = {}, d = {};
            const V *r0 = row(i), *r1 = row(i + 1), *r2 = row(i + 2), *r3 = row(i + 3);
            int j = (i + 4) / T::pack;
            V s[4] = {};
            if (j * T::pack < i + 4) {
                for (int q = i + 4; q < (j + 1) * T::pack && q < N; q++)
                    s[0] += r0[q] * x[q], s[1] += r1[q] * x[q], s[2] += r2[q] * x[q],
                        s[3] += r3[q] * x[q];
                j++;
            }
            for (; j < packs<T>(N); j++) {
                P v = at<T>((const V*)x, j);
                a += at<T>(r0, j) * v, b += at<T>(r1, j) * v;
                c += at<T>(r2, j) * v, d += at<T>(r3, j) * v;
            }
            s[0] += T::sum(a), s[1] += T::sum(b), s[2] += T::sum(c), s[3] += T::sum(d);
            for (int r = 3; r >= 0; r--) {
                V v = x[i + r] - s[r];
                for (int q = r + 1; q < 4; q++) v -= row(i + r)[i + q] * x[i + q];
                x[i + r] = v * inverse[i + r];
            }
        }
    }

    void last(V* x, int i) const {
        V a = x[i];
        for (int q = i + 1; q < N; q++) a -= row(i)[q] * x[q];
        x[i] = a * inverse[i];
    }
};

}  // namespace diffopt
