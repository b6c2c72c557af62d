// The kernels: a block is one team, or, where a team is a warp, several.
//
// DIFFOPT_THREADS: the threads of a team; DIFFOPT_TEAMS: the teams of a block.
#include "kernel.hpp"

using namespace diffopt;

// Where it can, a thread reads the arguments where they are, without a copy of its own.
#if __CUDA_ARCH__ >= 700
#define ARGUMENT const __grid_constant__
#else
#define ARGUMENT const
#endif

constexpr int THREADS = DIFFOPT_THREADS * DIFFOPT_TEAMS;
extern __shared__ __align__(16) char shared_memory[];

static __device__ long team() {
    return (long)blockIdx.x * DIFFOPT_TEAMS + threadIdx.x / DIFFOPT_THREADS;
}
static __device__ long teams() { return (long)gridDim.x * DIFFOPT_TEAMS; }
static __device__ char* fast(const Task& task) {
    return shared_memory + threadIdx.x / DIFFOPT_THREADS * task.fast_bytes;
}

extern "C" __global__ void __launch_bounds__(THREADS) solve_all(ARGUMENT Task task) {
    solve(task, team(), teams(), fast(task));
}

extern "C" __global__ void __launch_bounds__(THREADS) apply_inverse_all(ARGUMENT Task task) {
    apply_inverse(task, team(), teams(), fast(task));
}

extern "C" __global__ void __launch_bounds__(THREADS) pull_back_all(ARGUMENT Task task) {
    pull_back(task, team(), teams());
}

extern "C" __global__ void measure(ARGUMENT Task task, Needs* out) {
    if (threadIdx.x == 0) *out = needs_of(task.batch, task.settings);
}
