// Whether Q is positive semidefinite.
#pragma once
#include "problem.hpp"

namespace diffopt {

constexpr double ALLOWANCE = 1e-4;  // for a semidefinite Q that was rounded; see QP.convex

// Lanes whose Q, brought to unit diagonal, has no eigenvalue below -ALLOWANCE.
template <class T, class E>
typename T::Mask is_convex(const Problem<T, E>& qp, Arena scratch) {
    using V = typename T::V;
    const int n = qp.n, ld = qp.ld;
    auto diagonal = [&](int j) { return V{} + qp.M.Q[qp.diagonal ? j : (long)j * ld + j]; };
    V least = V{} + 1.0, largest = {};
    for (int j = 0; j < n; j++)
        least = lesser(diagonal(j), least), largest = greater(size(diagonal(j)), largest);
    if (qp.diagonal) return least >= 0;
    V* unit = scratch.take<V>(padded<T>(n));
    V* scaled = scratch.take<V>((long)n * ld);
    Upper<T> factor{scratch.take<V>((long)n * ld), scratch.take<V>(padded<T>(n)),
                    scratch.take<V>((long)n * TILE_ROWS), n, ld};
    for (int j = 0; j < n; j++)
        unit[j] = 1.0 / root(positive_or_one<T>(greater(size(diagonal(j)), 1e-12 * largest)));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < padded<T>(n); j++)
            scaled[(long)i * ld + j] =
                j < n ? unit[i] * unit[j] * qp.M.Q[(long)i * ld + j] + (i == j ? ALLOWANCE : 0.0)
                      : V{};
    factor.lowest = V{} + 1.0;
    for (int i = 0; i < n && !interrupted(); i += TILE_ROWS)
        factor.block(
            i, n - i < TILE_ROWS ? n - i : TILE_ROWS, 0,
            [&](int r, int j) { return at<T>(scaled + (long)r * ld, j); },
            Product<V, V>{nullptr, nullptr, 0, 0, 0});
    return factor.lowest > 0;
}

}  // namespace diffopt
