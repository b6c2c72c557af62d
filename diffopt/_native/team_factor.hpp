// The triangular factor of factor.hpp by a team: the columns of a block of rows are dealt out.
#pragma once
#include "factor.hpp"
#include "team.hpp"

namespace diffopt {

template <>
struct Upper<Team> {
    double* U;
    double* inverse;  // of the diagonal
    double* panel;    // scratch, N x TILE_ROWS
    int N, ld;
    double lowest = {};  // the least pivot before it was raised

    double* row(int i) { return U + (long)i * ld; }
    const double* row(int i) const { return U + (long)i * ld; }

    // Each thread makes its columns of the rows; all factorise the small block on the diagonal,
    // each for itself; each thread solves with it for its columns.
    template <class Base, class E>
    void block(int i, int rows, int flip, Base base, Product<double, E> product) {
        fill_panel<Team>(panel, U, ld, i, i, rows, [&](int k) { return k < flip ? 1.0 : -1.0; });
        entries<Team>(N - i, [&](int c) { make(i, rows, i + c, base, product); });
        double solve[TILE_ROWS][TILE_ROWS] = {};
        eliminate(i, rows, solve);
        Team::meet();  // all have read what is overwritten now
        Team::spread(0, N - i, [&](int c) {
            if (c < rows)
                for (int r = 0; r < rows; r++) row(i + r)[i + c] = r < c ? solve[r][c] : 0.0;
            else
                apply(i, rows, i + c, solve);
        });
        entries<Team>(rows, [&](int r) { inverse[i + r] = solve[r][r]; });
    }

    // Column j of the rows, before the block on the diagonal is factorised; `inverse` holds
    // meanwhile the diagonal before the products of U are taken off.
    template <class Base, class E>
    INLINE void make(int i, int rows, int j, Base base, const Product<double, E>& product) {
        double acc[TILE_ROWS][1];
        UNROLL for (int r = 0; r < TILE_ROWS; r++) acc[r][0] = r < rows ? base(i + r, j) : 0.0;
        if (j < product.end)
            tile<Team, 1>(acc, product.panel, product.M, product.ld, product.count, j);
        UNROLL for (int r = 0; r < TILE_ROWS; r++) if (j == i + r) inverse[j] = acc[r][0];
        tile<Team, 1>(acc, panel, U, ld, i, j);
        UNROLL for (int r = 0; r < TILE_ROWS; r++) if (r < rows) row(i + r)[j] = acc[r][0];
    }

    // The factor of the small block, with reciprocals on its diagonal; see factor.hpp for the
    // pivots.
    INLINE void eliminate(int i, int rows, double (&solve)[TILE_ROWS][TILE_ROWS]) {
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            if (r >= rows) break;
            UNROLL for (int c = r; c < TILE_ROWS; c++) {
                if (c >= rows) break;
                double a = row(i + r)[i + c];
                UNROLL for (int k = 0; k < r; k++) a -= solve[k][r] * solve[k][c];
                if (c == r) lowest = lesser(a, lowest);
                solve[r][c] =
                    c == r ? 1.0 / root(greater(a, 50 * EPS * inverse[i + r])) : a * solve[r][r];
            }
        }
    }

    INLINE void apply(int i, int rows, int j, const double (&solve)[TILE_ROWS][TILE_ROWS]) {
        double acc[TILE_ROWS] = {};
        UNROLL for (int r = 0; r < TILE_ROWS; r++) {
            if (r >= rows) break;
            double a = row(i + r)[j];
            UNROLL for (int k = 0; k < r; k++) a -= solve[k][r] * acc[k];
            row(i + r)[j] = acc[r] = a * solve[r][r];
        }
    }

    // x <- (U' D U)^-1 x, where D is -1 from `flip` on. Four unknowns at a time, which each thread
    // finds for itself, are taken off the others; what is found goes to the panel and back, so that
    // none overwrites what another still reads.
    OUTLINE void solve(double* x, int flip) const {
        for (int i = 0; i < N; i += FOUR) forward(i, N - i < FOUR ? N - i : FOUR, x, flip);
        for (int i = (N - 1) / FOUR * FOUR; i >= 0; i -= FOUR)
            backward(i, N - i < FOUR ? N - i : FOUR, x);
    }
    static constexpr int FOUR = 4;

    INLINE void forward(int i, int rows, double* x, int flip) const {
        double found[FOUR] = {};
        UNROLL for (int r = 0; r < FOUR; r++) {
            if (r >= rows) break;
            double a = x[i + r];
            UNROLL for (int k = 0; k < r; k++) a -= row(i + k)[i + r] * found[k];
            found[r] = a * inverse[i + r];
        }
        entries<Team>(N - i, [&](int c) {
            double a = x[i + c];
            UNROLL for (int r = 0; r < FOUR; r++) {
                if (r >= rows) break;
                if (c == r) panel[i + r] = i + r < flip ? found[r] : -found[r];
                a -= row(i + r)[i + c] * found[r];
            }
            if (c >= rows) x[i + c] = a;
        });
    }

    INLINE void backward(int i, int rows, double* x) const {
        double found[FOUR] = {};
        UNROLL for (int r = FOUR - 1; r >= 0; r--) {
            if (r >= rows) continue;
            double a = panel[i + r];
            UNROLL for (int q = r + 1; q < FOUR; q++) if (q < rows) a -=
                row(i + r)[i + q] * found[q];
            found[r] = a * inverse[i + r];
        }
        entries<Team>(i + rows, [&](int j) {
            UNROLL for (int r = 0; r < FOUR; r++) if (j == i + r) x[j] = found[r];
            if (j >= i) return;
            double a = panel[j];
            UNROLL for (int r = 0; r < FOUR; r++) if (r < rows) a -= row(j)[i + r] * found[r];
            panel[j] = a;
        });
    }
};

}  // namespace diffopt
