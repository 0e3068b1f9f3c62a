// Batch normalization with scale, shift and ReLU in one operator of a training pass, over channels-last memory.
#pragma once

#include <cstdint>

namespace caffetools {

// The normalization of one channel each: z = (x - mean) * inverse * scale + shift, and max(0, z) with `rectify`. scale and shift may be null.
struct Normalization {
  const float *mean, *inverse, *scale, *shift;
  bool rectify;
};

// The arithmetic for one instruction set, for `rows` pixels of `channels` consecutive values.
struct BatchNormKernel {
  // The mean of each channel, and the sum of the squared distances from it.
  void (*moments)(const float* x, int64_t rows, int64_t channels, float* mean, float* squares);
  void (*forward)(const float* x, int64_t rows, int64_t channels, const Normalization& to, float* y);
  // Of the gradient dy, where the ReLU lets it through: its sums, and its sums times (x - mean) * inverse.
  void (*sums)(const float* x, const float* dy, int64_t rows, int64_t channels, const Normalization& of, float* plain, float* weighted);
  // dx = (d - plain - (x - mean) * inverse * weighted) * factor, d being dy where the ReLU lets it through.
  void (*backward)(const float* x, const float* dy, int64_t rows, int64_t channels, const Normalization& of, const float* plain,
                   const float* weighted, const float* factor, float* dx);
};

extern const BatchNormKernel batch_norm_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const BatchNormKernel batch_norm_kernel_avx2;
extern const BatchNormKernel batch_norm_kernel_avx512;
#endif

}  // namespace caffetools
