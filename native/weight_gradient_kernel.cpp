// The arithmetic of the gradient of weights by vectors. CMake compiles this file once for each instruction set, as the kernel that
// CAFFETOOLS_WEIGHT_GRADIENT_KERNEL names.
#include "weight_gradient.h"

#include "vec.h"

namespace {

using caffetools::PixelRuns;
using caffetools::WeightGradientKernel;

// Values of one factor, each multiplied with vectors of the other: their sums are in registers.
constexpr int kMost = kWidth == 16 ? 12 : 4, kVectors = 2;

template <int kA, int kV>
void block(const float* a, const float* b, const PixelRuns& runs, int64_t last, int64_t pitch, float* to) {
  Vec acc[kA][kV];
#pragma GCC unroll 12
  for (int m = 0; m < kA; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) acc[m][v] = vset(0.0f);
  for (int64_t row = 0; row < runs.rows; ++row) {
    const float *p = a + row * runs.a_row, *q = b + row * runs.b_row;
    for (int64_t k = 0; k < runs.count; ++k, p += runs.a_step, q += runs.b_step) {
      Vec values[kV];
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) values[v] = v + 1 < kV ? vload(q + v * kWidth) : vload_part(q + v * kWidth, last);
#pragma GCC unroll 12
      for (int m = 0; m < kA; ++m) {
        const Vec factor = vset(p[m]);
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) acc[m][v] = vfma(factor, values[v], acc[m][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < kA; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      float* at = to + m * pitch + v * kWidth;
      const int64_t left = v + 1 < kV ? kWidth : last;
      vstore_part(at, vadd(acc[m][v], vload_part(at, left)), left);
    }
}

template <int kV>
void rows_of(const float* a, const float* b, const PixelRuns& runs, int64_t a_count, int64_t last, int64_t pitch, float* to) {
  for (int64_t i = 0; i < a_count;) {
    const int64_t left = a_count - i;
    // Two blocks of 8 rather than 12 and 4, which waits for loads.
    if (kMost == 12 && left >= 12 && left != 16) {
      block<kMost, kV>(a + i, b, runs, last, pitch, to + i * pitch), i += kMost;
    } else if (kMost == 12 && left >= 8) {
      block<kMost == 12 ? 8 : kMost, kV>(a + i, b, runs, last, pitch, to + i * pitch), i += 8;
    } else if (left >= 4) {
      block<4, kV>(a + i, b, runs, last, pitch, to + i * pitch), i += 4;
    } else if (left >= 2) {
      block<2, kV>(a + i, b, runs, last, pitch, to + i * pitch), i += 2;
    } else {
      block<1, kV>(a + i, b, runs, last, pitch, to + i * pitch), i += 1;
    }
  }
}

void accumulate(const float* a, const float* b, const PixelRuns& runs, int64_t a_count, int64_t b_count, float* to) {
  for (int64_t j = 0; j < b_count; j += kVectors * kWidth) {
    const int64_t left = b_count - j;
    if (left > kWidth)
      rows_of<2>(a, b + j, runs, a_count, left >= 2 * kWidth ? kWidth : left - kWidth, b_count, to + j);
    else
      rows_of<1>(a, b + j, runs, a_count, left, b_count, to + j);
  }
}

}  // namespace

namespace caffetools {

extern const WeightGradientKernel CAFFETOOLS_WEIGHT_GRADIENT_KERNEL{accumulate};

}  // namespace caffetools
