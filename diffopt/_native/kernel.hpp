// What a GPU runs: a team for each problem, from the user's data to the answer in one launch, and
// the solves with the Jacobian of the derivative in another.
//
// The memory of a problem: the matrices, and a tape of what the derivative reads besides; both
// outlive the solve if `keep`. A team works on the tape in fast memory (on a GPU: shared memory),
// on the matrices there too if `fast_matrices`, and on what there is room for of its other vectors.
#pragma once
#include "team_factor.hpp"
//
#include "gradients.hpp"
#include "group.hpp"

namespace diffopt {

// One launch. Sample b has its matrices at store + b * (matrix_bytes + tape_bytes), and its tape
// behind them; without `keep`, team t has a place there for all its samples. `work_bytes` and
// `fast_bytes` are a team's. Of the derivative: x = J^-1 v, or J^-T v; the gradients of v.
struct Task {
    Batch batch;
    Settings settings;
    Warm warm;
    Answers answers;
    char *store, *work;
    unsigned long matrix_bytes, tape_bytes, work_bytes, fast_bytes;
    bool keep, fast_matrices, transpose;
    const double* v;
    double *x, *error;
    Gradients gradients;
};

// Bytes that a problem needs: of the work, first the vectors, then one matrix, then what is for a
// moment only.
struct Needs {
    unsigned long matrix_bytes, tape_bytes, vector_bytes, base_bytes, moment_bytes, task_bytes;
};

constexpr unsigned long ALIGN = 16;  // of what threads load in pairs

INLINE Needs needs_of(const Batch& batch, const Settings& settings) {
    Needs out{0, 0, 0, 0, Group<Team, double>::room(batch), sizeof(Task)};
    for (int diagonal = 0; diagonal < 2; diagonal++) {
        Arena matrices{nullptr, ALIGN}, tape{nullptr, ALIGN}, work{nullptr, ALIGN}, base = work;
        Matrices<Team, double> M;
        M.carve(matrices, batch.n, batch.m, batch.e, diagonal);
        tape.take<double>(1);
        Group<Team, double> group(batch, settings, diagonal);
        group.carve(tape, work, &M);
        group.kkt.carve_base(base);
        auto raise = [](unsigned long& a, unsigned long b) { a = a < b ? b : a; };
        raise(out.matrix_bytes, matrices.used), raise(out.tape_bytes, tape.used);
        raise(out.vector_bytes, work.used - base.used), raise(out.base_bytes, base.used);
        if (batch.m || !batch.bounded) break;
    }
    return out;
}

// Whether this sample's Q is diagonal, and its rows are bounds and equations: see Plan.
INLINE bool is_diagonal(const Batch& b, long sample) {
    if (b.m || !b.bounded) return false;
    const double* Q = b.Q.sample(sample);
    double off = 0;
    if (Q)
        Team::grid(b.n, b.n, [&](int i) {
            return [&off, i, row = Q + (long)i * b.n](int j) { off += i != j && row[j] != 0; };
        });
    return Team::sum(off) == 0;
}

INLINE void copy(char* to, const char* from, unsigned long bytes) {
    entries<Team>(bytes / sizeof(double),
                  [&](int i) { ((double*)to)[i] = ((const double*)from)[i]; });
}

// Where sample b is kept.
INLINE char* place(const Task& task, long b) {
    return task.store + b * (task.matrix_bytes + task.tape_bytes);
}

// f(group) with the memory laid out: the tape in `fast`, and behind it what of the rest fits.
template <class F>
INLINE void with_group(const Task& task, bool diagonal, char* matrices, char* fast, char* work,
                       F f) {
    const unsigned long taken = task.tape_bytes + (task.fast_matrices ? task.matrix_bytes : 0);
    Arena matrix_arena{matrices, ALIGN}, tape_arena{fast, ALIGN};
    Arena work_arena{work, ALIGN, fast + taken, task.fast_bytes - taken};
    tape_arena.take<double>(1);  // whether it is diagonal
    Matrices<Team, double> M;
    M.carve(matrix_arena, task.batch.n, task.batch.m, task.batch.e, diagonal);
    Group<Team, double> group(task.batch, task.settings, diagonal);
    group.keep = task.keep;
    group.carve(tape_arena, work_arena, &M);
    f(group);
}

// Team `team` of `teams` solves every teams-th problem.
INLINE void solve(const Task& task, long team, long teams, char* fast) {
    for (long b = team; b < task.batch.size; b += teams) {
        char* kept = place(task, task.keep ? b : team);
        char* matrices = task.fast_matrices ? fast + task.tape_bytes : kept;
        const bool diagonal = is_diagonal(task.batch, b);
        with_group(task, diagonal, matrices, fast, task.work + team * task.work_bytes,
                   [&](auto& group) { group.run(b, task.warm, task.answers); });
        if (Team::leads()) *(double*)fast = diagonal;
        Team::meet();
        if (!task.keep) continue;
        if (task.fast_matrices) copy(kept, matrices, task.matrix_bytes);
        copy(kept + task.matrix_bytes, fast, task.tape_bytes);
    }
}

INLINE void apply_inverse(const Task& task, long team, long teams, char* fast) {
    for (long b = team; b < task.batch.size; b += teams) {
        char* kept = place(task, b);
        copy(fast, kept + task.matrix_bytes, task.tape_bytes);
        with_group(task, *(const double*)fast != 0, kept, fast, task.work + team * task.work_bytes,
                   [&](auto& group) {
                       group.apply_inverse(b, task.transpose, task.v, task.x, task.error);
                   });
    }
}

INLINE void pull_back(const Task& task, long team, long teams) {
    for (long b = team; b < task.batch.size; b += teams)
        pull_back<Team>(task.batch, b, task.answers.x, task.v, task.answers.active, task.gradients);
}

}  // namespace diffopt
