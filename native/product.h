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
  // The gradient of `columns` values of each of `images` rows of x: dx[i][j] = sum over r of dy[i][r] * weights[r][j], r below `rows`. Rows
  // of dx and of the weights are k floats apart.
  void (*input_gradient)(int64_t images, const float* dy, const float* weights, int64_t rows, int64_t k, int64_t columns, float* dx);
  // That of `columns` weights of each of `count` rows: dw[r][j] = sum over i of dy[i][r] * x[i][j]; dy's rows are dy_pitch floats apart.
  void (*weight_gradient)(int64_t images, const float* dy, int64_t dy_pitch, const float* x, int64_t count, int64_t k, int64_t columns,
                          float* dw);
};

extern const ProductKernel product_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const ProductKernel product_kernel_avx2;
extern const ProductKernel product_kernel_avx512;
#endif

}  // namespace caffetools
