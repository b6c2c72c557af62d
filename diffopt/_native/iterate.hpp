// A point of the interior-point method, and where it begins: cold or warm. Slack s and multiplier
// y >= 0 of each side of a row (0 upper, 1 lower); the multiplier of the row is y_0 - y_1. A row
// with equal limits is an equality, with its multiplier in y_0. See diffopt/qp/newton.py and
// start.py.
#pragma once
#include "kkt.hpp"

namespace diffopt {

constexpr double FAR = 10.0;    // a limit beyond it plays no part in the start
constexpr double ROUGH = 1e-4;  // accuracy of what only says where to begin, or how much to centre

template <class T, class E>
struct Iterate {
    using V = typename T::V;
    using P = typename T::P;
    using Mask = typename T::Mask;
    const Problem<T, E>& qp;
    const Settings& settings;
    KKT<T, E>& kkt;
    Blocks<T> x, r;  // z, nu, and y by rows; a right-hand side
    V *s[2], *y[2];
    Products<T> at_x;

    void carve(Arena& a) {
        x.carve(a, qp.n, qp.e, qp.k), r.carve(a, qp.n, qp.e, qp.k), at_x.carve(a, qp.n, qp.e, qp.k);
        for (int side = 0; side < 2; side++) s[side] = a.take<V>(qp.k), y[side] = a.take<V>(qp.k);
    }

    // A point on the central path, from the solve with every weight one: its multipliers v = C z -
    // limit, of either sign, are retracted to y - s = v, s y = mu.
    void cold_start() {
        each<T>(qp.k, [&](int j) {
            P count = at<T>(qp.on[0], j) + at<T>(qp.on[1], j), t = 1.0 / (1.0 + count);
            P fix = at<T>(qp.fixed, j), near = {};
            for (int side = 0; side < 2; side++)
                near += clamp(at<T>(qp.limit[side], j)) * at<T>(qp.on[side], j);
            at<T>(kkt.t, j) = pick(fix > 0, P{}, t);
            at<T>(r.y, j) = near * t + at<T>(qp.limit[0], j) * fix;
        });
        each<T>(qp.n, [&](int j) { at<T>(r.z, j) = -at<T>(qp.p, j); });
        each<T>(qp.e, [&](int j) { at<T>(r.nu, j) = at<T>(qp.b, j); });
        kkt.factorize();
        kkt.solve(r, false, ROUGH, all(), x, at_x);
        const V mu = start_mu();
        qp.each_side([&](int side, int j) {
            const double sign = qp.sign(side);
            retract(side, j, sign * (at<T>(at_x.Cz, j) - at<T>(qp.limit[side], j)), splat<T>(mu));
        });
        finish_start();
    }

    // A point near x = (z, nu, y), the solution of a similar problem, with products s y = mu.
    void warm_start() {
        qp.rows(x.z, at_x.Cz);
        qp.each_side([&](int side, int j) {
            const double sign = qp.sign(side);
            P slack = sign * (at<T>(qp.limit[side], j) - at<T>(at_x.Cz, j)), none = {};
            P v = greater(sign * at<T>(x.y, j), none) - greater(slack, none);
            retract(side, j, v, splat<T>(settings.warm_mu));
        });
        finish_start();
    }

    static Mask all() { return V{} == V{}; }
    static P clamp(P v) { return lesser(greater(v, splat<T>(-FAR)), splat<T>(FAR)); }

    // Of y and s = y - v, the smaller is mu over the larger: no cancellation.
    void retract(int side, int j, P v, P mu) {
        P large = (size(v) + root(v * v + 4.0 * mu)) * 0.5, small = mu / large;
        P on = at<T>(qp.on[side], j);
        at<T>(y[side], j) = on * pick(v > 0, large, small);
        at<T>(s[side], j) = pick(on > 0, pick(v > 0, small, large), splat<T>(1.0));
    }

    void finish_start() {
        each<T>(qp.k, [&](int j) {
            P fix = at<T>(qp.fixed, j);
            for (int side = 0; side < 2; side++) {
                P none = 1.0 - at<T>(qp.on[side], j);
                at<T>(s[side], j) = pick(none > 0, splat<T>(1.0), at<T>(s[side], j));
                at<T>(y[side], j) = pick(none > 0, P{}, at<T>(y[side], j));
            }
            at<T>(y[0], j) = pick(fix > 0, at<T>(x.y, j), at<T>(y[0], j));
        });
        products();
    }

    // The mean product after shifting s = -v and y = v to be nonnegative.
    V start_mu() {
        auto v = [&](int side, int j) {
            P near = clamp(at<T>(qp.limit[side], j));
            return qp.sign(side) * (at<T>(at_x.Cz, j) - near) * at<T>(qp.on[side], j);
        };
        const V up = qp.most_sides([&](int side, int j) { return greater(v(side, j), P{}); });
        const V down = qp.most_sides([&](int side, int j) { return greater(-v(side, j), P{}); });
        V sum = qp.total_sides([&](int side, int j) {
            P a = v(side, j);
            return (up - a) * (a + down) * at<T>(qp.on[side], j);
        });
        return greater(sum / qp.sides, V{} + 1e-10);
    }

    void rows_of_y() {
        each<T>(qp.k, [&](int j) { at<T>(x.y, j) = at<T>(y[0], j) - at<T>(y[1], j); });
    }

    OUTLINE void products() {
        rows_of_y();
        qp.rows(x.z, at_x.Cz);
        each<T>(qp.k, [&](int j) { at<T>(kkt.t, j) = P{}, at<T>(kkt.g, j) = P{}; });
        kkt.residual(r, x, false, at_x, kkt.rest);
    }
};

}  // namespace diffopt
