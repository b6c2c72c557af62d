// The pull-back of the KKT conditions to the data: outer products, written in one pass.
#pragma once
#include "engine.hpp"

namespace diffopt {

// Where the gradients go, a sample after the other; null: not wanted.
struct Gradients {
    double *Q, *p, *G, *h, *A, *b, *lb, *ub, *h_lower;
};

// out = a b' + c d'.
inline void outer(double* out, int rows, int n, const double* a, const double* b, const double* c,
                  const double* d) {
    for (long i = 0; i < rows; i++)
        for (int j = 0; j < n; j++) out[i * n + j] = a[i] * b[j] + c[i] * d[j];
}

// For x = (z, nu, y) and the cotangent u of (Qz + p + A'nu + C'y, Az - b, Cz - limit of active
// rows).
inline void pull_back(const Batch& batch, long s, const double* x, const double* u,
                      const signed char* active, const Gradients& out) {
    const long n = batch.n, m = batch.m, e = batch.e, k = m + (batch.bounded ? n : 0),
               N = n + e + k;
    const double *z = x + s * N, *nu = z + n, *lam = nu + e, *u_z = u + s * N, *u_nu = u_z + n,
                 *u_y = u_nu + e;
    const signed char* side = active + s * k;
    if (out.Q)
        for (long i = 0; i < n; i++)
            for (long j = 0; j < n; j++)
                out.Q[(s * n + i) * n + j] = 0.5 * (u_z[i] * z[j] + z[i] * u_z[j]);
    for (long j = 0; out.p && j < n; j++) out.p[s * n + j] = u_z[j];
    if (out.G)
        for (long i = 0; i < m; i++) {
            const double at_row = side[i] ? u_y[i] : 0.0;
            outer(out.G + (s * m + i) * n, 1, n, lam + i, u_z, &at_row, z);
        }
    if (out.A) outer(out.A + s * e * n, e, n, nu, u_z, u_nu, z);
    for (long i = 0; out.b && i < e; i++) out.b[s * e + i] = -u_nu[i];
    auto limit = [&](double* to, long begin, long count, int sign) {
        for (long i = 0; to && i < count; i++)
            to[s * count + i] = side[begin + i] == sign ? -u_y[begin + i] : 0.0;
    };
    limit(out.h, 0, m, 1), limit(out.h_lower, 0, m, -1);
    limit(out.ub, m, n, 1), limit(out.lb, m, n, -1);
}

// Every sample, in runs that are worth a thread.
inline void pull_back_all(const Batch& batch, int threads, Interrupt& interrupt, const double* x,
                          const double* u, const signed char* active, const Gradients& out) {
    const long numbers = (long)batch.n * (batch.n + batch.m + batch.e) + 1;
    const long run = numbers > (1 << 17) ? 1 : (1 << 17) / numbers;
    spread((batch.size + run - 1) / run, threads, interrupt, [&] {
        return [&](long i) {
            const long end = (i + 1) * run < batch.size ? (i + 1) * run : batch.size;
            for (long s = i * run; s < end; s++) pull_back(batch, s, x, u, active, out);
        };
    });
}

}  // namespace diffopt
