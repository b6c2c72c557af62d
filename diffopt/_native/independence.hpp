// Whether the multipliers of a solution are the only ones: whether its active rows are independent.
#pragma once
#include "problem.hpp"

namespace diffopt {

// Rows of length one, restricted to the unknowns that are at no bound: none is nearer than 1e-5 to
// the span of those before it. See diffopt/qp/dependence.py, which looks closer at the others.
constexpr double FARTHEST = 1e5;

template <class T, class E>
struct Independence {
    using V = typename T::V;
    using P = typename T::P;
    using Mask = typename T::Mask;
    const Problem<T, E>& qp;
    const V* t;  // 0 on active rows
    Arena scratch;
    int count[T::lanes];  // active rows of G of each lane
    int* index;           // which they are, lane by lane
    int R = 0, ld = 0;    // A, and as many rows of G as the fullest lane has
    V crowded = {};       // more rows than unknowns
    V *rows, *length;     // the rows as columns, n x R, and the squares of their lengths

    Independence(const Problem<T, E>& qp, const V* t, Arena scratch)
        : qp(qp), t(t), scratch(scratch) {}

    Mask holds() {
        if (qp.e > qp.n) return V{} != V{};
        find_rows();
        if (R == 0) return crowded == 0;
        gather();
        return (farthest() < FARTHEST) & (crowded == 0);
    }

    void find_rows() {
        index = scratch.take<int>((long)qp.m * T::lanes);
        int most = 0;
        for (int l = 0; l < T::lanes; l++) {
            count[l] = 0;
            for (int i = 0; i < qp.m; i++) {
                if (lane(t[i], l) != 0) continue;
                if (T::leads()) index[count[l] * T::lanes + l] = i;
                count[l]++;
            }
            if (qp.e + count[l] > qp.n) set_lane(crowded, l, 1.0), count[l] = 0;
            most = count[l] > most ? count[l] : most;
        }
        T::meet();
        R = qp.e + most, ld = T::stride(R);
        rows = scratch.take<V>((long)qp.n * ld), length = scratch.take<V>(padded<T>(R));
    }

    // Lanes with fewer rows are filled up with rows of zeros, of length one.
    void gather() {
        T::spread(0, padded<T>(R), [&](int i) {
            length[i] = V{};
            for (int l = 0; l < T::lanes; l++) set_lane(length[i], l, i < R && filling(i, l));
        });
        for (int j = 0; j < qp.n; j++) {  // a thread has the same rows in every turn
            const V free = qp.bounded ? t[qp.bounds + j] : V{} + 1.0;
            V* out = rows + (long)j * ld;
            T::spread(0, padded<T>(R), [&](int i) {
                const V a = entry(i, j);
                length[i] += a * a, out[i] = a * free;
            });
        }
        T::meet();
    }

    // Entry j of row i: of A, then of the active rows of G; zero beyond.
    V entry(int i, int j) const {
        if (i < qp.e) return V{} + qp.M.A[(long)i * qp.ld + j];
        V out = {};
        for (int l = 0; l < T::lanes; l++)
            if (i < R && !filling(i, l))
                set_lane(out, l, lane(qp.M.G[row_of(i, l) * qp.ld + j], l));
        return out;
    }

    bool filling(int i, int l) const { return i - qp.e >= count[l]; }
    long row_of(int i, int l) const { return index[(i - qp.e) * T::lanes + l]; }

    // The largest ratio of a row's length to its distance from the span of those before it: the
    // diagonal of the Cholesky factor of the Gram matrix. Infinite for a row of zeros.
    V farthest() {
        Upper<T> gram{scratch.take<V>((long)R * ld), scratch.take<V>(padded<T>(R)),
                      scratch.take<V>((long)R * TILE_ROWS), R, ld};
        V* panel = scratch.take<V>((long)qp.n * TILE_ROWS);
        auto diagonal = [&](int r, int j) {
            P out = {};
            if (r / T::pack == j)
                for (int l = 0; l < T::lanes; l++)
                    if (filling(r, l)) set_lane(((V*)&out)[r - j * T::pack], l, 1.0);
            return out;
        };
        for (int i = 0; i < R && !interrupted(); i += TILE_ROWS) {
            const int block = R - i < TILE_ROWS ? R - i : TILE_ROWS;
            fill_panel<T>(panel, rows, ld, qp.n, i, block, [](int) { return V{} + 1.0; });
            gram.block(i, block, 0, diagonal, Product<V, V>{panel, rows, ld, qp.n, packs<T>(R)});
        }
        return most_entry<T>(R, [&](int i) {
            V ratio = gram.inverse[i] * root(length[i]);
            return pick((length[i] > 0) & (ratio <= HUGE_LIMIT), ratio, V{} + infinity());
        });
    }
};

}  // namespace diffopt
