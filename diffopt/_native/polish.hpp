// From an interior point to the exact solution: one linear system on the active limits; and what
// has to hold for that solution, its multipliers and its derivative to be the only ones. See
// diffopt/qp/polish.py, dependence.py and point.py: what does not hold here is settled there.
#pragma once
#include "interior_point.hpp"

namespace diffopt {

constexpr int ROUNDS = 3;           // guesses of the active set
constexpr double STUCK = 1e-11;     // a relative residual of a linear solve
constexpr double ROUNDING = 1e-12;  // a residual that is as good as any

template <class T, class E>
struct Polish {
    using V = typename T::V;
    using P = typename T::P;
    using Mask = typename T::Mask;
    const Problem<T, E>& qp;
    KKT<T, E>& kkt;
    Blocks<T> best, x, r, d;  // best: the point, once `done`
    V *t, *side;              // its active set: t = 0 active, side +1 at upper, -1 at lower
    V *guess_t, *guess_side, *tried_side, *Cz;
    Products<T> products;
    V error, worst[3];
    Mask done;
    bool stale;  // whether the factor is not that of the accepted sets

    Polish(const Problem<T, E>& qp, KKT<T, E>& kkt) : qp(qp), kkt(kkt) {}

    // `persistent`: what the derivative reads.
    void carve(Arena& persistent, Arena& a) {
        t = persistent.take<V>(qp.k), side = persistent.take<V>(qp.k);
        for (Blocks<T>* v : {&best, &x, &r, &d}) v->carve(a, qp.n, qp.e, qp.k);
        guess_t = a.take<V>(qp.k), guess_side = a.take<V>(qp.k);
        tried_side = a.take<V>(qp.k), Cz = a.take<V>(qp.k);
        products.carve(a, qp.n, qp.e, qp.k);
    }

    void begin() {
        done = V{} != V{}, error = V{} + infinity(), stale = false;
        each<T>(qp.k, [&](int j) {
            at<T>(t, j) = splat<T>(1.0), at<T>(best.y, j) = P{}, at<T>(Cz, j) = P{};
        });
    }

    // The active set that an interior point shows: limits with y > s.
    void guess_from(const InteriorPoint<T, E>& ip) {
        each<T>(qp.k, [&](int j) {
            P up = at<T>(ip.y[0], j) / at<T>(ip.s[0], j) * at<T>(qp.on[0], j);
            P low = at<T>(ip.y[1], j) / at<T>(ip.s[1], j) * at<T>(qp.on[1], j);
            P fix = at<T>(qp.fixed, j);
            at<T>(guess_t, j) = pick(up + low > 1.0, P{}, splat<T>(1.0) - fix);
            at<T>(guess_side, j) = pick(greater(fix, up) >= low, splat<T>(1.0), splat<T>(-1.0));
        });
        start_from(ip.x);
    }

    // The active set of a solution: limits with a multiplier.
    void guess_again(const Blocks<T>& from) {
        qp.rows(from.z, products.Cz);
        each<T>(qp.k, [&](int j) {
            P y = at<T>(from.y, j), fix = at<T>(qp.fixed, j), one = splat<T>(1.0);
            P Cz = at<T>(products.Cz, j);
            P to_up = size(Cz - at<T>(qp.limit[0], j)), to_low = size(Cz - at<T>(qp.limit[1], j));
            P nearer = pick(to_up <= to_low, one, -one);
            P s = pick(fix > 0, one, pick(y == 0, nearer, pick(y > 0, one, -one)));
            P own = pick(s > 0, at<T>(qp.on[0], j), at<T>(qp.on[1], j));
            at<T>(guess_side, j) = s;
            at<T>(guess_t, j) = pick(y == 0, one, one - own) * (one - fix);
        });
        start_from(from);
    }

    void start_from(const Blocks<T>& from) {
        each<T>(qp.n, [&](int j) { at<T>(x.z, j) = at<T>(from.z, j); });
        each<T>(qp.e, [&](int j) { at<T>(x.nu, j) = at<T>(from.nu, j); });
        each<T>(qp.k, [&](int j) { at<T>(x.y, j) = at<T>(from.y, j); });
    }

    // Tries active sets for the lanes of `wanted`, from the one that was guessed.
    OUTLINE void run(Mask wanted, V error_before) {
        V limit = greater(error_before, V{} + ROUNDING);
        Mask left = wanted;
        for (int i = 0; i < ROUNDS && any(left) && !interrupted(); i++) {
            each<T>(qp.k, [&](int j) { at<T>(kkt.t, j) = at<T>(guess_t, j); });
            hold();
            kkt.factorize();
            stale = false;
            const Mask solved = solve(left);
            next_guess();
            clip();
            V out[3], after = measure(out);
            Mask better = left & solved & (after < limit);
            accept(better, after, out);
            left = left & no(better);
        }
    }

    // Lanes that are done keep their active set, and with it their factor.
    void hold() { replace<T>(done, kkt.t, t, qp.k); }

    // x <- the solution of the linear conditions of the guess, by a refined Newton step; the lanes
    // where refinement was not stuck, as it is by nearly dependent rows.
    Mask solve(Mask wanted) {
        qp.rows(x.z, products.Cz);
        kkt.residual(r, x, false, products, d);  // for its products
        each<T>(qp.n, [&](int j) {
            at<T>(r.z, j) = -(at<T>(products.Qz, j) + at<T>(qp.p, j) + at<T>(products.pull, j));
        });
        each<T>(qp.e, [&](int j) { at<T>(r.nu, j) = at<T>(qp.b, j) - at<T>(products.Az, j); });
        each<T>(qp.k, [&](int j) {
            P limit = pick(at<T>(guess_side, j) > 0, at<T>(qp.limit[0], j), at<T>(qp.limit[1], j));
            P t_ = at<T>(kkt.t, j);
            at<T>(r.y, j) = (1.0 - t_) * (limit - at<T>(products.Cz, j)) + t_ * at<T>(x.y, j);
        });
        V relative = kkt.solve(r, false, 1e-12, wanted, d, products);
        kkt.add(x, d, x);
        return (relative <= STUCK) | (kkt.last <= ROUNDING / 10);
    }

    // Active next is the side whose multiplier plus violation is positive (the primal-dual active
    // set rule).
    void next_guess() {
        qp.rows(x.z, products.Cz);
        each<T>(qp.k, [&](int j) {
            P sum = at<T>(x.y, j) + at<T>(products.Cz, j), none = splat<T>(-infinity());
            P up = pick(at<T>(qp.on[0], j) > 0, sum - at<T>(qp.limit[0], j), none);
            P low = pick(at<T>(qp.on[1], j) > 0, at<T>(qp.limit[1], j) - sum, none);
            P fix = at<T>(qp.fixed, j);
            at<T>(tried_side, j) = at<T>(guess_side, j);
            at<T>(guess_t, j) = pick(greater(up, low) > 0, P{}, splat<T>(1.0) - fix);
            at<T>(guess_side, j) =
                pick(fix > 0, splat<T>(1.0), pick(up >= low, splat<T>(1.0), splat<T>(-1.0)));
        });
    }

    // Inactive multipliers zero, active ones of the sign of their side: into d, x stays.
    void clip() {
        each<T>(qp.k, [&](int j) {
            P y = at<T>(x.y, j), s = at<T>(tried_side, j), t_ = at<T>(kkt.t, j);
            P signed_ = pick(s * y > 0, y, P{});
            at<T>(d.y, j) = pick(t_ > 0, P{}, pick(at<T>(qp.fixed, j) > 0, y, signed_));
        });
        each<T>(qp.n, [&](int j) { at<T>(d.z, j) = at<T>(x.z, j); });
        each<T>(qp.e, [&](int j) { at<T>(d.nu, j) = at<T>(x.nu, j); });
    }

    V measure(V (&out)[3]) {
        Blocks<T> none = kkt.rest;
        kkt.residual(none, d, false, products, kkt.step);
        V payment = total<T>(qp.k, [&](int j) {
            P y = at<T>(d.y, j);
            return y * pick(y > 0, at<T>(qp.limit[0], j), at<T>(qp.limit[1], j));
        });
        V after = residuals(qp, d, products, payment, out);
        return pick(after <= HUGE_LIMIT, after, V{} + infinity());
    }

    void accept(Mask better, V after, const V (&out)[3]) {
        auto take = [&](V* to, const V* from, int n) { replace<T>(better, to, from, n); };
        take(best.z, d.z, qp.n), take(best.nu, d.nu, qp.e), take(best.y, d.y, qp.k);
        take(t, kkt.t, qp.k), take(side, tried_side, qp.k);
        take(Cz, products.Cz, qp.k);
        for (int i = 0; i < 3; i++) worst[i] = pick(better, out[i], worst[i]);
        error = pick(better, after, error);
        done = done | better;
    }

    // Lanes with a row at its limit whose multiplier is zero, or that has no entries: there is a
    // choice of derivatives or multipliers.
    Mask weak() {
        V zero = lesser(greater(1e4 * error, V{} + 1e-11), V{} + 1e-7);
        V bad = most<T>(qp.k, [&](int j) {
            P up = size(at<T>(Cz, j) - at<T>(qp.limit[0], j)),
              low = size(at<T>(Cz, j) - at<T>(qp.limit[1], j));
            P far = splat<T>(1.0);
            P gap = lesser(pick(at<T>(qp.on[0], j) > 0, up, far),
                           pick(at<T>(qp.on[1], j) > 0, low, far));
            P at_limit = pick(gap < zero, splat<T>(1.0), 1.0 - at<T>(t, j));
            P small = pick(size(at<T>(best.y, j)) < zero, splat<T>(1.0), P{});
            return at_limit * small * (1.0 - at<T>(qp.fixed, j));
        });
        return bad > 0;
    }
};

}  // namespace diffopt
