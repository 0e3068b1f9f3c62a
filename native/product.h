// Inner products of few vectors with a large matrix of weights: what product.cpp and the variants of product_kernel.cpp share.
#pragma once

#include <cstdint>

#include "conv.h"

namespace caffetools {

// y[i][r] = epilogue(sum over k of x[i][k] * weights[r][k]) for `images` rows of x and `rows` rows of weights, which lie one after the
// other; rows of x and y are `x_pitch` and `y_pitch` floats apart. A sum is the same in whatever company it is computed.
struct ProductKernel {
  int64_t rows;  // rows of weights that are read at once
  void (*run)(int64_t images, const float* x, int64_t x_pitch, int64_t k, const float* weights, int64_t rows, float* y, int64_t y_pitch,
              const Epilogue& epilogue);
};

extern const ProductKernel product_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const ProductKernel product_kernel_avx2;
extern const ProductKernel product_kernel_avx512;
#endif

}  // namespace caffetools
