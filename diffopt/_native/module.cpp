// The Python module: addresses in, answers written where they point. It knows nothing of torch;
// the caller keeps the memory alive, contiguous and of the right size (diffopt/qp/native.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <chrono>
#include <memory>
#include <system_error>
#include <tuple>

#include "gradients.hpp"
#include "history.hpp"
#include "runge.hpp"

#ifndef DIFFOPT_MODULE
#define DIFFOPT_MODULE base
#endif

namespace py = pybind11;
using namespace diffopt;

using Address = unsigned long;
using Given = std::array<std::tuple<Address, long, long>, 9>;
using Sizes = std::tuple<long, int, int, int, bool>;
using Numbers = std::tuple<double, double, double, double, double, int, int, int>;

// `given` are the arguments of solve_qp: Q, p, G, h, A, b, lb, ub, h_lower.
static Batch batch_of(const Sizes& sizes, const Given& given) {
    auto slice = [&](int i) {
        auto [data, batch, step] = given[i];
        return Slice{(const double*)data, batch, step};
    };
    auto [size, n, m, e, bounded] = sizes;
    return {size,     n,        m,        e,        bounded,  slice(0), slice(1),
            slice(2), slice(3), slice(4), slice(5), slice(6), slice(7), slice(8)};
}

static Settings settings_of(const Numbers& numbers) {
    auto [eps, eps_polish, eps_infeasible, regularization, warm_mu, max_steps, patience,
          refinements] = numbers;
    return {eps,     eps_polish, eps_infeasible, regularization,
            warm_mu, max_steps,  patience,       refinements};
}

// A tenth of a second after it was last asked, Python is asked whether Ctrl-C was pressed.
static bool signalled() {
    using Clock = std::chrono::steady_clock;
    static thread_local Clock::time_point last;
    auto now = Clock::now();
    if (now - last < std::chrono::milliseconds(100)) return false;
    last = now;
    py::gil_scoped_acquire held;
    return PyErr_CheckSignals() != 0;
}

// f without the GIL; what Ctrl-C raises is passed on.
template <class F>
static void interruptible(F f) {
    Interrupt interrupt;
    interrupt.ask = signalled;
    {
        py::gil_scoped_release released;
        f(interrupt);
    }
    if (interrupt.stop) throw py::error_already_set();
}

// f with the engine for these arguments.
template <class F>
static void run(const Batch& batch, const Settings& settings, Plan chosen, F f) {
    interruptible([&](Interrupt& interrupt) {
        with_engine(batch, settings, chosen, [&](const auto& engine) { f(engine, interrupt); });
    });
}

// `to`: z, f(z), the next z, the error, which samples are done; then what the method remembers.
template <class X>
static Look<X> look_at(long n, std::pair<double, double> tolerance, const Address* to) {
    return {n,         tolerance.first, tolerance.second, (X*)to[0],
            (X*)to[1], (X*)to[2],       (X*)to[3],        (bool*)to[4]};
}

template <class X>
static void anderson_step(std::array<long, 3> sizes, std::pair<double, double> tolerance,
                          double damping, double ridge, int threads, std::array<Address, 11> to) {
    auto [size, n, memory] = sizes;
    AndersonStep<X> step{look_at<X>(n, tolerance, to.data()),
                         (int)memory,
                         damping,
                         ridge,
                         (X*)to[5],
                         (X*)to[6],
                         (X*)to[7],
                         (X*)to[8],
                         (double*)to[9],
                         (long*)to[10]};
    interruptible([&](Interrupt& interrupt) {
        step_all<double>(step, size, n * (2 * memory + 6), threads, interrupt);
    });
}

template <class X>
static void broyden_step(std::array<long, 3> sizes, std::pair<double, double> tolerance,
                         int threads, std::array<Address, 8> to) {
    auto [size, n, memory] = sizes;
    BroydenStep<X> step{look_at<X>(n, tolerance, to.data()), (int)memory, (X*)to[5], (double*)to[6],
                        (long*)to[7]};
    interruptible([&](Interrupt& interrupt) {
        step_all<X>(step, size, n * (memory + 6), threads, interrupt);
    });
}

template <class X>
static void arnoldi_step(std::array<long, 4> sizes, int threads, std::array<Address, 7> to) {
    auto [size, n, rows, k] = sizes;
    ArnoldiStep<X> step{n,         (int)rows, (int)k,    (X*)to[0], (X*)to[1],
                        (X*)to[2], (X*)to[3], (X*)to[4], (X*)to[5], (long*)to[6]};
    interruptible([&](Interrupt& interrupt) {
        step_all<X>(step, size, n * (2 * k + 4), threads, interrupt);
    });
}

// (weight, array) for each slope.
template <class X>
static Increments<X> increments_of(const std::vector<std::pair<double, Address>>& terms) {
    if (terms.size() > SLOPES) throw std::invalid_argument("too many slopes");
    Increments<X> out{};
    for (auto [weight, at] : terms) {
        out.weight[out.count] = (X)weight;
        out.at[out.count++] = (const X*)at;
    }
    return out;
}

// The slopes of a step lie one after the other, from to[3] on; to: y, h, slope, increments, out.
template <class X>
static void stage_all(std::array<long, 3> sizes, const std::vector<double>& row,
                      std::array<Address, 5> to) {
    auto [samples, n, count] = sizes;
    if (count > SLOPES || (long)row.size() > count) throw std::invalid_argument("too many slopes");
    X* slopes = (X*)to[3];
    Increments<X> terms{};
    for (long i = 0; i < (long)row.size(); i++)
        if (row[i] != 0) {
            terms.weight[terms.count] = (X)row[i];
            terms.at[terms.count++] = slopes + i * samples * n;
        }
    X* own = slopes + (count - 1) * samples * n;
    Stage<X> stage{samples, n,        (const double*)to[1], (const X*)to[0], (const X*)to[2],
                   own,     (X*)to[4]};
    stage(terms);
}

template <class X>
static void judge_all(std::array<long, 2> sizes, std::array<double, 2> tolerances,
                      const std::vector<std::vector<std::pair<double, Address>>>& estimates,
                      std::array<Address, 4> to) {
    if (estimates.size() > 2) throw std::invalid_argument("too many estimates of the error");
    Increments<X> terms[2];
    for (size_t e = 0; e < estimates.size(); e++) terms[e] = increments_of<X>(estimates[e]);
    auto [samples, n] = sizes;
    Judge<X> by{
        n, (const X*)to[0], (const X*)to[1], (const X*)to[2], (X)tolerances[0], (X)tolerances[1]};
    judge(samples, by, terms, (int)estimates.size(), (double*)to[3]);
}

// at: y, slope, span
template <class X>
static Beginning<X> beginning_of(std::array<long, 2> sizes, std::array<double, 3> limits,
                                 std::array<Address, 3> at) {
    auto [rtol, atol, longest] = limits;
    return {sizes[0], sizes[1], (const X*)at[0], (const X*)at[1], (const double*)at[2],
            (X)rtol,  (X)atol,  longest};
}

template <class X>
static void guess_all(std::array<long, 2> sizes, std::array<double, 3> limits,
                      std::array<Address, 3> at, std::array<Address, 3> out) {
    beginning_of<X>(sizes, limits, at).guess((double*)out[0], (double*)out[1], (X*)out[2]);
}

template <class X>
static void length_all(std::array<long, 2> sizes, std::array<double, 3> limits,
                       std::array<Address, 3> at, Address ahead, Address speed, int order,
                       Address step) {
    beginning_of<X>(sizes, limits, at)
        .length((const X*)ahead, (const double*)speed, order, (double*)step);
}

// t, h, end, before, accepted, tried
using ClockAt = std::array<Address, 6>;

static Clock clock_of(long samples, const ClockAt& at) {
    return {samples,
            (const double*)at[0],
            (const double*)at[1],
            (const double*)at[2],
            (const double*)at[3],
            (const long*)at[4],
            (const long*)at[5]};
}

using Chosen = std::tuple<bool, bool, bool>;

PYBIND11_MODULE(DIFFOPT_MODULE, module) {
    module.def("plan", [](const Sizes& sizes, const Given& given, const Numbers& numbers) {
        Batch batch = batch_of(sizes, given);
        Settings settings = settings_of(numbers);
        Plan chosen = plan(batch);
        unsigned long bytes = 0;
        with_engine(batch, settings, chosen,
                    [&](const auto& engine) { bytes = engine.tape_bytes(); });
        return std::make_tuple(Chosen{chosen.across, chosen.shared, chosen.diagonal}, bytes);
    });
    module.def("solve", [](const Sizes& sizes, const Given& given, const Numbers& numbers,
                           Chosen chosen, Address tape, int threads, std::array<Address, 3> warm,
                           std::array<Address, 6> out) {
        Batch batch = batch_of(sizes, given);
        Settings settings = settings_of(numbers);
        Warm from{(const double*)warm[0], (const double*)warm[1], (const double*)warm[2]};
        Answers answers{(double*)out[0], (double*)out[1], (signed char*)out[2],
                        (long*)out[3],   (bool*)out[4],   (bool*)out[5]};
        auto [across, shared, diagonal] = chosen;
        run(batch, settings, Plan{across, shared, diagonal},
            [&](const auto& engine, Interrupt& interrupt) {
                engine.solve((void*)tape, threads, interrupt, from, answers);
            });
        long settled = 0;
        for (long i = 0; i < batch.size; i++) settled += answers.settled[i];
        return settled;
    });
    module.def("apply_inverse",
               [](const Sizes& sizes, const Numbers& numbers, Chosen chosen, Address tape,
                  int threads, bool transpose, Address v, Address x, Address error) {
                   Batch batch = batch_of(sizes, Given{});
                   Settings settings = settings_of(numbers);
                   auto [across, shared, diagonal] = chosen;
                   run(batch, settings, Plan{across, shared, diagonal},
                       [&](const auto& engine, Interrupt& interrupt) {
                           engine.apply_inverse((void*)tape, threads, interrupt, transpose,
                                                (const double*)v, (double*)x, (double*)error);
                       });
                   double worst = 0;
                   for (long i = 0; i < batch.size; i++)
                       worst = largest(((const double*)error)[i], worst);
                   return worst;
               });
    module.def("outer_products", [](const Sizes& sizes, int threads, Address x, Address u,
                                    Address active, std::array<Address, 9> out) {
        Batch batch = batch_of(sizes, Given{});
        auto to = [&](int i) { return (double*)out[i]; };
        Gradients gradients{to(0), to(1), to(2), to(3), to(4), to(5), to(6), to(7), to(8)};
        interruptible([&](Interrupt& interrupt) {
            pull_back_all(batch, threads, interrupt, (const double*)x, (const double*)u,
                          (const signed char*)active, gradients);
        });
    });
    module.def("anderson_step_32", anderson_step<float>);
    module.def("anderson_step_64", anderson_step<double>);
    module.def("arnoldi_step_32", arnoldi_step<float>);
    module.def("arnoldi_step_64", arnoldi_step<double>);
    module.def("broyden_step_32", broyden_step<float>);
    module.def("broyden_step_64", broyden_step<double>);
    module.def("stride_64", [](long samples, const ClockAt& at, const std::vector<double>& c,
                               Address step, Address times) {
        stride(clock_of(samples, at), (long)c.size(), c.data(), (double*)step, (double*)times);
    });
    module.def("advance_64", [](long samples, const ClockAt& at, std::array<double, 6> constants,
                                Address step, Address error, std::array<Address, 5> to) {
        auto [alpha, beta, safety, shortest, longest, longest_step] = constants;
        Controller by{alpha, beta, safety, shortest, longest, longest_step};
        Advance advance{(double*)to[0], (double*)to[1], (double*)to[2], (long*)to[3], (long*)to[4]};
        return advance(clock_of(samples, at), by, (const double*)step, (const double*)error);
    });
    module.def("guess_32", guess_all<float>);
    module.def("guess_64", guess_all<double>);
    module.def("length_32", length_all<float>);
    module.def("length_64", length_all<double>);
    module.def("stage_32", stage_all<float>);
    module.def("stage_64", stage_all<double>);
    module.def("judge_32", judge_all<float>);
    module.def("judge_64", judge_all<double>);
}
