// The KKT matrix of a group at the weights t of its rows: factorised, then solved with refinement.
//
//   Q x + A'nu + C'(f y) = r_z,    A x = r_nu,    g C x - t y = r_y,    (f, g) = (1, 1 - t),
//
// and (1 - t, 1) for the transposed one; t = 0 is an equality, t = 1 an inactive row, between an
// interior-point weight. What is factorised has t + delta for t, rho added to Q, and -delta in the
// lower corner; y is eliminated, and gamma A' times the second row added to the first. See
// diffopt/qp/kkt.py and structure.py, of which this is `Dense` (H of size n) and, of a diagonal Q
// with no rows but A and bounds, `Diagonal` (only the Schur complement of A is factorised).
#pragma once
#include "residuals.hpp"

namespace diffopt {

struct Settings {
    double eps, eps_polish, eps_infeasible, regularization, warm_mu;
    int max_steps, patience, refinements;
};

template <class T, class E>
struct KKT {
    using V = typename T::V;
    using P = typename T::P;
    using Mask = typename T::Mask;
    const Problem<T, E>& qp;
    const Settings& settings;
    Upper<T> upper;  // of [H B'; B -S], or of the Schur complement alone
    V *t, *g, *inverse_T;
    V *base, *pivot, *panel, *weight, *f;  // base: Q + rho I + gamma A'A and theta A'
    int N, ldbase;
    V first, last;  // residual of the last solve: relative, before refinement; absolute, after it
    Blocks<T> rest, step, trial;
    Products<T> moved, tried;

    KKT(const Problem<T, E>& qp, const Settings& settings)
        : qp(qp), settings(settings), N(qp.diagonal ? qp.e : qp.n + qp.e), ldbase(T::stride(N)) {
        upper.N = N, upper.ld = ldbase;
    }

    // What the derivative needs, and what only the solve does.
    void carve(Arena& a) {
        upper.U = a.take<V>((long)N * ldbase), upper.inverse = a.take<V>(padded<T>(N));
        pivot = a.take<V>(padded<T>(qp.n));
        t = a.take<V>(qp.k), g = a.take<V>(qp.k), inverse_T = a.take<V>(qp.k);
    }
    void carve_scratch(Arena& a) {
        upper.panel = a.take<V>((long)N * TILE_ROWS);
        panel = a.take<V>((long)(qp.m > qp.n ? qp.m : qp.n) * TILE_ROWS);
        weight = a.take<V>(qp.k), f = a.take<V>(padded<T>(qp.n + qp.e));
        for (Blocks<T>* v : {&rest, &step, &trial}) v->carve(a, qp.n, qp.e, qp.k);
        moved.carve(a, qp.n, qp.e, qp.k), tried.carve(a, qp.n, qp.e, qp.k);
    }

    void carve_base(Arena& a) { base = a.take<V>(qp.diagonal ? 0 : (long)qp.n * ldbase); }

    double theta() const { return qp.e ? 1.0 - settings.regularization : 1.0; }  // 1 - gamma delta

    void prepare() {
        if (qp.diagonal) return;
        const int n = qp.n, e = qp.e;
        const double delta = settings.regularization, theta = this->theta();
        entries<T>(n, [&](int i) {
            V* row = base + (long)i * ldbase;
            for (int j = 0; j < n; j++) row[j] = qp.weight * qp.M.Q[(long)i * qp.ld + j];
            row[i] += delta;
            for (int q = 0; q < e; q++) row[n + q] = V{} + theta * qp.M.A[(long)q * qp.ld + i];
            for (int q = 0; q < e; q++) {
                V a = V{} + qp.M.A[(long)q * qp.ld + i];
                for (int j = i; j < n; j++) row[j] += a * qp.M.A[(long)q * qp.ld + j];
            }
        });
    }

    // Everything at the weights in `t`.
    OUTLINE void factorize() {
        const double delta = settings.regularization;
        each<T>(qp.k, [&](int j) {
            P t_ = at<T>(t, j), inverse = 1.0 / (t_ + delta);
            at<T>(g, j) = 1.0 - t_, at<T>(inverse_T, j) = inverse;
            at<T>(weight, j) = (1.0 - t_) * inverse;
        });
        if (qp.diagonal) return factorize_diagonal();
        const int n = qp.n;
        for (int i = 0; i < n && !interrupted(); i += TILE_ROWS) {
            const int rows = n - i < TILE_ROWS ? n - i : TILE_ROWS;
            fill_panel<T>(panel, qp.M.G, qp.ld, qp.m, i, rows, [&](int k) { return weight[k]; });
            entries<T>(qp.bounded ? rows : 0, [&](int r) {
                base[(long)(i + r) * ldbase + i + r] += weight[qp.bounds + i + r];
            });
            upper.block(
                i, rows, 0, [&](int r, int j) { return at<T>(base + (long)r * ldbase, j); },
                Product<V, E>{panel, qp.M.G, qp.ld, qp.m, packs<T>(n)});
            entries<T>(qp.bounded ? rows : 0, [&](int r) {
                base[(long)(i + r) * ldbase + i + r] -= weight[qp.bounds + i + r];
            });
        }
        schur(n, delta * theta(), Product<V, E>{panel, qp.M.G, qp.ld, 0, 0});
    }

    void factorize_diagonal() {
        const double delta = settings.regularization;
        each<T>(qp.n, [&](int j) {
            P h = qp.weight * packed<T>(qp.M.Q, j) + delta;
            if (qp.bounded) h += at<T>(weight + qp.bounds, j);
            at<T>(pivot, j) = 1.0 / h;
        });
        schur(0, delta, Product<V, E>{panel, qp.M.columns, T::stride(qp.e), qp.n, packs<T>(qp.e)});
    }

    // The rows of U from `first` on: those of the Schur complement, S on its diagonal.
    void schur(int first, double S, Product<V, E> product) {
        for (int i = first; i < N && !interrupted(); i += TILE_ROWS) {
            const int rows = N - i < TILE_ROWS ? N - i : TILE_ROWS;
            if (product.count)
                fill_panel<T>(panel, product.M, product.ld, product.count, i, rows,
                              [&](int k) { return pivot[k]; });
            auto diagonal = [&](int r, int j) {
                P out = {};
                if (r / T::pack == j) ((V*)&out)[r - j * T::pack] = V{} + S;
                return out;
            };
            upper.block(i, rows, first, diagonal, product);
        }
    }

    // x of the regularised system; C x is left in `Cx`.
    OUTLINE void solve_regularised(const Blocks<T>& r, bool transpose, Blocks<T>& x, V* Cx) {
        const int n = qp.n;
        each<T>(qp.k, [&](int j) {
            P v = at<T>(r.y, j) * at<T>(inverse_T, j);
            at<T>(weight, j) = transpose ? v * at<T>(g, j) : v;
        });
        each<T>(n, [&](int j) { at<T>(x.z, j) = at<T>(r.z, j); });
        qp.rows_transposed(weight, x.z);
        qp.diagonal ? eliminate_diagonal(r, x) : eliminate(r, x);
        qp.rows(x.z, Cx);
        each<T>(qp.k, [&](int j) {
            P v = transpose ? at<T>(Cx, j) : at<T>(g, j) * at<T>(Cx, j);
            at<T>(x.y, j) = (v - at<T>(r.y, j)) * at<T>(inverse_T, j);
        });
    }

    void eliminate(const Blocks<T>& r, Blocks<T>& x) {
        const int n = qp.n, e = qp.e;
        if (e) multiply_transposed<T>(qp.M.A, qp.ld, e, n, r.nu, x.z);
        T::spread(0, n, [&](int j) { f[j] = x.z[j]; });
        T::spread(0, e, [&](int i) { f[n + i] = theta() * r.nu[i]; });
        entries<T>(padded<T>(n + e) - n - e, [&](int i) { f[n + e + i] = V{}; });
        upper.solve(f, n);
        T::spread(0, n, [&](int j) { x.z[j] = f[j]; });
        entries<T>(e, [&](int i) { x.nu[i] = f[n + i]; });
    }

    // S nu = A H^-1 r_z - r_nu,  z = H^-1 (r_z - A'nu), H diagonal.
    void eliminate_diagonal(const Blocks<T>& r, Blocks<T>& x) {
        each<T>(qp.n, [&](int j) { at<T>(f, j) = at<T>(x.z, j) * at<T>(pivot, j); });
        multiply<T>(qp.M.A, qp.ld, qp.e, qp.n, f, x.nu);
        each<T>(qp.e, [&](int j) { at<T>(x.nu, j) -= at<T>(r.nu, j); });
        upper.solve(x.nu, N);
        each<T>(qp.e, [&](int j) { at<T>(f, j) = -at<T>(x.nu, j); });
        multiply_transposed<T>(qp.M.A, qp.ld, qp.e, qp.n, f, x.z);
        each<T>(qp.n, [&](int j) { at<T>(x.z, j) *= at<T>(pivot, j); });
    }

    // What is left of r at x, and the products of x, of which Cz is there already.
    OUTLINE void residual(const Blocks<T>& r, const Blocks<T>& x, bool transpose, Products<T>& out,
                          Blocks<T>& left) {
        qp.curvature(x.z, out.Qz);
        multiply<T>(qp.M.A, qp.ld, qp.e, qp.n, x.z, out.Az);
        each<T>(qp.n, [&](int j) { at<T>(out.pull, j) = P{}; });
        multiply_transposed<T>(qp.M.A, qp.ld, qp.e, qp.n, x.nu, out.pull);
        each<T>(qp.k, [&](int j) {
            P y = at<T>(x.y, j), Cz = at<T>(out.Cz, j), g_ = at<T>(g, j);
            at<T>(weight, j) = transpose ? g_ * y : y;
            at<T>(left.y, j) = at<T>(r.y, j) - ((transpose ? Cz : g_ * Cz) - at<T>(t, j) * y);
        });
        qp.rows_transposed(weight, out.pull);
        each<T>(qp.n, [&](int j) {
            at<T>(left.z, j) = at<T>(r.z, j) - at<T>(out.Qz, j) - at<T>(out.pull, j);
        });
        each<T>(qp.e, [&](int j) { at<T>(left.nu, j) = at<T>(r.nu, j) - at<T>(out.Az, j); });
    }

    OUTLINE V norm(const Blocks<T>& v) const {
        V out = total<T>(qp.n, [&](int j) { return at<T>(v.z, j) * at<T>(v.z, j); });
        out += total<T>(qp.e, [&](int j) { return at<T>(v.nu, j) * at<T>(v.nu, j); });
        out += total<T>(qp.k, [&](int j) { return at<T>(v.y, j) * at<T>(v.y, j); });
        return root(out);
    }

    // |r| + 1e-3 |x|: of a matrix of norm one and a solution much larger than r, rounding leaves
    // 1e-16 |x| whatever is done.
    V scale(V r, const Blocks<T>& x) const {
        V out = r + 1e-3 * norm(x);
        return pick(out == 0, V{} + 1.0, out);
    }

    // x with products `out` for the right-hand side r, refined towards rtol where `wanted`, and its
    // relative residual.
    OUTLINE V solve(const Blocks<T>& r, bool transpose, double rtol, Mask wanted, Blocks<T>& x,
                    Products<T>& out) {
        solve_regularised(r, transpose, x, out.Cz);
        residual(r, x, transpose, out, rest);
        const V size_r = norm(r);
        V error = norm(rest), limit = scale(size_r, x);
        first = error / limit;
        Mask refine = wanted & (error > rtol * limit);
        for (int i = 0; i < settings.refinements && any(refine); i++) {
            solve_regularised(rest, transpose, step, moved.Cz);
            add(x, step, trial);
            each<T>(qp.k,
                    [&](int j) { at<T>(tried.Cz, j) = at<T>(out.Cz, j) + at<T>(moved.Cz, j); });
            residual(r, trial, transpose, tried, step);
            V again = norm(step);
            refine = refine & (again < error);
            error = pick(refine, again, error);
            accept(refine, x, out);
            limit = scale(size_r, x);
            refine = refine & (error > rtol * limit);
        }
        last = error;
        return error / limit;
    }

    void add(const Blocks<T>& a, const Blocks<T>& b, Blocks<T>& out) {
        each<T>(qp.n, [&](int j) { at<T>(out.z, j) = at<T>(a.z, j) + at<T>(b.z, j); });
        each<T>(qp.e, [&](int j) { at<T>(out.nu, j) = at<T>(a.nu, j) + at<T>(b.nu, j); });
        each<T>(qp.k, [&](int j) { at<T>(out.y, j) = at<T>(a.y, j) + at<T>(b.y, j); });
    }

    // `trial`, with products `tried` and what is left in `step`, where better.
    OUTLINE void accept(Mask better, Blocks<T>& x, Products<T>& out) {
        auto take = [&](V* to, const V* from, int n) { replace<T>(better, to, from, n); };
        take(x.z, trial.z, qp.n), take(x.nu, trial.nu, qp.e), take(x.y, trial.y, qp.k);
        take(rest.z, step.z, qp.n), take(rest.nu, step.nu, qp.e), take(rest.y, step.y, qp.k);
        take(out.Qz, tried.Qz, qp.n), take(out.Az, tried.Az, qp.e);
        take(out.Cz, tried.Cz, qp.k), take(out.pull, tried.pull, qp.n);
    }
};

}  // namespace diffopt
