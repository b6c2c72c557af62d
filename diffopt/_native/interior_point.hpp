// Mehrotra's predictor-corrector method on a group; every lane has its own steps, and is frozen
// when it is done. The formulas are those of diffopt/qp/interior_point.py and newton.py.
#pragma once
#include "iterate.hpp"

namespace diffopt {

constexpr double TINY = 1e-30;      // s and y are kept above it
constexpr double CORRECTOR = 1e-2;  // accuracy of the directions, in that which a run is after

template <class T, class E>
struct InteriorPoint : Iterate<T, E> {
    using V = typename T::V;
    using P = typename T::P;
    using Mask = typename T::Mask;
    using Base = Iterate<T, E>;
    using Base::all, Base::rows_of_y;
    using Base::qp, Base::settings, Base::kkt, Base::x, Base::r, Base::s, Base::y, Base::at_x;
    Blocks<T> d;
    V *ds[2], *dy[2], *q[2], *affine[2], *inverse_s[2];
    Products<T> along;
    V error, mu, best, since, steps,
        hard;  // hard: residual of the last direction before refinement
    Mask running, suspect;
    double accuracy;

    InteriorPoint(const Problem<T, E>& qp, const Settings& settings, KKT<T, E>& kkt)
        : Base{qp, settings, kkt} {}

    void carve(Arena& a) {
        Base::carve(a);
        d.carve(a, qp.n, qp.e, qp.k), along.carve(a, qp.n, qp.e, qp.k);
        for (int side = 0; side < 2; side++)
            for (V** v : {&ds[side], &dy[side], &q[side], &affine[side], &inverse_s[side]})
                *v = a.take<V>(qp.k);
    }

    // t of each row from the sum of y / s over its sides.
    void weigh() {
        each<T>(qp.k, [&](int j) { at<T>(kkt.t, j) = splat<T>(1.0); });
        qp.each_side([&](int side, int j) {
            P inverse = 1.0 / at<T>(s[side], j);
            at<T>(inverse_s[side], j) = inverse;
            at<T>(kkt.t, j) += at<T>(y[side], j) * inverse;
        });
        each<T>(qp.k, [&](int j) {
            at<T>(kkt.t, j) = pick(at<T>(qp.fixed, j) > 0, P{}, 1.0 / at<T>(kkt.t, j));
        });
    }

    // Steps until every lane of `start` is done to eps, has stalled, or is suspected to have no
    // solution; those that are done.
    OUTLINE Mask run(Mask start, double eps) {
        running = start, suspect = no(all()), accuracy = CORRECTOR * eps;
        best = V{} + infinity(), since = V{}, hard = V{};
        V taken = {};
        Mask done = no(all());
        for (int i = 0;; i++) {
            measure();
            Mask good = running & (error <= eps);
            V better = pick(error < best, V{} + 1.0, V{});
            best = pick(better > 0, error, best);
            since = pick(better > 0, V{}, since + 1.0);
            Mask stop = no(error <= HUGE_LIMIT) | (since >= (double)settings.patience) | suspect;
            done = done | good;
            running = running & no(good | stop);
            if (i == settings.max_steps || !any(running) || interrupted()) break;
            step();
            taken += pick(running, V{} + 1.0, V{});
        }
        steps += taken;
        return done;
    }

    // The worst KKT residual in the user's units and in these: see Residuals and Gauge in the torch
    // engine.
    void measure() {
        V ignored[3];
        error = residuals(qp, x, at_x, payment(), ignored);
        mu = qp.total_sides([&](int side, int j) {
            return at<T>(s[side], j) * at<T>(y[side], j);
        }) / qp.sides;
    }

    // The limits times their multipliers.
    V payment() const {
        V sides = qp.total_sides([&](int side, int j) {
            return qp.sign(side) * at<T>(qp.limit[side], j) * at<T>(y[side], j);
        });
        return sides + total<T>(qp.k, [&](int j) {
                   return at<T>(qp.fixed, j) * at<T>(qp.limit[0], j) * at<T>(y[0], j);
               });
    }

    void step() {
        weigh();
        kkt.factorize();
        each<T>(qp.n, [&](int j) {
            at<T>(r.z, j) = -(at<T>(at_x.Qz, j) + at<T>(qp.p, j) + at<T>(at_x.pull, j));
        });
        each<T>(qp.e, [&](int j) { at<T>(r.nu, j) = at<T>(qp.b, j) - at<T>(at_x.Az, j); });
        direction(true, [&](int side, int j) { return -at<T>(s[side], j) * at<T>(y[side], j); });
        // How much of mu the affine step removes says how much centring the next one needs; the
        // cube (Mehrotra) makes sigma nearly 0 where it removes most, nearly 1 where little.
        V reach = lesser(length(), V{} + 1.0);
        V ahead = qp.total_sides([&](int side, int j) {
            return greater(at<T>(s[side], j) + reach * at<T>(ds[side], j), splat<T>(TINY)) *
                   greater(at<T>(y[side], j) + reach * at<T>(dy[side], j), splat<T>(TINY)) *
                   at<T>(qp.on[side], j);
        }) / qp.sides;
        V sigma = lesser(ahead / greater(mu, V{} + 1e-300), V{} + 1.0);
        sigma = sigma * sigma * sigma;
        qp.each_side([&](int side, int j) {
            at<T>(affine[side], j) = at<T>(ds[side], j) * at<T>(dy[side], j);
        });
        const V goal = sigma * mu;
        direction(false, [&](int side, int j) {
            return goal - at<T>(s[side], j) * at<T>(y[side], j) - at<T>(affine[side], j);
        });
        V fraction = pick(mu > 1e-4, V{} + 0.99, V{} + 0.999);
        const V reached = lesser(fraction * length(), V{} + 1.0);
        advance(lesser(falling(reached), reached));
        look_for_proof();
    }

    // The direction with sign C dz + ds = rest of the sides and s dy + y ds = target. Eliminating
    // ds gives dy = (y/s) sign C dz - q, q = (y rest - target) / s, a side; summed with the signs,
    // and times t, the row of the KKT matrix.
    template <class F>
    void direction(bool predictor, F target) {
        each<T>(qp.k, [&](int j) { at<T>(r.y, j) = P{}; });
        qp.each_side([&](int side, int j) {
            P rest = side_rest(side, j);
            P q_ = (at<T>(y[side], j) * rest - target(side, j)) * at<T>(inverse_s[side], j) *
                   at<T>(qp.on[side], j);
            at<T>(q[side], j) = q_;
            at<T>(r.y, j) += qp.sign(side) * q_;
        });
        each<T>(qp.k, [&](int j) {
            P gap = at<T>(qp.limit[0], j) - at<T>(at_x.Cz, j);
            at<T>(r.y, j) = pick(at<T>(qp.fixed, j) > 0, gap, at<T>(kkt.t, j) * at<T>(r.y, j));
        });
        if (predictor) {
            // Refined where the step before needed it.
            Mask wanted = running & (hard > ROUGH);
            if (any(wanted))
                kkt.solve(r, false, ROUGH, wanted, d, along);
            else
                kkt.solve_regularised(r, false, d, along.Cz);
        } else {
            kkt.solve(r, false, accuracy, running, d, along);
            hard = kkt.first;
        }
        split(target);
    }

    INLINE P side_rest(int side, int j) const {
        const double sign = qp.sign(side);
        return (sign * (at<T>(qp.limit[side], j) - at<T>(at_x.Cz, j)) - at<T>(s[side], j)) *
               at<T>(qp.on[side], j);
    }

    // ds and dy of the sides from the dy of the rows. Far from a limit (s > y) ds follows from C
    // dz, near it (y >= s) from dy: nothing is divided by what is nearly zero. What the sum over
    // the sides lacks of the refined dy of the row goes to the near side.
    template <class F>
    void split(F target) {
        each<T>(qp.k, [&](int j) { at<T>(kkt.weight, j) = at<T>(d.y, j); });
        qp.each_side([&](int side, int j) {
            const double sign = qp.sign(side);
            P ratio = at<T>(y[side], j) * at<T>(inverse_s[side], j);
            P dy_ = (ratio * sign * at<T>(along.Cz, j) - at<T>(q[side], j)) * at<T>(qp.on[side], j);
            at<T>(dy[side], j) = dy_;
            at<T>(kkt.weight, j) -= sign * dy_;
        });
        qp.each_side([&](int side, int j) {
            const double sign = qp.sign(side);
            P s_ = at<T>(s[side], j), y_ = at<T>(y[side], j), on = at<T>(qp.on[side], j);
            P other_s = at<T>(s[1 - side], j), other_y = at<T>(y[1 - side], j);
            auto near = (on > 0) & (y_ >= s_);
            auto heavier = near & (y_ * other_s >= other_y * s_);
            P dy_ = at<T>(dy[side], j) + pick(heavier, sign * at<T>(kkt.weight, j), P{});
            at<T>(dy[side], j) = dy_;
            P move = (side_rest(side, j) - sign * at<T>(along.Cz, j)) * on;
            at<T>(ds[side], j) =
                pick(near, (target(side, j) - s_ * dy_) / pick(near, y_, splat<T>(1.0)), move);
        });
    }

    // The largest step that keeps s and y nonnegative.
    OUTLINE V length() {
        V fastest = qp.most_sides([&](int side, int j) {
            P on = at<T>(qp.on[side], j);
            P by_s = -at<T>(ds[side], j) * at<T>(inverse_s[side], j);
            P by_y = -at<T>(dy[side], j) / pick(on > 0, at<T>(y[side], j), splat<T>(1.0));
            return greater(greater(by_s, by_y) * on, P{});
        });
        return pick(fastest > 0, 1.0 / fastest, V{} + infinity());
    }

    // The step at which the mean product is least, where one of `reach` would raise it: see
    // newton.py.
    V falling(V reach) {
        V first = qp.total_sides([&](int side, int j) {
            P by_y = at<T>(s[side], j) * at<T>(dy[side], j),
              by_s = at<T>(y[side], j) * at<T>(ds[side], j);
            return (by_y + by_s) * at<T>(qp.on[side], j);
        });
        V second = qp.total_sides([&](int side, int j) {
            return at<T>(ds[side], j) * at<T>(dy[side], j) * at<T>(qp.on[side], j);
        });
        const Mask rises = (first < 0) & (first + reach * second > 0);
        return pick(rises, first / (-2.0 * second), V{} + infinity());
    }

    void advance(V reach) {
        auto move = [&](V* v, const V* dv, int count) {
            each<T>(count, [&](int j) {
                at<T>(v, j) = pick(running, at<T>(v, j) + reach * at<T>(dv, j), at<T>(v, j));
            });
        };
        move(x.z, d.z, qp.n), move(x.nu, d.nu, qp.e);
        move(at_x.Qz, along.Qz, qp.n), move(at_x.Az, along.Az, qp.e);
        move(at_x.Cz, along.Cz, qp.k), move(at_x.pull, along.pull, qp.n);
        qp.each_side([&](int side, int j) {
            P on = at<T>(qp.on[side], j), s_ = at<T>(s[side], j), y_ = at<T>(y[side], j);
            P s2 = greater(s_ + reach * at<T>(ds[side], j), splat<T>(TINY));
            P y2 = greater(y_ + reach * at<T>(dy[side], j), splat<T>(TINY)) * on;
            at<T>(s[side], j) = pick(running, pick(on > 0, s2, s_), s_);
            at<T>(y[side], j) = pick(running, y2, y_);
        });
        each<T>(qp.k, [&](int j) {
            P y_ = at<T>(y[0], j), moved = y_ + reach * at<T>(d.y, j);
            at<T>(y[0], j) = pick(running, pick(at<T>(qp.fixed, j) > 0, moved, y_), y_);
        });
        rows_of_y();
    }

    // Farkas, up to eps_infeasible; what is only suspected here is proved, or not, by the caller.
    void look_for_proof() {
        const double tolerance = settings.eps_infeasible;
        V value =
            payment() + total<T>(qp.e, [&](int j) { return at<T>(qp.b, j) * at<T>(x.nu, j); });
        V norm = greater(most<T>(qp.e, [&](int j) { return size(at<T>(x.nu, j)); }),
                         most<T>(qp.k, [&](int j) {
                             return greater(size(at<T>(y[0], j)), size(at<T>(y[1], j)));
                         }));
        V pull = most<T>(qp.n, [&](int j) { return size(at<T>(at_x.pull, j)); });
        suspect = suspect | ((value < 0) & (pull <= tolerance * lesser(-value, norm)));
        // A ray is looked for in the change of z.
        V slope = total<T>(qp.n, [&](int j) { return at<T>(qp.p, j) * at<T>(d.z, j); });
        V moved = greater(most<T>(qp.n, [&](int j) { return size(at<T>(along.Qz, j)); }),
                          most<T>(qp.e, [&](int j) { return size(at<T>(along.Az, j)); }));
        moved = greater(qp.most_sides([&](int side, int j) {
            return greater(qp.sign(side) * at<T>(along.Cz, j), P{}) * at<T>(qp.on[side], j);
        }),
                        moved);
        moved = greater(
            most<T>(qp.k, [&](int j) { return size(at<T>(along.Cz, j)) * at<T>(qp.fixed, j); }),
            moved);
        V far = most<T>(qp.n, [&](int j) { return size(at<T>(d.z, j)); });
        suspect = suspect | ((slope < 0) & (moved <= tolerance * lesser(-slope, far)));
    }
};

}  // namespace diffopt
