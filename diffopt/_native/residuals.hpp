// Points, their products with the data, and how far they are from the KKT conditions.
#pragma once
#include "problem.hpp"

namespace diffopt {

// A vector of the system.
template <class T>
struct Blocks {
    typename T::V *z, *nu, *y;

    void carve(Arena& a, int n, int e, int k) {
        using V = typename T::V;
        z = a.take<V>(padded<T>(n)), nu = a.take<V>(padded<T>(e)), y = a.take<V>(k);
    }
};

// The data times a vector: Qz, Az, Cz, and A'nu + C'y.
template <class T>
struct Products {
    typename T::V *Qz, *Az, *Cz, *pull;

    void carve(Arena& a, int n, int e, int k) {
        using V = typename T::V;
        Qz = a.take<V>(padded<T>(n)), Az = a.take<V>(padded<T>(e));
        Cz = a.take<V>(k), pull = a.take<V>(padded<T>(n));
    }
};

// The KKT residuals of a point with known products, in the user's units: primal, dual, gap (see
// Residuals in diffopt/qp/problem.py). Returned is the worst of them and of the same in these
// units.
template <class T, class E>
OUTLINE typename T::V residuals(const Problem<T, E>& qp, const Blocks<T>& x,
                                const Products<T>& at_x, typename T::V payment,
                                typename T::V (&out)[3]) {
    using V = typename T::V;
    using P = typename T::P;
    const Units<T>& u = qp.units;
    V primal = {}, sizes = {}, user[3] = {};
    auto both = [](V& here, V& there, auto count, auto value, const V* unit) {
        V scaled = most<T>(count, [&](int j) { return value(j) * at<T>(unit, j); });
        there = largest(scaled, there);
        here = largest(most<T>(count, value), here);
    };
    auto violation = [&](int j) {
        P up = (at<T>(at_x.Cz, j) - at<T>(qp.limit[0], j)) *
               greater(at<T>(qp.on[0], j), at<T>(qp.fixed, j));
        P low = (at<T>(qp.limit[1], j) - at<T>(at_x.Cz, j)) *
                greater(at<T>(qp.on[1], j), at<T>(qp.fixed, j));
        return greater(greater(up, low), P{});
    };
    both(primal, user[0], qp.k, violation, u.user_rows);
    both(
        primal, user[0], qp.e, [&](int j) { return size(at<T>(at_x.Az, j) - at<T>(qp.b, j)); },
        u.user_equal);
    both(sizes, user[1], qp.m, [&](int j) { return size(at<T>(at_x.Cz, j)); }, u.user_rows);
    both(
        sizes, user[1], qp.e,
        [&](int j) { return greater(size(at<T>(at_x.Az, j)), size(at<T>(qp.b, j))); },
        u.user_equal);
    V here = primal / (1.0 + sizes);
    out[0] = user[0] / (1.0 + user[1]);

    V dual = {}, user_dual = {}, large = {}, user_large = {};
    both(
        dual, user_dual, qp.n,
        [&](int j) { return size(at<T>(at_x.Qz, j) + at<T>(qp.p, j) + at<T>(at_x.pull, j)); },
        u.user_dual);
    both(
        large, user_large, qp.n,
        [&](int j) { return greater(size(at<T>(at_x.Qz, j)), size(at<T>(qp.p, j))); }, u.user_dual);
    if (qp.bounded)
        both(
            large, user_large, qp.n, [&](int j) { return size(at<T>(x.y + qp.bounds, j)); },
            u.y + qp.bounds);
    here = largest(dual / (1.0 + large), here);
    out[1] = user_dual / (1.0 + user_large);

    V quadratic = total<T>(qp.n, [&](int j) { return at<T>(x.z, j) * at<T>(at_x.Qz, j); });
    V linear = total<T>(qp.n, [&](int j) { return at<T>(x.z, j) * at<T>(qp.p, j); });
    V gap = quadratic + linear + payment +
            total<T>(qp.e, [&](int j) { return at<T>(qp.b, j) * at<T>(x.nu, j); });
    V objective = quadratic * 0.5 + linear;
    here = largest(size(gap) / (1.0 + size(objective)), here);
    out[2] = size(gap * u.user_objective) / (1.0 + size(objective * u.user_objective));
    V worst = here;
    for (V v : out) worst = largest(v, worst);
    return worst;
}

}  // namespace diffopt
