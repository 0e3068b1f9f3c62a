// The gradient of a convolution's weights by vectors: sums over pixels of products of an input and a gradient of an output.
#pragma once

#include <cstdint>

#include "conv.h"

namespace caffetools {

// Pixels that are summed over: `rows` rows of `count`. In each of the two factors they are `step` floats apart, and rows `row` floats.
struct PixelRuns {
  int64_t rows, count, a_step, a_row, b_step, b_row;
};

// What one instruction set offers.
struct WeightGradientKernel {
  // Adds sum over the pixels of a[i] * b[j], for i below `a_count` and j below `b_count`, to to[i * b_count + j].
  void (*accumulate)(const float* a, const float* b, const PixelRuns& runs, int64_t a_count, int64_t b_count, float* to);
};

extern const WeightGradientKernel weight_gradient_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const WeightGradientKernel weight_gradient_kernel_avx2;
extern const WeightGradientKernel weight_gradient_kernel_avx512;
#endif

// Floats of scratch that the gradient needs.
int64_t weight_gradient_scratch(const CaffetoolsConv& s);

// dw (oc, kh, kw, c / groups) from x and dy, whose pixels are s.x_pitch and s.y_pitch floats apart; the same bits for any number of threads.
void weight_gradient(const CaffetoolsConv& s, const float* x, const float* dy, float* dw, float* scratch, int threads);

}  // namespace caffetools
