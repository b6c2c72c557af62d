// The kernels of the cuda engine by teams of several threads, for a race detector: see
// test_teams.py. Prints the largest difference from a team of one thread.
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>

#include "kernel.hpp"

namespace diffopt {
bool interrupted() { return false; }
}  // namespace diffopt

using namespace diffopt;
using Numbers = std::vector<double>;

struct Problems {
    long size;
    int n, m, e;
    bool bounded;
    Numbers Q, p, G, h, low, A, b, lb, ub;

    Batch batch() const {
        auto slice = [](const Numbers& v, long each) {
            return Slice{each ? v.data() : nullptr, each, 1};
        };
        const long own = bounded ? n : 0;
        return {size,
                n,
                m,
                e,
                bounded,
                slice(Q, (long)n * n),
                slice(p, n),
                slice(G, (long)m * n),
                slice(h, m),
                slice(A, (long)e * n),
                slice(b, e),
                slice(lb, own),
                slice(ub, own),
                slice(low, m)};
    }
};

// Feasible at a random x, with Q = I + a random positive semidefinite matrix.
static Problems random_problems(long size, int n, int m, int e, bool bounded, bool diagonal) {
    std::mt19937_64 source(n + 100 * m + 10000 * e);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    Problems out{size, n, m, e, bounded, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    for (long s = 0; s < size; s++) {
        Numbers x(n), L(n * n);
        for (double& v : x) v = normal(source);
        for (double& v : L) v = normal(source);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                double v = i == j;
                for (int k = 0; k < n && !diagonal; k++) v += L[i * n + k] * L[j * n + k] / n;
                out.Q.push_back(v);
            }
        for (int j = 0; j < n; j++) {
            out.p.push_back(normal(source));
            out.lb.push_back(x[j] - uniform(source)), out.ub.push_back(x[j] + uniform(source));
        }
        auto rows = [&](int count, Numbers& M, auto put) {
            for (int i = 0; i < count; i++) {
                double at = 0;
                for (int j = 0; j < n; j++) M.push_back(normal(source)), at += M.back() * x[j];
                put(at);
            }
        };
        rows(m, out.G, [&](double at) {
            out.h.push_back(at + uniform(source)), out.low.push_back(at - 2 * uniform(source));
        });
        rows(e, out.A, [&](double at) { out.b.push_back(at); });
    }
    return out;
}

// Of five problems: a linear program, NaN, no feasible point, a row twice, Q not convex.
static Problems hard(Problems p) {
    const int n = p.n, rows = p.m * n, square = n * n;
    for (int i = 0; i < square; i++) p.Q[i] = 0, p.Q[4 * square + i] *= -1;
    p.p[n] = __builtin_nan("");
    for (int i = 0; i < p.m; i++) p.h[2 * p.m + i] -= 1e3, p.low[2 * p.m + i] -= 1e3;
    for (int j = 0; j < n; j++) p.G[3 * rows + j] = p.G[3 * rows + n + j];
    p.h[3 * p.m] = p.h[3 * p.m + 1], p.low[3 * p.m] = p.low[3 * p.m + 1];
    return p;
}

// x, the solves of the derivative both ways, and the gradients, by teams of so many threads.
static Numbers solved(const Problems& problems, int threads, unsigned long fast_bytes) {
    Batch batch = problems.batch();
    Settings settings{1e-8, 1e-5, 1e-8, 1e-9, 1e-3, 100, 25, 6};
    const int n = batch.n, m = batch.m, e = batch.e, k = m + (batch.bounded ? n : 0);
    const long size = batch.size, N = n + e + k, teams = 2;
    Needs needs = needs_of(batch, settings);
    const bool fast_matrices = fast_bytes > 0;
    if (!fast_matrices) fast_bytes = needs.tape_bytes;
    Numbers store(size * (needs.matrix_bytes + needs.tape_bytes) / 8), facts(4 * size);
    const unsigned long work_bytes = needs.vector_bytes + needs.base_bytes + needs.moment_bytes;
    Numbers work(teams * work_bytes / 8 + 2), fast(fast_bytes / 8 + 2), error(size);
    Numbers x(size * N), v(size * N, 1.0), solves[2] = {v, v}, gradients[9];
    const long counts[9] = {(long)n * n, n, (long)m * n, m, (long)e * n, e, n, n, m};
    for (int i = 0; i < 9; i++) gradients[i].resize(size * counts[i]);
    std::vector<signed char> active(size * k);
    std::vector<long> steps(size);
    std::vector<char> flags(2 * size);
    Task task{};
    task.batch = batch, task.settings = settings, task.keep = true;
    task.store = (char*)store.data(), task.work = (char*)work.data();
    task.matrix_bytes = needs.matrix_bytes, task.tape_bytes = needs.tape_bytes;
    task.work_bytes = work_bytes, task.fast_bytes = fast_bytes;
    task.fast_matrices = fast_matrices;
    task.answers = {x.data(),     facts.data(),        active.data(),
                    steps.data(), (bool*)flags.data(), (bool*)flags.data() + size};
    task.v = v.data(), task.error = error.data();
    double* to[9];
    for (int i = 0; i < 9; i++)
        to[i] = i == 6 || i == 7 ? (batch.bounded ? gradients[i].data() : nullptr)
                                 : gradients[i].data();
    task.gradients = {to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7], to[8]};
    Meeting meeting(threads);
    auto by_team = [&](auto kernel) {
        for (long team = 0; team < teams; team++) {
            std::vector<std::thread> all;
            for (int t = 0; t < threads; t++)
                all.emplace_back([&, t] {
                    seat = {t, threads, threads > 1 ? &meeting : nullptr};
                    kernel(team);
                });
            for (std::thread& t : all) t.join();
        }
    };
    by_team([&](long team) { solve(task, team, teams, (char*)fast.data()); });
    for (int way = 0; way < 2; way++) {
        task.transpose = way, task.x = solves[way].data(), task.fast_matrices = false;
        by_team([&](long team) { apply_inverse(task, team, teams, (char*)fast.data()); });
    }
    by_team([&](long team) { pull_back(task, team, teams); });
    Numbers z, nu, y, again(x);  // and from there once more, without a tape
    for (long s = 0; s < size; s++) {
        const double* at = x.data() + s * N;
        z.insert(z.end(), at, at + n), nu.insert(nu.end(), at + n, at + n + e);
        y.insert(y.end(), at + n + e, at + N);
    }
    task.warm = {z.data(), nu.data(), y.data()}, task.keep = false, task.answers.x = again.data();
    by_team([&](long team) { solve(task, team, teams, (char*)fast.data()); });
    for (const Numbers& more : {solves[0], solves[1], gradients[0], gradients[2], gradients[4]})
        x.insert(x.end(), more.begin(), more.end());
    for (char good : flags) x.push_back(good);
    return x;
}

int main() {
    double worst = 0, settled = 1;
    const Problems cases[] = {
        random_problems(3, 7, 9, 2, true, false),
        random_problems(3, 6, 0, 3, true, true),
        random_problems(3, 11, 5, 0, false, false),
        random_problems(3, 5, 0, 2, false, false),
    };
    for (const Problems& problems : cases)
        for (unsigned long fast_bytes : {0ul, 1ul << 20}) {
            Numbers truth = solved(problems, 1, fast_bytes);
            for (int threads : {3, 4, 8}) {  // no warps, one, two
                Numbers found = solved(problems, threads, fast_bytes);
                for (size_t i = 0; i < truth.size(); i++)
                    worst = fmax(worst, fabs(truth[i] - found[i]) / (1 + fabs(truth[i])));
            }
            for (long i = 1; i <= 2 * problems.size; i++)
                settled = fmin(settled, truth[truth.size() - i]);
        }
    solved(hard(random_problems(5, 7, 9, 2, true, false)), 8, 0);
    printf("%.1e %d\n", worst, (int)settled);
    return worst <= 1e-9 && settled == 1 ? 0 : 1;
}
