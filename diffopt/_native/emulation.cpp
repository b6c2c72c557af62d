// The kernels of kernel.cu on a CPU, for tests: the same source, its teams one after the other, the
// threads of a team threads of the CPU.
#include <pybind11/pybind11.h>

#include <thread>

#include "kernel.hpp"

namespace diffopt {

bool interrupted() { return false; }

// f() in each of `count` threads that meet.
template <class F>
static void seat_and_run(int count, F f) {
    Meeting meeting(count);
    auto body = [&](int i) {
        seat = {i, count, count > 1 ? &meeting : nullptr};
        f();
        seat = {};
    };
    std::vector<std::thread> others;
    for (int i = 1; i < count; i++) others.emplace_back(body, i);
    body(0);
    for (std::thread& t : others) t.join();
}

// kernel(task, team, teams, fast memory) of each team. Memory is full of NaN to begin with.
template <class Kernel>
static void emulate(unsigned long address, long teams, int threads, Kernel kernel) {
    const Task& task = *(const Task*)address;
    std::vector<double> fast(task.fast_bytes / sizeof(double) + 2, __builtin_nan(""));
    char* base = (char*)(((unsigned long)fast.data() + ALIGN - 1) / ALIGN * ALIGN);
    for (long team = 0; team < teams; team++)
        seat_and_run(threads, [&] { kernel(task, team, teams, base); });
}

}  // namespace diffopt

using namespace diffopt;

PYBIND11_MODULE(emulation, module) {
    module.def("measure", [](unsigned long task, unsigned long out) {
        const Task& of = *(const Task*)task;
        *(Needs*)out = needs_of(of.batch, of.settings);
    });
    module.def("solve_all", [](unsigned long task, long teams, int threads) {
        emulate(task, teams, threads, [](auto&&... given) { solve(given...); });
    });
    module.def("apply_inverse_all", [](unsigned long task, long teams, int threads) {
        emulate(task, teams, threads, [](auto&&... given) { apply_inverse(given...); });
    });
    module.def("pull_back_all", [](unsigned long task, long teams, int threads) {
        emulate(task, teams, threads,
                [](const Task& of, long team, long count, char*) { pull_back(of, team, count); });
    });
}
