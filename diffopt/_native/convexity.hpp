// Whether Q is positive semidefinite.
#pragma once
#include "problem.hpp"

namespace diffopt {

constexpr double ALLOWANCE = 1e-4;  // for a semidefinite Q that was rounded; see QP.convex

// Lanes whose Q, brought to unit diagonal, has no eigenvalue below -ALLOWANCE. `factor` is free to
// be overwritten, and of size n at least.
template <class T, class E>
typename T::Mask is_convex(const Problem<T, E>& qp, Upper<T> factor, Arena scratch) {
    using V = typename T::V;
    using P = typename T::P;
    const int n = qp.n, ld = qp.ld;
    auto diagonal = [&](int j) { return V{} + qp.M.Q[qp.diagonal ? j : (long)j * ld + j]; };
    if (qp.diagonal) return most_entry<T>(n, [&](int j) { return -diagonal(j); }) <= 0;
    const V largest = most_entry<T>(n, [&](int j) { return size(diagonal(j)); });
    V* unit = scratch.take<V>(padded<T>(n));
    entries<T>(padded<T>(n), [&](int j) {
        V d = j < n ? diagonal(j) : V{};
        unit[j] = 1.0 / root(positive_or_one<T>(greater(size(d), 1e-12 * largest)));
    });
    auto scaled = [&](int i, int j) {
        P out = splat<T>(unit[i]) * at<T>((const V*)unit, j) * packed<T>(qp.M.Q + (long)i * ld, j);
        if (i / T::pack == j) ((V*)&out)[i - j * T::pack] += ALLOWANCE;
        return out;
    };
    factor.N = n, factor.ld = ld, factor.lowest = V{} + 1.0;
    for (int i = 0; i < n && !interrupted(); i += TILE_ROWS)
        factor.block(i, n - i < TILE_ROWS ? n - i : TILE_ROWS, 0, scaled,
                     Product<V, V>{nullptr, nullptr, 0, 0, 0});
    return factor.lowest > 0;
}

}  // namespace diffopt
