// One group of problems (as many as T::lanes) in the equilibrated space.
//
//   z = r d * z^,   Q^ = c r D Q D,  p^ = c D p,  A^ = E_A A D,  G^ = E_G G D,  limits^ = E limits
//   / r
//
// with powers of two for all factors. Rows of C are those of G, filled up to whole packs, and then
// the bounds: `k` of them with the filling, whose entries bind nothing. E is the type of a matrix
// entry: V, or double where all problems share Q, G and A.
#pragma once
#include "equilibration.hpp"

namespace diffopt {

template <class T>
struct Units {
    using V = typename T::V;
    V *z, *nu, *y;                          // a unit of the unknowns here in the user's
    V *dual, *equal, *rows;                 // a unit of the user's residuals here
    V *user_dual, *user_equal, *user_rows;  // one over these
    V user_objective;                       // one over a unit of the objective

    void carve(Arena& a, int n, int e, int k) {
        z = a.take<V>(padded<T>(n)), nu = a.take<V>(padded<T>(e)), y = a.take<V>(k);
        dual = a.take<V>(padded<T>(n)), equal = a.take<V>(padded<T>(e)), rows = a.take<V>(k);
        user_dual = a.take<V>(padded<T>(n)), user_equal = a.take<V>(padded<T>(e));
        user_rows = a.take<V>(k);
    }
};

template <class T, class E>
struct Problem {
    using V = typename T::V;
    using P = typename T::P;
    int n, m, e, k, bounds, ld;  // bounds: where those rows of C begin
    bool bounded, diagonal;
    Matrices<T, E> M;
    Units<T> units;
    V *p, *b, *limit[2], *on[2], *fixed;  // side 0: upper, 1: lower
    V weight, sides;                      // c r; the number of sides, at least one
    bool present[2][2];                   // [rows of G, bounds][side]: in any lane

    Problem(const Batch& batch, bool diagonal)
        : n(batch.n),
          m(batch.m),
          e(batch.e),
          ld(T::stride(batch.n)),
          bounded(batch.bounded),
          diagonal(diagonal) {
        bounds = padded<T>(m);
        k = bounds + (bounded ? padded<T>(n) : 0);
    }

    void carve(Arena& a, Matrices<T, E>* shared) {
        if (shared)
            M = *shared;
        else
            M.carve(a, n, m, e, diagonal);
        units.carve(a, n, e, k);
        p = a.take<V>(padded<T>(n)), b = a.take<V>(padded<T>(e));
        for (int s = 0; s < 2; s++) limit[s] = a.take<V>(k), on[s] = a.take<V>(k);
        fixed = a.take<V>(k);
    }

    static double sign(int side) { return side ? -1.0 : 1.0; }

    // f(side, pack) for every side that is there.
    template <class F>
    INLINE void each_side(F f) const {
        spread_sides(f);
        T::meet();
    }
    template <class F>
    INLINE void spread_sides(F f) const {
        for (int r = 0; r < 2; r++) {
            const int begin = r ? bounds / T::pack : 0, end = (r ? k : bounds) / T::pack;
            for (int s = 0; s < 2; s++)
                if (present[r][s]) T::spread(begin, end, [&](int j) { f(s, j); });
        }
    }
    template <class F>
    INLINE V total_sides(F f) const {
        P out = {};
        spread_sides([&](int s, int j) { out += f(s, j); });
        return T::sum(out);
    }
    template <class F>
    INLINE V most_sides(F f) const {
        P out = {};
        spread_sides([&](int s, int j) {
            P x = f(s, j);
            out = largest(x, out);
        });
        return T::max(out);
    }

    // The vectors in these units, from M of the same matrices; false where the data of a lane are
    // not finite, or its limits exclude everything.
    typename T::Mask load_vectors(const Batch& batch, long first) {
        load<T>(p, batch.p, n, first, batch.size, 0.0);
        load<T>(b, batch.b, e, first, batch.size, 0.0);
        load<T>(limit[0], batch.h, m, first, batch.size, infinity());
        load<T>(limit[1], batch.h_lower, m, first, batch.size, -infinity());
        T::spread(m, k,
                  [&](int i) { limit[0][i] = V{} + infinity(), limit[1][i] = V{} - infinity(); });
        T::meet();
        if (bounded) {
            load<T>(limit[0] + bounds, batch.ub, n, first, batch.size, infinity());
            load<T>(limit[1] + bounds, batch.lb, n, first, batch.size, -infinity());
        }
        auto one = [](P x) {
            return pick(x <= HUGE_LIMIT, P{}, splat<T>(1.0));
        };  // 1 for inf and NaN
        V bad = most<T>(n, [&](int j) { return one(size(at<T>(p, j))); });
        bad += most<T>(e, [&](int j) { return one(size(at<T>(b, j))); });
        bad += most<T>(
            k, [&](int j) { return one(at<T>(limit[0], j) * -1.0) + one(at<T>(limit[1], j)); });
        bad += M.poison;
        return bad == 0;
    }

    void scale_vectors() {
        const V r = sizes();
        auto inverse_units = [&](V* out, V* in, int count) {
            each<T>(count, [&](int j) { at<T>(out, j) = 1.0 / positive_or_one<T>(at<T>(in, j)); });
        };
        const V c = weight / r;
        entries<T>(n, [&](int j) { units.z[j] = r * M.d[j], units.dual[j] = c * M.d[j]; });
        entries<T>(e, [&](int i) { units.nu[i] = M.e_A[i] / c, units.equal[i] = M.e_A[i] / r; });
        entries<T>(m, [&](int i) { units.y[i] = M.e_G[i] / c, units.rows[i] = M.e_G[i] / r; });
        entries<T>(bounded ? n : 0, [&](int j) {
            units.y[bounds + j] = 1.0 / (M.d[j] * c), units.rows[bounds + j] = 1.0 / (M.d[j] * r);
        });
        inverse_units(units.user_dual, units.dual, n),
            inverse_units(units.user_equal, units.equal, e);
        inverse_units(units.user_rows, units.rows, k);
        units.user_objective = r / c;
        each<T>(n, [&](int j) { at<T>(p, j) *= at<T>(units.dual, j); });
        each<T>(e, [&](int j) { at<T>(b, j) *= at<T>(units.equal, j); });
        mark_sides();
    }

    void mark_sides() {
        P count = {}, seen[2][2] = {};
        each<T>(k, [&](int j) {
            P up = at<T>(limit[0], j), low = at<T>(limit[1], j), none = P{}, one = splat<T>(1.0);
            at<T>(fixed, j) = pick(up == low, one, none);
            for (int s = 0; s < 2; s++) {
                P x = at<T>(limit[s], j);
                auto finite = size(x) <= HUGE_LIMIT;
                at<T>(on[s], j) = pick(finite, one - at<T>(fixed, j), none);
                at<T>(limit[s], j) = pick(finite, x * at<T>(units.rows, j), none);
                P& known = seen[j * T::pack >= bounds][s];
                known = greater(at<T>(on[s], j), known);
                count += at<T>(on[s], j);
            }
        });
        for (int r = 0; r < 2; r++)
            for (int s = 0; s < 2; s++) present[r][s] = any(T::max(seen[r][s]) > 0);
        sides = greater(T::sum(count), V{} + 1.0);
    }

    // r, with c r in `weight`: the size that z is expected to have, and one over that of the
    // multipliers; see _sizes in diffopt/qp/scaling.py.
    V sizes() {
        V q = V{} + M.curvature;
        V g = most_entry<T>(n, [&](int j) { return size(M.d[j] * p[j]); });
        V needed = most_entry<T>(e, [&](int i) { return size(M.e_A[i] * b[i]); });
        needed = greater(most_limit([&](V up, V low) {
                             return greater(low * pick(low <= HUGE_LIMIT, V{} + 1.0, V{}), -up);
                         }),
                         needed);
        const V far = most_limit([&](V up, V low) {
            V a = size(up), z = size(low);
            return greater(pick(a <= HUGE_LIMIT, a, V{}), pick(z <= HUGE_LIMIT, z, V{}));
        });
        V free = pick(q > 0, g / q, V{});
        if (any(q <= 0)) free = pick(q > 0, free, typical());
        V r = pick(far > 0, lesser(free, far), free);
        r = greater(r, needed);
        r = power_of_two(positive_or_one<T>(pick(r > 0, r, far)));
        V c = power_of_two(1.0 / positive_or_one<T>(greater(q * r, g)));
        weight = c * r;
        return r;
    }

    // The largest f(upper, lower) of the limits of a row, in the units of the rows.
    template <class F>
    V most_limit(F f) const {
        V out = most_entry<T>(
            m, [&](int i) { return f(M.e_G[i] * limit[0][i], M.e_G[i] * limit[1][i]); });
        return greater(most_entry<T>(bounded ? n : 0,
                                     [&](int j) {
                                         V unit = V{} + 1.0 / M.d[j];
                                         return f(unit * limit[0][bounds + j],
                                                  unit * limit[1][bounds + j]);
                                     }),
                       out);
    }

    // The (lower) median of the finite limits that are not zero; 0 if there are none. Only linear
    // programs need it. By bisection: positive numbers are in the order of their bits.
    V typical() {
        V out = {};
        for (int l = 0; l < T::lanes; l++) {
            const double count = limits_up_to(l, HUGE_LIMIT);
            long long below = 0, upto = BITS_OF_INFINITY;  // the median is in (below, upto]
            while (count > 0 && upto - below > 1) {
                const long long middle = below + (upto - below) / 2;
                const bool beyond = 2.0 * limits_up_to(l, of_bits(middle)) > count - 1.0;
                (beyond ? upto : below) = middle;
            }
            set_lane(out, l, count > 0 ? of_bits(upto) : 0.0);
        }
        return out;
    }

    // How many limits of a lane are not zero and at most x, in size.
    double limits_up_to(int l, double x) const {
        double out = 0;
        T::spread(0, k, [&](int i) {
            if ((i >= m && i < bounds) || i >= bounds + n) return;
            const double unit = lane(i < m ? V{} + M.e_G[i] : V{} + 1.0 / M.d[i - bounds], l);
            for (int side = 0; side < 2; side++) {
                const double a = size(unit * lane(limit[side][i], l));
                out += a > 0 && a <= x;
            }
        });
        return T::sum_of_threads(out);
    }

    // y = C x, and out += C'y.
    void rows(const V* x, V* y) const {
        multiply<T>(M.G, ld, m, n, x, y);
        if (bounded) each<T>(n, [&](int j) { at<T>(y + bounds, j) = at<T>(x, j); });
    }
    void rows_transposed(const V* y, V* out) const {
        multiply_transposed<T>(M.G, ld, m, n, y, out);
        if (bounded) each<T>(n, [&](int j) { at<T>(out, j) += at<T>(y + bounds, j); });
    }
    // out = Q x.
    void curvature(const V* x, V* out) const {
        if (diagonal)
            each<T>(n, [&](int j) { at<T>(out, j) = weight * packed<T>(M.Q, j) * at<T>(x, j); });
        else {
            multiply<T>(M.Q, ld, n, n, x, out);
            each<T>(n, [&](int j) { at<T>(out, j) *= splat<T>(weight); });
        }
    }
};

}  // namespace diffopt
