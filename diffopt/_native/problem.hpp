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

    // f(range begin, side) for the packs of every side that is there: f(s, j).
    template <class F>
    INLINE void each_side(F f) const {
        for (int r = 0; r < 2; r++) {
            const int begin = r ? bounds / T::pack : 0, end = (r ? k : bounds) / T::pack;
            for (int s = 0; s < 2; s++)
                if (present[r][s])
                    for (int j = begin; j < end; j++) f(s, j);
        }
    }
    template <class F>
    INLINE V total_sides(F f) const {
        P out = {};
        each_side([&](int s, int j) { out += f(s, j); });
        return T::sum(out);
    }
    template <class F>
    INLINE V most_sides(F f) const {
        P out = {};
        each_side([&](int s, int j) {
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
        load<T>(limit[0], batch.h, m, first, batch.size, __builtin_inf());
        load<T>(limit[1], batch.h_lower, m, first, batch.size, -__builtin_inf());
        for (int i = m; i < k; i++)
            limit[0][i] = V{} + __builtin_inf(), limit[1][i] = V{} - __builtin_inf();
        if (bounded) {
            load<T>(limit[0] + bounds, batch.ub, n, first, batch.size, __builtin_inf());
            load<T>(limit[1] + bounds, batch.lb, n, first, batch.size, -__builtin_inf());
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
        for (int j = 0; j < n; j++) units.z[j] = r * M.d[j], units.dual[j] = c * M.d[j];
        for (int i = 0; i < e; i++) units.nu[i] = M.e_A[i] / c, units.equal[i] = M.e_A[i] / r;
        for (int i = 0; i < m; i++) units.y[i] = M.e_G[i] / c, units.rows[i] = M.e_G[i] / r;
        for (int j = 0; bounded && j < n; j++)
            units.y[bounds + j] = 1.0 / (M.d[j] * c), units.rows[bounds + j] = 1.0 / (M.d[j] * r);
        inverse_units(units.user_dual, units.dual, n),
            inverse_units(units.user_equal, units.equal, e);
        inverse_units(units.user_rows, units.rows, k);
        units.user_objective = r / c;
        each<T>(n, [&](int j) { at<T>(p, j) *= at<T>(units.dual, j); });
        each<T>(e, [&](int j) { at<T>(b, j) *= at<T>(units.equal, j); });
        mark_sides();
    }

    void mark_sides() {
        for (int r = 0; r < 2; r++) present[r][0] = present[r][1] = false;
        P count = {};
        each<T>(k, [&](int j) {
            P up = at<T>(limit[0], j), low = at<T>(limit[1], j), none = P{}, one = splat<T>(1.0);
            at<T>(fixed, j) = pick(up == low, one, none);
            for (int s = 0; s < 2; s++) {
                P x = at<T>(limit[s], j);
                auto finite = size(x) <= HUGE_LIMIT;
                at<T>(on[s], j) = pick(finite, one - at<T>(fixed, j), none);
                at<T>(limit[s], j) = pick(finite, x * at<T>(units.rows, j), none);
                if (any(at<T>(on[s], j) > 0)) present[j * T::pack >= bounds][s] = true;
                count += at<T>(on[s], j);
            }
        });
        sides = greater(T::sum(count), V{} + 1.0);
    }

    // r, with c r in `weight`: the size that z is expected to have, and one over that of the
    // multipliers; see _sizes in diffopt/qp/scaling.py.
    V sizes() {
        V q = V{} + M.curvature;
        V g = {}, needed = {}, far = {};
        for (int j = 0; j < n; j++) g = greater(size(M.d[j] * p[j]), g);
        for (int i = 0; i < e; i++) needed = greater(size(M.e_A[i] * b[i]), needed);
        for (int i = 0; i < k; i++) {
            if (i >= m && i < bounds) continue;
            if (i >= bounds + n) break;
            V unit = i < m ? V{} + M.e_G[i] : V{} + 1.0 / M.d[i - bounds];
            V up = unit * limit[0][i], low = unit * limit[1][i];
            needed = greater(greater(low * pick(low <= HUGE_LIMIT, V{} + 1.0, V{}), -up), needed);
            V a = size(up), z = size(low);
            far = greater(pick(a <= HUGE_LIMIT, a, V{}), far);
            far = greater(pick(z <= HUGE_LIMIT, z, V{}), far);
        }
        V free = pick(q > 0, g / q, V{});
        if (any(q <= 0)) free = pick(q > 0, free, typical());
        V r = pick(far > 0, lesser(free, far), free);
        r = greater(r, needed);
        r = power_of_two(positive_or_one<T>(pick(r > 0, r, far)));
        V c = power_of_two(1.0 / positive_or_one<T>(greater(q * r, g)));
        weight = c * r;
        return r;
    }

    // The (lower) median of the finite limits that are not zero; 0 if there are none. Only linear
    // programs need it. By bisection: positive numbers are in the order of their bits.
    V typical() {
        V out = {};
        for (int l = 0; l < T::lanes; l++) {
            const long count = limits_up_to(l, HUGE_LIMIT);
            long long below = 0,
                      upto = 0x7ff0000000000000LL;  // bits: the median is in (below, upto]
            while (count && upto - below > 1) {
                const long long middle = below + (upto - below) / 2;
                double x;
                __builtin_memcpy(&x, &middle, sizeof x);
                (limits_up_to(l, x) > (count - 1) / 2 ? upto : below) = middle;
            }
            double median = 0.0;
            if (count) __builtin_memcpy(&median, &upto, sizeof median);
            set_lane(out, l, median);
        }
        return out;
    }

    // How many limits of a lane are not zero and at most x, in size.
    long limits_up_to(int l, double x) const {
        long out = 0;
        for (int i = 0; i < k; i++) {
            if ((i >= m && i < bounds) || i >= bounds + n) continue;
            const double unit = lane(i < m ? V{} + M.e_G[i] : V{} + 1.0 / M.d[i - bounds], l);
            for (int side = 0; side < 2; side++) {
                const double a = __builtin_fabs(unit * lane(limit[side][i], l));
                out += a > 0 && a <= x;
            }
        }
        return out;
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
