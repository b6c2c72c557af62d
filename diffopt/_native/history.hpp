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
    // The same, and y'out of what it is then; y may be out.
    double add_dot(X* out, double weight, const X* x, const X* y) const {
        const X w = (X)weight;
        return total(
            [&](long j) {
                const P sum = get(out, j) + w * get(x, j);
                put(out, j, sum);
                return sum * get(y, j);
            },
            [&](long j) {
                out[j] += w * x[j];
                return out[j] * y[j];
            });
    }
    void scale(X* out, double factor) const {
        const X w = (X)factor;
        each([&](long j) { put(out, j, w * get(out, j)); }, [&](long j) { out[j] *= w; });
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

// What a step begins with: the gap f(z) - z and its length in units of the tolerance. A sample that
// is done keeps its z for ever.
template <class X>
struct Look {
    long n;
    double rtol, atol;
    const X *z, *image;
    X *next, *error;
    bool* done;

    // Whether sample s is done; its gap is where its next z will be.
    bool operator()(long s) const {
        const Vectors<X> v{n};
        X* gap = next + s * n;
        v.difference(gap, image + s * n, z + s * n);
        const double size = std::sqrt(v.dot(gap, gap));
        const double goal = std::sqrt(v.dot(image + s * n, image + s * n)) * rtol + atol;
        error[s] = (X)(size == 0 ? 0.0 : size / goal);
        done[s] = done[s] || !(error[s] > 1 && error[s] - error[s] == 0);
        return done[s];
    }
    void stay(long s) const { Vectors<X>{n}.copy(next + s * n, z + s * n); }
};

// A step of Anderson acceleration. `seen` differences there were, less than 0 before the first
// image; the last `memory` are remembered.
template <class X>
struct AndersonStep {
    Look<X> look;
    int memory;
    double damping, ridge;
    X *last_image, *last_gap, *images, *gaps;
    double* gram;
    long* seen;

    void operator()(long s, std::vector<double>& room) const {
        const long n = look.n;
        const Vectors<X> v{n};
        if (look(s)) return look.stay(s);
        room.resize(memory * (memory + 1));
        double *A = room.data(), *gamma = A + memory * memory;
        const X* f = look.image + s * n;
        X *dF = images + s * memory * n, *dG = gaps + s * memory * n;
        X *z = look.next + s * n, *g = last_gap + s * n;
        const long slot = seen[s] % memory, count = ++seen[s] < memory ? seen[s] : memory;
        bool known = false;
        if (count > 0) {
            v.difference(dF + slot * n, f, last_image + s * n);
            v.difference(dG + slot * n, z, g);
            known = weights(v, dG, z, slot, count, gram + s * memory * memory, A, gamma);
        }
        v.copy(last_image + s * n, f), v.copy(g, z), v.copy(z, f);
        for (int i = 0; known && i < count; i++) v.add(z, -gamma[i], dF + i * n);
        if (damping == 1) return;
        v.add(z, damping - 1, g);
        for (int i = 0; known && i < count; i++) v.add(z, (1 - damping) * gamma[i], dG + i * n);
    }

    // gamma; false where it cannot be computed.
    bool weights(const Vectors<X>& v, const X* dG, const X* g, long slot, long count, double* H,
                 double* A, double* gamma) const {
        double most = 0.0;
        for (int i = 0; i < count; i++) {
            gamma[i] = v.dot(dG + i * v.n, g);
            H[slot * memory + i] = H[i * memory + slot] = v.dot(dG + i * v.n, dG + slot * v.n);
        }
        for (int i = 0; i < count; i++) most = most > H[i * memory + i] ? most : H[i * memory + i];
        for (int i = 0; i < count; i++)
            for (int j = 0; j < count; j++)
                A[i * count + j] = H[i * memory + j] + (i == j ? ridge * most : 0.0);
        return solve_spd(A, count, gamma);
    }
};

// A step of Broyden's method, from the `taught` + 1 steps so far; `taught` is less than 0 where
// there is none yet. One pass over the memory.
template <class X>
struct BroydenStep {
    Look<X> look;
    int memory;
    X* steps;  // memory + 1 of them
    double* weights;
    long* taught;

    void operator()(long s, std::vector<X>&) const {
        const long n = look.n;
        const Vectors<X> v{n};
        X *d = look.next + s * n, *S = steps + s * (memory + 1) * n;
        double* c = weights + s * memory;
        long& k = taught[s];
        const bool before = look.done[s], done = look(s);
        // From the last step too there is something to learn, for the backward pass.
        if (before || (done && (k < 0 || k == memory || !(look.error[s] <= 1))))
            return look.stay(s);
        if (k == memory) {
            for (int j = 0; j < memory; j++) c[j] = 0;
            k = -1;
        }
        if (++k > 0) learn(v, S, c, k, d);
        v.copy(S + k * n, d);
        if (done) return look.stay(s);
        v.add(d, 1, look.z + s * n);
    }

    // d = -B_(k-1) g to -B_k g.
    void learn(const Vectors<X>& v, const X* S, double* c, long k, X* d) const {
        double t = v.dot(S, d);
        for (long j = 1; j < k; j++) t = v.add_dot(d, c[j - 1] * t, S + j * v.n, S + j * v.n);
        const X* s = S + (k - 1) * v.n;
        const double length = v.dot(s, s), curvature = length - t;
        const X weight = (X)(1 / length);  // infinite for a step that is too short
        const bool known = std::fabs(curvature) > 1e-12 * length && weight - weight == 0 &&
                           curvature - curvature == 0;
        c[k - 1] = known ? 1 / length : 0.0;
        if (known) v.scale(d, length / curvature);
    }
};

// A step of Arnoldi: w without its part in the k rows of V, normalised, is the next row; the
// coefficients are column k - 1 of H, `rows` x (rows - 1). Modified Gram-Schmidt, again where nine
// tenths of w are gone (Parlett, The Symmetric Eigenvalue Problem, section 6.9). `u` is such that
// u'H = 0: what is left of a right-hand side of length beta is beta / |u|. A sample with
// `own` <= k - 1 steps to its goal has rows of zeros.
template <class X>
struct ArnoldiStep {
    long n;
    int rows, k;
    const X *w, *beta, *goal;
    X *V, *H, *u;
    long* own;

    void operator()(long s, std::vector<X>&) const {
        const Vectors<X> v{n};
        X *basis = V + s * rows * n, *next = basis + k * n;
        if (own[s] < k) {
            for (long j = 0; j < n; j++) next[j] = 0;
            return;
        }
        X* column = H + s * rows * (rows - 1) + k - 1;
        v.copy(next, w + s * n);
        const double scale = std::sqrt(v.dot(next, next));
        for (int i = 0; i < k; i++) column[i * (rows - 1)] = 0;
        double length = cleared(v, basis, next, column);
        if (!(length > 0.1 * scale)) length = cleared(v, basis, next, column);
        if (length <= 1e-14 * scale) length = 0.0;
        column[k * (rows - 1)] = (X)length;
        v.scale(next, length == 0 ? 0.0 : 1 / length);
        if (reached(column, u + s * rows, beta[s], goal[s])) own[s] = k;
    }

    // `next` without its part in the basis, which is added to the column; what is left of it.
    double cleared(const Vectors<X>& v, const X* basis, X* next, X* column) const {
        double c = v.dot(basis, next);
        for (int i = 0; i < k; i++) {
            column[i * (rows - 1)] += (X)c;
            const X *row = basis + i * v.n, *other = i + 1 < k ? row + v.n : next;
            c = v.add_dot(next, -c, row, other);
        }
        return std::sqrt(c);
    }

    // Whether the residual is down to the goal; the next number of u.
    bool reached(const X* column, X* u_, double size, double goal_) const {
        double sum = 0, squares = 0;
        for (int i = 0; i < k; i++)
            sum += (double)u_[i] * column[i * (rows - 1)], squares += (double)u_[i] * u_[i];
        const double rest = column[k * (rows - 1)], last = rest > 0 ? -sum / rest : HUGE_VAL;
        u_[k] = (X)last;
        return !(size > goal_ * std::sqrt(squares + last * last));
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
