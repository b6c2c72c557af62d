// One group of problems from the user's data to the settled answer, and its derivative's solves.
#pragma once
#include "convexity.hpp"
#include "independence.hpp"
#include "polish.hpp"

namespace diffopt {

// Where the answers go, a sample after the other: x = (z, nu, y), facts = the residuals primal,
// dual and gap, and the worst in both units; `active` is +1 at an upper limit, -1 at a lower one, 0
// elsewhere, its rows those of G and then the bounds. `polished`: converged, and the point of its
// active set; `settled`: with nothing left to choose besides.
struct Answers {
    double *x, *facts;
    signed char* active;
    long* steps;
    bool *polished, *settled;
};

// A point to start from; null: cold.
struct Warm {
    const double *z, *nu, *y;
};

template <class T, class E>
struct Group {
    using V = typename T::V;
    using P = typename T::P;
    using Mask = typename T::Mask;
    const Batch& batch;
    const Settings& settings;
    Problem<T, E> qp;
    KKT<T, E> kkt;
    InteriorPoint<T, E> ip;
    Polish<T, E> polish;
    Blocks<T> in, out;  // of `apply_inverse`
    Products<T> unused;
    V* weight;  // of the tape
    Arena scratch;

    Group(const Batch& batch, const Settings& settings, bool diagonal)
        : batch(batch),
          settings(settings),
          qp(batch, diagonal),
          kkt(qp, settings),
          ip(qp, settings, kkt),
          polish(qp, kkt),
          scratch{nullptr} {}

    // `tape` outlives the solve if a derivative may be asked for.
    void carve(Arena& tape, Arena& work, Matrices<T, E>* shared) {
        qp.carve(tape, shared);
        weight = tape.take<V>(1);
        kkt.carve(tape);
        kkt.carve_scratch(work);
        ip.carve(work);
        polish.carve(tape, work);
        in.carve(work, qp.n, qp.e, qp.k), out.carve(work, qp.n, qp.e, qp.k);
        unused.carve(work, qp.n, qp.e, qp.k);
        kkt.carve_base(work);
        scratch = work;
    }

    // Room for what is only needed for a moment, behind everything else: see Independence, Loader.
    static unsigned long room(const Batch& b) {
        const unsigned long n = padded<T>(b.n), R = T::stride(b.n);
        Arena a{nullptr};
        a.take<int>((long)b.m * T::lanes);
        a.take<V>(n * R + R * R + (n + 2 * R) * (TILE_ROWS + 1));
        a.take<V>(padded<T>(b.n) + padded<T>(b.m) + padded<T>(b.e));
        return a.used + 4096;
    }

    void run(long first, const Warm& warm, const Answers& answers) {
        if constexpr (sizeof(E) == sizeof(V)) {
            if (!shared) Loader<T>(*(Matrices<T, V>*)&qp.M, batch, qp.diagonal, scratch).run(first);
        }
        Mask valid = qp.load_vectors(batch, first);
        qp.scale_vectors();
        if (T::leads()) *weight = qp.weight;
        valid = valid & is_convex(qp, kkt.upper, scratch);
        solve(first, warm, valid);
        Mask polished = valid & polish.done & (polish.error <= SETTLED);
        Mask settled = polished & no(polish.weak());
        if (any(settled)) settled = settled & Independence<T, E>(qp, polish.t, scratch).holds();
        if (keep && polish.stale) restore_factor();
        store(first, polished, settled, answers);
    }
    bool shared = false, keep = false;

    void solve(long first, const Warm& warm, Mask valid) {
        ip.steps = V{};
        polish.begin();
        kkt.prepare();
        Mask left = valid;
        if (warm.z) {
            const Mask known = load_warm(first, warm);
            polish.guess_again(ip.x);
            ip.warm_start();
            polish.run(valid & known, V{} + infinity());
            left = valid & no(polish.done & (polish.error <= SETTLED) & no(polish.weak()));
            polish.done = polish.done & no(left);
            iterate(left & known);
            left = left & no(known);
        }
        if (!any(left)) return;
        ip.cold_start();
        iterate(left);
    }

    // From the start that was made, to the accuracy that shows the active set, and on to `eps`
    // where it did not.
    void iterate(Mask left) {
        if (!any(left)) return;
        polish.stale = true;
        const double early =
            settings.eps > settings.eps_polish ? settings.eps : settings.eps_polish;
        left = left & ip.run(left, early);
        polish.guess_from(ip);
        polish.run(left, ip.error);
        left = left & no(polish.done & (polish.error <= SETTLED));
        if (early == settings.eps || !any(left)) return;
        polish.done = polish.done & no(left);
        polish.stale = true;
        ip.products();  // exact: those of the steps are updated ones
        left = left & ip.run(left, settings.eps);
        polish.guess_from(ip);
        polish.run(left, ip.error);
    }
    static constexpr double SETTLED = 1e-10;  // a larger residual may be that of a wrong active set

    // The lanes whose start is finite.
    Mask load_warm(long first, const Warm& warm) {
        const int n = qp.n, m = qp.m, e = qp.e, rows = m + (qp.bounded ? n : 0);
        load<T>(ip.x.z, Slice{warm.z, n, 1}, n, first, batch.size, 0.0);
        load<T>(ip.x.nu, Slice{warm.nu, e, 1}, e, first, batch.size, 0.0);
        load<T>(ip.x.y, Slice{warm.y, rows, 1}, m, first, batch.size, 0.0);
        if (qp.bounded)
            load<T>(ip.x.y + qp.bounds, Slice{warm.y + m, rows, 1}, n, first, batch.size, 0.0);
        each<T>(n, [&](int j) { at<T>(ip.x.z, j) /= positive_or_one<T>(at<T>(qp.units.z, j)); });
        each<T>(e, [&](int j) { at<T>(ip.x.nu, j) /= positive_or_one<T>(at<T>(qp.units.nu, j)); });
        each<T>(qp.k, [&](int j) { at<T>(ip.x.y, j) /= positive_or_one<T>(at<T>(qp.units.y, j)); });
        V poison = total<T>(n, [&](int j) { return at<T>(ip.x.z, j) * 0.0; });
        poison += total<T>(e, [&](int j) { return at<T>(ip.x.nu, j) * 0.0; });
        poison += total<T>(qp.k, [&](int j) { return at<T>(ip.x.y, j) * 0.0; });
        return poison == 0;
    }

    // The factor of the accepted active sets, where later steps of other lanes have replaced it.
    void restore_factor() {
        polish.hold();
        kkt.factorize();
    }

    void store(long first, Mask polished, Mask settled, const Answers& o) {
        const int n = qp.n, m = qp.m, e = qp.e, rows = m + (qp.bounded ? n : 0);
        const V good = pick(polished, V{} + 1.0, V{}), clear = pick(settled, V{} + 1.0, V{});
        for (int l = 0; l < T::lanes && first + l < batch.size; l++) {
            const long b = first + l;
            double *z = o.x + b * (n + e + rows), *nu = z + n, *y = nu + e;
            entries<T>(n,
                       [&](int j) { z[j] = lane(qp.units.z[j], l) * lane(polish.best.z[j], l); });
            entries<T>(
                e, [&](int i) { nu[i] = lane(qp.units.nu[i], l) * lane(polish.best.nu[i], l); });
            entries<T>(rows, [&](int i) {
                const int k = i < m ? i : qp.bounds + i - m;
                y[i] = lane(qp.units.y[k], l) * lane(polish.best.y[k], l);
                o.active[b * rows + i] =
                    lane(polish.t[k], l) == 0 ? (lane(polish.side[k], l) > 0 ? 1 : -1) : 0;
                if (i >= m && o.active[b * rows + i])  // at its bound to the last bit
                    z[i - m] = bound(o.active[b * rows + i] > 0 ? batch.ub : batch.lb, b, i - m);
            });
            if (!T::leads()) continue;
            for (int i = 0; i < 3; i++) o.facts[4 * b + i] = lane(polish.worst[i], l);
            o.facts[4 * b + 3] = lane(polish.error, l);
            o.steps[b] = (long)lane(ip.steps, l);
            o.polished[b] = lane(good, l) > 0, o.settled[b] = lane(clear, l) > 0;
        }
    }

    static double bound(const Slice& s, long b, int i) { return s.data[b * s.batch + i * s.step]; }

    // x = J^-1 v, or J^-T v, of the Jacobian J of the conditions of the active set in the user's
    // units: Qz + p + A'nu + C'y, Az - b, Cz - limit of active rows and -y of inactive ones. v and
    // x are (z, nu, y) of each sample; `error` is the relative residual.
    void apply_inverse(long first, bool transpose, const double* v, double* x, double* error) {
        const int n = qp.n, m = qp.m, e = qp.e, rows = m + (qp.bounded ? n : 0), N = n + e + rows;
        qp.weight = *weight;
        auto get = [&](V* to, int from, int count) {
            load<T>(to, Slice{v + from, N, 1}, count, first, batch.size, 0.0);
        };
        get(in.z, 0, n), get(in.nu, n, e), get(in.y, n + e, m);
        entries<T>(qp.k - m, [&](int i) { in.y[m + i] = V{}; });
        if (qp.bounded) get(in.y + qp.bounds, n + e + m, n);
        Blocks<T> unknowns{qp.units.z, qp.units.nu, qp.units.y};
        Blocks<T> equations{qp.units.dual, qp.units.equal, polish.guess_t};
        each<T>(qp.k, [&](int j) {
            at<T>(equations.y, j) =
                pick(at<T>(polish.t, j) > 0, 1.0 / positive_or_one<T>(at<T>(qp.units.y, j)),
                     at<T>(qp.units.rows, j));
        });
        scale(in, transpose ? unknowns : equations);
        V worst = kkt.solve(in, transpose, 1e-12, V{} == V{}, out, unused);
        scale(out, transpose ? equations : unknowns);
        for (int l = 0; l < T::lanes && first + l < batch.size; l++) {
            double* to = x + (first + l) * N;
            T::spread(0, n, [&](int j) { to[j] = lane(out.z[j], l); });
            T::spread(0, e, [&](int i) { to[n + i] = lane(out.nu[i], l); });
            entries<T>(rows, [&](int i) {
                to[n + e + i] = lane(out.y[i < m ? i : qp.bounds + i - m], l);
            });
            if (T::leads()) error[first + l] = lane(worst, l);
        }
    }

    void scale(Blocks<T>& v, const Blocks<T>& by) {
        each<T>(qp.n, [&](int j) { at<T>(v.z, j) *= at<T>(by.z, j); });
        each<T>(qp.e, [&](int j) { at<T>(v.nu, j) *= at<T>(by.nu, j); });
        each<T>(qp.k, [&](int j) { at<T>(v.y, j) *= at<T>(by.y, j); });
    }
};

}  // namespace diffopt
