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
    auto matrix = [&](double* to, int rows, auto entry) {
        double* own = to + s * rows * n;
        if (to) T::grid(rows, n, [&](int i, int j) { own[i * n + j] = entry(i, j); });
    };
    matrix(out.Q, n, [&](int i, int j) { return 0.5 * (u_z[i] * z[j] + z[i] * u_z[j]); });
    matrix(out.G, m,
           [&](int i, int j) { return lam[i] * u_z[j] + (side[i] ? u_y[i] : 0.0) * z[j]; });
    matrix(out.A, e, [&](int i, int j) { return nu[i] * u_z[j] + u_nu[i] * z[j]; });
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
