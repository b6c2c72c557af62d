// Steps of fixed-point methods that remember: every sample its own history, one pass over it.
//
// The formulas are those of diffopt/fixed_point/anderson.py and broyden.py.
#pragma once
#include <cmath>
#include <vector>

#include "engine.hpp"

namespace diffopt {

// As many X as fill a register, anywhere in memory.
template <class X>
struct Pack;
template <>
struct Pack<float> {
    typedef float type __attribute__((vector_size(8 * WIDTH), aligned(4), may_alias));
};
template <>
struct Pack<double> {
    typedef double type __attribute__((vector_size(8 * WIDTH), aligned(8), may_alias));
};

// Vectors of n numbers. Sums are kept in four packs: their rounding errors are those of shorter
// sums, and the additions do not wait for each other.
template <class X>
struct Vectors {
    using P = typename Pack<X>::type;
    static constexpr long width = 8 * WIDTH / sizeof(X);
    long n;

    template <class F, class G>
    INLINE void each(F packs, G rest) const {
        long j = 0;
        for (; j + width <= n; j += width) packs(j);
        for (; j < n; j++) rest(j);
    }
    static INLINE P get(const X* a, long j) { return *(const P*)(a + j); }
    static INLINE void put(X* a, long j, P x) { *(P*)(a + j) = x; }

    // f(j) of packs and g(j) of numbers, summed.
    template <class F, class G>
    INLINE double total(F f, G g) const {
        P s[4] = {};
        long j = 0;
        for (; j + 4 * width <= n; j += 4 * width)
            UNROLL for (int q = 0; q < 4; q++) s[q] += f(j + q * width);
        for (; j + width <= n; j += width) s[0] += f(j);
        P sum = (s[0] + s[1]) + (s[2] + s[3]);
        X part[width];
        put(part, 0, sum);
        UNROLL for (long half = width / 2; half > 0; half /= 2)
            UNROLL for (long q = 0; q < half; q++) part[q] += part[q + half];
        double out = part[0];
        for (; j < n; j++) out += g(j);
        return out;
    }
    double dot(const X* a, const X* b) const {
        return total([&](long j) { return get(a, j) * get(b, j); },
                     [&](long j) { return a[j] * b[j]; });
    }
    // out += weight x.
    void add(X* out, double weight, const X* x) const {
        const X w = (X)weight;
        each([&](long j) { put(out, j, get(out, j) + w * get(x, j)); },
             [&](long j) { out[j] += w * x[j]; });
    }
    // out = a - b.
    void difference(X* out, const X* a, const X* b) const {
        each([&](long j) { put(out, j, get(a, j) - get(b, j)); },
             [&](long j) { out[j] = a[j] - b[j]; });
    }
    void copy(X* out, const X* a) const { std::memcpy(out, a, n * sizeof(X)); }
};

// x <- H^-1 x by Cholesky for a k x k matrix H, of which the upper half is overwritten; false where
// it is not positive definite.
inline bool solve_spd(double* H, int k, double* x) {
    for (int i = 0; i < k; i++) {
        double* row = H + i * k;
        for (int r = 0; r < i; r++)
            for (int c = i; c < k; c++) row[c] -= H[r * k + i] * H[r * k + c];
        if (!(row[i] > 0) || !(row[i] <= HUGE_LIMIT)) return false;
        const double inverse = 1.0 / std::sqrt(row[i]);
        for (int c = i; c < k; c++) row[c] *= inverse;
        for (int r = 0; r < i; r++) x[i] -= H[r * k + i] * x[r];
        x[i] /= row[i];
    }
    for (int i = k - 1; i >= 0; i--) {
        for (int c = i + 1; c < k; c++) x[i] -= H[i * k + c] * x[c];
        x[i] /= H[i * k + i];
    }
    return true;
}

// A step of Anderson acceleration: `count` differences are remembered, the newest goes to `slot` of
// `memory`.
template <class X>
struct AndersonStep {
    long n;
    int memory, slot, count;
    double damping, ridge;
    const X *image, *gap;
    X *last_image, *last_gap, *images, *gaps;  // what is remembered
    double* gram;
    X* out;

    void operator()(long s, std::vector<double>& room) const {
        const Vectors<X> v{n};
        const X *f = image + s * n, *g = gap + s * n;
        X *dF = images + s * memory * n, *dG = gaps + s * memory * n, *z = out + s * n;
        double* H = gram + s * memory * memory;
        v.difference(dF + slot * n, f, last_image + s * n), v.copy(last_image + s * n, f);
        v.difference(dG + slot * n, g, last_gap + s * n), v.copy(last_gap + s * n, g);
        room.resize(count * (count + 1));
        double *A = room.data(), *gamma = A + count * count, most = 0.0;
        for (int i = 0; i < count; i++) {
            gamma[i] = v.dot(dG + i * n, g);
            H[slot * memory + i] = H[i * memory + slot] = v.dot(dG + i * n, dG + slot * n);
        }
        for (int i = 0; i < count; i++) most = most > H[i * memory + i] ? most : H[i * memory + i];
        for (int i = 0; i < count; i++)
            for (int j = 0; j < count; j++)
                A[i * count + j] = H[i * memory + j] + (i == j ? ridge * most : 0.0);
        const bool known = solve_spd(A, count, gamma);
        v.copy(z, f);
        for (int i = 0; known && i < count; i++) v.add(z, -gamma[i], dF + i * n);
        if (damping == 1) return;
        v.add(z, damping - 1, g);
        for (int i = 0; known && i < count; i++) v.add(z, (1 - damping) * gamma[i], dG + i * n);
    }
};

// A step of Broyden's method: the update that the last step teaches, if any, and the next step.
template <class X>
struct BroydenStep {
    long n;
    int memory, count;
    bool learn;
    const X* gap;
    X *U, *V, *step, *last_gap;  // step: the last one in, the next one out

    void operator()(long s, std::vector<X>& room) const {
        const Vectors<X> v{n};
        const X* g = gap + s * n;
        X *u = U + s * memory * n, *w = V + s * memory * n, *d = step + s * n;
        room.resize(2 * n);
        X *Bg = room.data(), *Bs = Bg + n;
        apply(v, u, w, g, Bg);
        const bool moved = std::memcmp(last_gap + s * n, g, n * sizeof(X)) != 0;
        v.copy(last_gap + s * n, g);
        if (learn && moved) {
            apply(v, w, u, d, Bs);
            const double length = v.dot(d, d), curvature = v.dot(d, Bg) + length;
            const bool known = std::fabs(curvature) > 1e-12 * length && curvature - curvature == 0;
            X *new_u = u + count * n, *new_v = w + count * n;
            for (long j = 0; j < n; j++)
                new_u[j] = known ? (X)(-Bg[j] / curvature) : X{}, new_v[j] = known ? Bs[j] : X{};
            if (known) v.add(Bg, v.dot(new_v, g), new_u);
        }
        for (long j = 0; j < n; j++) d[j] = -Bg[j];
    }

    // out = (-I + U'V) x.
    void apply(const Vectors<X>& v, const X* U_, const X* V_, const X* x, X* out) const {
        for (long j = 0; j < n; j++) out[j] = -x[j];
        for (int i = 0; i < count; i++) v.add(out, v.dot(V_ + i * n, x), U_ + i * n);
    }
};

// A step of Arnoldi: w without its part in the k rows of V, made twice, normalised, is the next
// row; the coefficients are column k - 1 of H, `rows` x (rows - 1), its last entry `rest`.
template <class X>
struct ArnoldiStep {
    long n;
    int rows, k;
    const X* w;
    X *V, *H, *rest;

    void operator()(long s, std::vector<X>&) const {
        const Vectors<X> v{n};
        X *basis = V + s * rows * n, *next = basis + k * n;
        X* column = H + s * rows * (rows - 1) + k - 1;
        v.copy(next, w + s * n);
        const double scale = std::sqrt(v.dot(next, next));
        for (int i = 0; i < k; i++) column[i * (rows - 1)] = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int i = 0; i < k; i++) {
                const double c = v.dot(basis + i * n, next);
                v.add(next, -c, basis + i * n);
                column[i * (rows - 1)] += (X)c;
            }
        double length = std::sqrt(v.dot(next, next));
        if (length <= 1e-14 * scale) length = 0.0;
        column[k * (rows - 1)] = rest[s] = (X)length;
        const X inverse = length == 0 ? X{} : (X)(1.0 / length);
        for (long j = 0; j < n; j++) next[j] *= inverse;
    }
};

// `step` for every sample, in runs that are worth a thread (those of torch may still be spinning);
// `numbers` are those of a sample.
template <class X, class Step>
void step_all(const Step& step, long size, long numbers, int threads, Interrupt& interrupt) {
    const long run = (1 << 21) / (numbers + 1) + 1;
    spread((size + run - 1) / run, threads, interrupt, [&] {
        auto room = std::make_shared<std::vector<X>>();
        return [&, room, run](long i) {
            const long end = (i + 1) * run < size ? (i + 1) * run : size;
            for (long s = i * run; s < end; s++) step(s, *room);
        };
    });
}

}  // namespace diffopt
