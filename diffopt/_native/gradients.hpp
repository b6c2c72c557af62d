// The pull-back of the KKT conditions to the data: outer products, written in one pass.
#pragma once
#include "data.hpp"

namespace diffopt {

// Where the gradients go, a sample after the other; null: not wanted.
struct Gradients {
    double *Q, *p, *G, *h, *A, *b, *lb, *ub, *h_lower;
};

// For x = (z, nu, y) and the cotangent u of (Qz + p + A'nu + C'y, Az - b, Cz - limit of active
// rows).
template <class T>
void pull_back(const Batch& batch, long s, const double* x, const double* u,
               const signed char* active, const Gradients& out) {
    const long n = batch.n, m = batch.m, e = batch.e, k = m + (batch.bounded ? n : 0),
               N = n + e + k;
    const double *z = x + s * N, *nu = z + n, *lam = nu + e, *u_z = u + s * N, *u_nu = u_z + n,
                 *u_y = u_nu + e;
    const signed char* side = active + s * k;
    // a b' + c d', by rows.
    auto outer = [&](double* to, int rows, auto a, const double* b, auto c, const double* d) {
        double* own = to + s * rows * n;
        if (to)
            T::grid(rows, n, [&](int i) {
                return [row = own + i * n, a = a(i), b, c = c(i), d](int j) {
                    row[j] = a * b[j] + c * d[j];
                };
            });
    };
    auto half = [&](const double* v) { return [v](int i) { return 0.5 * v[i]; }; };
    auto all = [&](const double* v) { return [v](int i) { return v[i]; }; };
    outer(out.Q, n, half(u_z), z, half(z), u_z);
    outer(out.G, m, all(lam), u_z, [&](int i) { return side[i] ? u_y[i] : 0.0; }, z);
    outer(out.A, e, all(nu), u_z, all(u_nu), z);
    auto vector = [&](double* to, int count, auto entry) {
        double* own = to + s * count;
        if (to) T::spread(0, count, [&](int i) { own[i] = entry(i); });
    };
    vector(out.p, n, [&](int j) { return u_z[j]; });
    vector(out.b, e, [&](int i) { return -u_nu[i]; });
    auto limit = [&](double* to, int begin, int count, int sign) {
        vector(to, count, [&](int i) { return side[begin + i] == sign ? -u_y[begin + i] : 0.0; });
    };
    limit(out.h, 0, m, 1), limit(out.h_lower, 0, m, -1);
    limit(out.ub, m, n, 1), limit(out.lb, m, n, -1);
}

}  // namespace diffopt
