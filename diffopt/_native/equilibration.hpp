// Loading and equilibrating the matrices of a group, or those that all problems share.
//
// The diagonals d, e_A, e_G that bring rows and columns of [Q A' G'; A 0 0; G 0 0] to size one, as
// in the torch engine (diffopt/qp/scaling.py, which has the derivation and the source), but rounded
// to powers of two: scaling then rounds nothing.
#pragma once
#include "data.hpp"
#include "factor.hpp"

namespace diffopt {

template <class T, class V>
INLINE V positive_or_one(V x) {
    return pick(x > 0, x, V{} + 1.0);
}

// The equilibrated matrices, and the diagonals that made them; the same for all problems, or not.
template <class T, class E>
struct Matrices {
    E *Q, *G, *A, *columns;  // columns: A', for `diagonal`
    E *d, *e_A, *e_G;
    E curvature;  // the mean of the column norms of D Q D
    E poison;     // 0; NaN if an entry is not finite

    void carve(Arena& a, int n, int m, int e, bool diagonal) {
        Q = a.take<E>(diagonal ? padded<T>(n) : (long)n * T::stride(n));
        G = a.take<E>((long)m * T::stride(n));
        A = a.take<E>((long)e * T::stride(n));
        columns = a.take<E>(diagonal ? (long)n * T::stride(e) : 0);
        d = a.take<E>(padded<T>(n)), e_A = a.take<E>(padded<T>(e)), e_G = a.take<E>(padded<T>(m));
    }
};

// The loading and equilibration of Matrices<T, T::V>: of a group, or (T = Within) of what is
// shared.
template <class T>
struct Loader {
    using V = typename T::V;
    using P = typename T::P;
    Matrices<T, V>& M;
    const Batch& batch;
    bool diagonal;
    V *columns, *rows_A, *rows_G;  // norms
    bool poisoned = true;          // whether to look for what is not finite

    Loader(Matrices<T, V>& M, const Batch& batch, bool diagonal, Arena a)
        : M(M), batch(batch), diagonal(diagonal) {
        columns = a.take<V>(padded<T>(batch.n));
        rows_A = a.take<V>(padded<T>(batch.e)), rows_G = a.take<V>(padded<T>(batch.m));
    }

    void run(long first) {
        const int n = batch.n, m = batch.m, e = batch.e, ld = T::stride(n);
        if (diagonal)
            load<T>(M.Q, Slice{batch.Q.data, batch.Q.batch, n + 1}, n, first, batch.size, 0.0);
        else
            symmetric(first);
        load_matrix<T>(M.G, ld, batch.G, m, n, first, batch.size);
        load_matrix<T>(M.A, ld, batch.A, e, n, first, batch.size);
        equilibrate();
        apply();
    }

    void symmetric(long first) {
        const int n = batch.n, ld = T::stride(n);
        load_matrix<T>(M.Q, ld, batch.Q, n, n, first, batch.size);
        entries<T>(n, [&](int i) {
            for (int j = 0; j < i; j++) {
                V mean = 0.5 * (M.Q[(long)i * ld + j] + M.Q[(long)j * ld + i]);
                M.Q[(long)i * ld + j] = M.Q[(long)j * ld + i] = mean;
            }
        });
    }

    // out_i = max_j |M_ij| d_j, and columns_j = max(columns_j, max_i |M_ij| e_i).
    void norms(const V* X, int count, const V* e, V* out) {
        const int ld = T::stride(batch.n);
        if constexpr (T::team) {
            V zero = T::norms(X, ld, count, batch.n, M.d, e, out, columns);
            if (poisoned) M.poison += zero;
        } else {
            for (int i = 0; i < count; i++) {
                P most = {}, weight = splat<T>(e[i]), zero = {};
                for (int j = 0; j < packs<T>(batch.n); j++) {
                    P x = size(packed<T>(X + (long)i * ld, j));
                    zero += x * 0.0;
                    most = greater(x * at<T>(M.d, j), most);
                    at<T>(columns, j) = greater(x * weight, at<T>(columns, j));
                }
                if (out) out[i] = T::max(most);
                if (poisoned) M.poison += T::sum(zero);
            }
        }
    }

    void curvatures(V unit) {
        if (diagonal)
            each<T>(batch.n,
                    [&](int j) { at<T>(columns, j) = unit * size(at<T>(M.Q, j)) * at<T>(M.d, j); });
        else
            norms(M.Q, batch.n, M.d, nullptr);
        if (!diagonal) each<T>(batch.n, [&](int j) { at<T>(columns, j) *= unit; });
    }

    void equilibrate() {
        const int n = batch.n, m = batch.m, e = batch.e;
        M.poison = V{};
        each<T>(n, [&](int j) { at<T>(M.d, j) = splat<T>(1.0), at<T>(columns, j) = P{}; });
        // The unit of a row, and that of the objective, is free: out of the way of the clipping.
        each<T>(e, [&](int j) { at<T>(M.e_A, j) = P{}; });
        each<T>(m, [&](int j) { at<T>(M.e_G, j) = P{}; });
        norms(M.A, e, M.e_A, rows_A), norms(M.G, m, M.e_G, rows_G);
        auto inverse = [](P x) { return 1.0 / positive_or_one<T>(x); };
        each<T>(e, [&](int j) { at<T>(M.e_A, j) = inverse(at<T>(rows_A, j)); });
        each<T>(m, [&](int j) { at<T>(M.e_G, j) = inverse(at<T>(rows_G, j)); });
        const V unit = 1.0 / positive_or_one<T>(largest_of_Q());
        poisoned = false;
        V running = V{} + 1.0;
        for (int pass = 0; pass < 8; pass++) {
            each<T>(n, [&](int j) { at<T>(columns, j) = P{}; });
            curvatures(unit);
            norms(M.A, e, M.e_A, rows_A), norms(M.G, m, M.e_G, rows_G);
            V off = {};
            off = greater(shrink(M.d, columns, n, running, 1.0), off);
            off = greater(shrink(M.e_A, rows_A, e, running, 0.0), off);
            off = greater(shrink(M.e_G, rows_G, m, running, 0.0), off);
            running = pick(off > 1.5, running, V{});
            if (!any(running > 0)) break;
        }
        // Units that are out of range: those of subnormal rows.
        M.poison += total<T>(n, [&](int j) { return at<T>(M.d, j) * 0.0; });
        M.poison += total<T>(e, [&](int j) { return at<T>(M.e_A, j) * 0.0; });
        M.poison += total<T>(m, [&](int j) { return at<T>(M.e_G, j) * 0.0; });
        each<T>(n, [&](int j) {
            at<T>(M.d, j) = power_of_two(at<T>(M.d, j)), at<T>(columns, j) = P{};
        });
        each<T>(e, [&](int j) { at<T>(M.e_A, j) = power_of_two(at<T>(M.e_A, j)); });
        each<T>(m, [&](int j) { at<T>(M.e_G, j) = power_of_two(at<T>(M.e_G, j)); });
        curvatures(V{} + 1.0);
        M.curvature =
            total<T>(n, [&](int j) { return at<T>(M.d, j) * at<T>(columns, j); }) / (double)n;
    }

    V largest_of_Q() {
        P out = {}, zero = {};
        T::grid(diagonal ? 1 : batch.n, packs<T>(batch.n), [&](int i) {
            return [&, row = M.Q + (long)i * T::stride(batch.n)](int j) {
                P x = packed<T>(row, j);
                zero += x * 0.0, out = greater(size(x), out);
            };
        });
        M.poison += T::sum(zero);
        return T::max(out);
    }

    // factor /= sqrt(factor norm), within bounds; how far the worst norm is from one. Rows have
    // bounds of their own: their unit, which they start from, may be anything.
    V shrink(V* factor, const V* norm, int count, V running, double bounded) {
        return most<T>(count, [&](int j) {
            P f = at<T>(factor, j), x = f * at<T>(norm, j);
            P next = f / root(positive_or_one<T>(x));
            if (bounded > 0) next = lesser(greater(next, splat<T>(1e-4)), splat<T>(1e4));
            at<T>(factor, j) = pick(running > 0, next, f);
            return pick(x > 0, greater(x, 1.0 / x), P{});
        });
    }

    void apply() {
        const int n = batch.n, ld = T::stride(n);
        auto scale = [&](V* X, int count, const V* e) {
            T::grid(count, packs<T>(n), [&](int i) {
                return [row = X + (long)i * ld, a = splat<T>(e[i]), d = M.d](int j) {
                    at<T>(row, j) *= a * at<T>(d, j);
                };
            });
        };
        if (diagonal)
            each<T>(n, [&](int j) { at<T>(M.Q, j) *= at<T>(M.d, j) * at<T>(M.d, j); });
        else
            scale(M.Q, n, M.d);
        scale(M.G, batch.m, M.e_G), scale(M.A, batch.e, M.e_A);
        T::meet();
        if (!diagonal) return;
        T::grid(batch.e, n, [&](int i) {
            return [row = M.A + (long)i * ld, to = M.columns + i,
                    step = T::stride(batch.e)](int j) { to[(long)j * step] = row[j]; };
        });
        T::meet();
    }
};

}  // namespace diffopt
