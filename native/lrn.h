// Local response normalization across channels, forward and backward, float32: what lrn.cpp and the variants of lrn_kernel.cpp share.
#pragma once

#include <cstdint>

namespace caffetools {

// One layer: scale = k + alpha / size * (sum of x^2 over the size channels around), y = x * scale^-beta.
struct Lrn {
  int64_t channels;
  int64_t half;  // size / 2, at most channels - 1
  float alpha_over_size, beta, k;
};

// A part of a blob that is worked on at once: `rows` rows of `width` floats, `stride` floats apart. Where channels are rows
// (NCHW) the window runs over rows; where they are the floats of one row (channels-last, one point of the picture) over those.
struct Part {
  int64_t rows, width, stride;
  bool window_over_rows;
};

// What one instruction set offers. `squares` and `ratios` are scratch of scratch_floats(largest part, lrn) floats each, which start
// as zeros; a scratch stays with one thread, for parts of the one layer.
struct Kernel {
  int64_t (*scratch_floats)(const Part&, const Lrn&);
  void (*forward)(const Part&, const Lrn&, const float* x, float* y, float* squares);
  void (*backward)(const Part&, const Lrn&, const float* x, const float* dy, float* dx, float* squares,
                   float* ratios);
};

extern const Kernel kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const Kernel kernel_avx2;
extern const Kernel kernel_avx512;
#endif

// y from x, both (n, hw, c) in memory, on our own threads; false when there is no memory for the few kilobytes it works in.
bool normalize(const float* x, float* y, int64_t n, int64_t c, int64_t hw, int64_t size, float alpha, float beta, float k, int threads);

}  // namespace caffetools
