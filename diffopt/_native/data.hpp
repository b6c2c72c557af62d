// The user's data as they lie in memory, and memory for our own.
#pragma once
#include "lanes.hpp"

namespace diffopt {

// Whether the user asked to stop.
#ifdef __CUDACC__
INLINE bool interrupted() { return false; }
#else
bool interrupted();
#endif

constexpr double HUGE_LIMIT = 1.7976931348623157e308;  // what is larger is infinite

// Sample b, entry i: data[b * batch + i * step]; null: absent. Matrices are row-major.
struct Slice {
    const double* data;
    long batch, step;
    const double* sample(long b) const { return data ? data + b * batch : nullptr; }
};

struct Batch {
    long size;
    int n, m, e;
    bool bounded;
    Slice Q, p, G, h, A, b, lb, ub, h_lower;
};

// Takes memory piece by piece: from `fast` while there is room (on a GPU: its shared memory), then
// from `base`; from null it only counts.
struct Arena {
    char* base;
    unsigned long align = 64;  // at least that of a pack
    char* fast = nullptr;
    unsigned long room = 0, used = 0, used_fast = 0;
    template <class X>
    X* take(long count) {
        const unsigned long bytes =
            (sizeof(X) * (count > 0 ? count : 1) + align - 1) / align * align;
        if (used_fast + bytes <= room) return (X*)(fast + (used_fast += bytes) - bytes);
        used += bytes;
        return base ? (X*)(base + used - bytes) : nullptr;
    }
};

// Entry i of lane l of `first` + l; the lanes behind the last sample repeat it.
template <class T>
INLINE long sample_of(long first, int l, long size) {
    return first + l < size ? first + l : size - 1;
}
template <class T>
OUTLINE void load(typename T::V* out, const Slice& s, int count, long first, long size,
                  double absent) {
    for (int l = 0; l < T::lanes; l++) {
        const double* x = s.sample(sample_of<T>(first, l, size));
        T::spread(0, count, [&](int i) { set_lane(out[i], l, x ? x[i * s.step] : absent); });
    }
    T::meet();
}
template <class T>
void load_matrix(typename T::V* out, int ld, const Slice& s, int rows, int n, long first,
                 long size) {
    for (int l = 0; l < T::lanes; l++) {
        const double* x = s.sample(sample_of<T>(first, l, size));
        T::grid(rows, n, [&](int i) {
            return [to = out + (long)i * ld, row = x ? x + (long)i * n : nullptr, l](int j) {
                set_lane(to[j], l, row ? row[j] : 0.0);
            };
        });
    }
    T::meet();
}

}  // namespace diffopt
