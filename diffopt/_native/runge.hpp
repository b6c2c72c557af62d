// What a Runge-Kutta step costs beside the slopes: sums of them, and the size of the local error.
//
// The formulas are those of diffopt/ode/step.py and control.py.
#pragma once
#include <cmath>
#include <utility>

#include "history.hpp"

namespace diffopt {

constexpr int SLOPES = 20;  // the most that a method has

// The state of every sample's clock, arrays of `samples` numbers.
struct Clock {
    long samples;
    const double *t, *h, *end, *before;
    const long *accepted, *tried;
};

// Where a sample stops, a longer step is cut.
INLINE bool cut(const Clock& clock, long b) {
    return std::fabs(clock.h[b]) >= std::fabs(clock.end[b] - clock.t[b]);
}

// The step to try, and the times t + c h in it, one row for each c.
inline void stride(const Clock& clock, long stages, const double* c, double* step, double* times) {
    for (long b = 0; b < clock.samples; b++)
        step[b] = cut(clock, b) ? clock.end[b] - clock.t[b] : clock.h[b];
    for (long i = 0; i < stages; i++)
        for (long b = 0; b < clock.samples; b++)
            times[i * clock.samples + b] = clock.t[b] + c[i] * step[b];
}

// The PI controller of diffopt/ode/control.py, and its constants.
struct Controller {
    double alpha, beta, safety, shortest, longest, longest_step;

    double next(double h, double error, double before, bool ok) const {
        double factor = safety * std::pow(std::fmax(error, 1e-10), -alpha) * std::pow(before, beta);
        factor = std::isnan(error) ? shortest : std::fmin(std::fmax(factor, shortest), longest);
        h *= ok ? factor : std::fmin(factor, safety);
        return std::fmin(std::fmax(h, -longest_step), longest_step);
    }
};

// What a tried step has come to: the clock moves on where the error allows it. Says whether it does
// for all samples, and whether one of them has not arrived.
struct Advance {
    double *t, *h, *before;
    long *accepted, *tried;

    std::pair<bool, bool> operator()(const Clock& clock, const Controller& by, const double* step,
                                     const double* error) const {
        bool all = true, under_way = false;
        for (long b = 0; b < clock.samples; b++) {
            bool ok = error[b] <= 1, running = clock.t[b] != clock.end[b];
            double there = cut(clock, b) ? clock.end[b] : clock.t[b] + step[b];
            t[b] = ok ? there : clock.t[b];
            h[b] = by.next(step[b], error[b], clock.before[b], ok);
            before[b] = ok ? std::fmax(error[b], 1e-4) : clock.before[b];
            accepted[b] = clock.accepted[b] + (ok && running);
            tried[b] = clock.tried[b] + running;
            all &= ok;
            under_way |= t[b] != clock.end[b];
        }
        return {all, under_way};
    }
};

// Slopes times the step, each an array, with their weights.
template <class X>
struct Increments {
    int count;
    X weight[SLOPES];
    const X* at[SLOPES];

    template <class V, class Get>
    INLINE V sum(V start, Get get) const {
        for (int i = 0; i < count; i++) start += weight[i] * get(at[i]);
        return start;
    }
};

// What a new slope adds to a step: its increment h k, and, where `out` is not null, the state
// y + sum of increments of the next stage, this one the last of them.
template <class X>
struct Stage {
    long samples, n;
    const double* h;
    const X *y, *slope;
    X *increment, *out;

    void operator()(const Increments<X>& increments) const {
        Vectors<X> v{n};
        for (long b = 0; b < samples; b++) {
            X over = (X)h[b];
            v.each([&](long j) { pack(v, b * n + j, over, increments); },
                   [&](long j) { one(b * n + j, over, increments); });
        }
    }

private:
    INLINE void pack(const Vectors<X>& v, long j, X over, const Increments<X>& increments) const {
        v.put(increment, j, v.get(slope, j) * over);
        auto get = [&](const X* a) { return v.get(a, j); };
        if (out) v.put(out, j, increments.sum(get(y), get));
    }
    INLINE void one(long j, X over, const Increments<X>& increments) const {
        increment[j] = slope[j] * over;
        if (out) out[j] = increments.sum(y[j], [&](const X* a) { return a[j]; });
    }
};

// x without its sign; the larger of a and b, NaN if b is.
template <class V>
INLINE V magnitude(V x) {
    return x < 0 ? -x : x;
}
template <class V>
INLINE V larger(V a, V b) {
    return a > b ? a : b;
}

// How a step from y to z is judged: the sums of the squares of its local error, for one or two
// estimates of it, each over rtol max(|y|, |z|) + atol.
template <class X>
struct Judge {
    long n;
    const X *y, *z, *watched;  // watched: whose infinities and NaN are to be seen, too, or null
    X rtol, atol;

    double squares(const Increments<X>& estimate, long from) const {
        Vectors<X> v{n};
        auto ratio = [&](auto zero, auto get) {
            auto scale = larger(magnitude(get(y)), magnitude(get(z))) * rtol + atol;
            auto error = estimate.sum(zero, get) / scale;
            return error * error;
        };
        return v.total(
            [&](long j) {
                return ratio(typename Vectors<X>::P{},
                             [&](const X* a) { return v.get(a, from + j); });
            },
            [&](long j) { return ratio(X(0), [&](const X* a) { return a[from + j]; }); });
    }
    double unseen(long from) const {
        Vectors<X> v{n};
        return watched ? v.total([&](long j) { return v.get(watched, from + j) * X(0); },
                                 [&](long j) { return watched[from + j] * X(0); })
                       : 0;
    }
};

// The local errors of `samples` steps over their tolerances: the root mean square, or for two
// estimates e5^2 / sqrt(e5^2 + 0.01 e3^2).
template <class X>
void judge(long samples, const Judge<X>& by, const Increments<X>* estimates, int count,
           double* out) {
    for (long b = 0; b < samples; b++) {
        double error = by.squares(estimates[0], b * by.n) / by.n;
        if (count > 1 && error != 0)
            error *= error / (error + 0.01 * by.squares(estimates[1], b * by.n) / by.n);
        out[b] = std::sqrt(error) + by.unseen(b * by.n);
    }
}

// The first step to try, after diffopt/ode/control.py: a guess from the sizes of y and its slope,
// then, with the slope after a step of that length, one from the second derivative.
template <class X>
struct Beginning {
    long samples, n;
    const X *y, *slope;
    const double* span;
    X rtol, atol;
    double longest;

    // out: the guess and the size of the slope of each sample, and the state after the guess.
    void guess(double* step, double* speed, X* state) const {
        Vectors<X> v{n};
        for (long b = 0; b < samples; b++) {
            long from = b * n;
            double size = rms(from, [&](auto get) { return get(y); });
            speed[b] = rms(from, [&](auto get) { return get(slope); });
            bool small = size < 1e-5 || speed[b] < 1e-5;
            step[b] = std::fmin(small ? 1e-6 : 0.01 * size / speed[b], most(b));
            step[b] = std::fmax(step[b], 1e-20 * most(b));
            X over = (X)std::copysign(step[b], span[b]);
            v.each(
                [&](long j) {
                    v.put(state, from + j, v.get(y, from + j) + v.get(slope, from + j) * over);
                },
                [&](long j) { state[from + j] = y[from + j] + slope[from + j] * over; });
        }
    }
    // step: the guess, and then the step, with its sign.
    void length(const X* ahead, const double* speed, int order, double* step) const {
        for (long b = 0; b < samples; b++) {
            double change = rms(b * n, [&](auto get) { return get(ahead) - get(slope); });
            double bend = larger(speed[b], change / step[b]);
            double longer = bend <= 1e-15 ? std::fmax(1e-3 * step[b], 1e-6)
                                          : std::pow(0.01 / bend, 1.0 / order);
            if (!std::isfinite(longer)) longer = step[b];
            longer = std::fmin(100 * step[b], longer);
            longer = std::fmax(std::fmin(longer, most(b)), 1e-20 * most(b));
            step[b] = std::copysign(longer, span[b]);
        }
    }

private:
    double most(long b) const { return std::fmin(std::fabs(span[b]), longest); }

    // The root mean square of x over rtol |y| + atol, in the entries from `from` on.
    template <class F>
    double rms(long from, F x) const {
        Vectors<X> v{n};
        auto square = [&](auto get) {
            auto ratio = x(get) / (magnitude(get(y)) * rtol + atol);
            return ratio * ratio;
        };
        double sum =
            v.total([&](long j) { return square([&](const X* a) { return v.get(a, from + j); }); },
                    [&](long j) { return square([&](const X* a) { return a[from + j]; }); });
        return std::sqrt(sum / n);
    }
};

}  // namespace diffopt
