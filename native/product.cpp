// The C interface of inner products with few rows, and how the work is divided among threads.
#include "product.h"

#include <algorithm>
#include <cstdint>

#include "export.h"
#include "pool.h"
#include "variants.h"

using namespace caffetools;

// What Python says of an inner product; the fields are in the order of the ctypes structure in caffetools/layers/native_product.py.
// Nothing is copied: the arrays belong to the caller.
struct CaffetoolsProduct {
  int64_t n, c, points, x_pitch;  // the input: of each image `points` pixels of c channels, x_pitch floats apart
  int64_t outputs, y_pitch;
  const float *weights, *bias, *slopes;  // (outputs, c * points) in Caffe's order, channels first; (outputs) or null
  int32_t planar;                        // the input is (n, c, points) in memory
  int32_t activation;
  float low, high;
};

namespace {

// Columns of a task of an input's gradient, which stay in the first-level cache for some 16 images; rows of a task of the weights' gradient,
// and floats of the inputs that stay in that cache meanwhile.
constexpr int64_t kInputColumns = 512, kGradientRows = 32, kCachedFloats = 8192;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_copied(const CaffetoolsProduct& s) { return !s.planar && s.points > 1; }

// The input in Caffe's order.
void copy_planar(const CaffetoolsProduct& s, const float* x, float* to) {
  for (int64_t image = 0; image < s.n; ++image, x += s.points * s.x_pitch, to += s.c * s.points)
    for (int64_t point = 0; point < s.points; ++point)
      for (int64_t channel = 0; channel < s.c; ++channel) to[channel * s.points + point] = x[point * s.x_pitch + channel];
}

}  // namespace

// Floats of scratch that one run needs.
CAFFETOOLS_API int64_t caffetools_product_scratch(const CaffetoolsProduct* product) {
  return is_copied(*product) ? product->n * product->c * product->points : 0;
}

// y = activation(weights * x + bias) for each image.
CAFFETOOLS_API void caffetools_product_run(const CaffetoolsProduct* product, const float* x, float* y, float* scratch, int threads) {
  const CaffetoolsProduct& s = *product;
  const ProductKernel& kernel = CAFFETOOLS_IN_USE(product_kernel);
  const int64_t k = s.c * s.points;
  int64_t pitch = s.planar ? k : s.x_pitch;
  if (is_copied(s)) {
    copy_planar(s, x, scratch);
    x = scratch;
    pitch = k;
  }
  parallel_for(threads, (s.outputs + kernel.rows - 1) / kernel.rows, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kernel.rows, rows = std::min(end * kernel.rows, s.outputs) - first;
    const Epilogue epilogue{s.bias != nullptr ? s.bias + first : nullptr, s.slopes != nullptr ? s.slopes + first : nullptr, s.activation,
                            s.low, s.high};
    kernel.run(s.n, x, pitch, k, s.weights + first * k, rows, y + first, s.y_pitch, epilogue);
  });
}

// The gradient dx (n, k) of x, from the gradient dy (n, outputs) of the product and the weights (outputs, k).
CAFFETOOLS_API void caffetools_product_input_gradient(const float* dy, const float* weights, float* dx, int64_t n, int64_t outputs, int64_t k,
                                                      int threads) {
  const ProductKernel& kernel = CAFFETOOLS_IN_USE(product_kernel);
  parallel_for(threads, ceil_div(k, kInputColumns), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kInputColumns; at < std::min(k, end * kInputColumns); at += kInputColumns)
      kernel.input_gradient(n, dy, weights + at, outputs, k, std::min(kInputColumns, k - at), dx + at);
  });
}

// The gradient dw (outputs, k) of the weights, from dy (n, outputs) and x (n, k).
CAFFETOOLS_API void caffetools_product_weight_gradient(const float* dy, const float* x, float* dw, int64_t n, int64_t outputs, int64_t k,
                                                       int threads) {
  const ProductKernel& kernel = CAFFETOOLS_IN_USE(product_kernel);
  const int64_t columns = std::max<int64_t>(64, kCachedFloats / n / 32 * 32);
  parallel_for(threads, ceil_div(outputs, kGradientRows), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kGradientRows, count = std::min(outputs, end * kGradientRows) - first;
    for (int64_t at = 0; at < k; at += columns)
      kernel.weight_gradient(n, dy + first, outputs, x + at, count, k, std::min(columns, k - at), dw + first * k + at);
  });
}
