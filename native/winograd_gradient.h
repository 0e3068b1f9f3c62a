// The gradient of the weights of 3 x 3 convolutions of stride 1 by Winograd's algorithm, with tiles of 4 x 4 outputs.
#pragma once

#include <cstdint>

namespace caffetools {

// Channels of a panel of tiles in Winograd's domain, [tile][kGradientPanel].
constexpr int64_t kGradientPanel = 32;

// What one instruction set offers.
struct WinogradGradientKernel {
  // Adds (or, first, stores) sum_k dy[k][o] * x[k][i] for `count` tiles to `rows` outputs and `columns` inputs of a panel each, in rows of
  // `to` that are `pitch` floats apart. Both panels are read up to their ends.
  void (*accumulate)(const float* dy, const float* x, int64_t count, int64_t rows, int64_t columns, float* to, int64_t pitch, bool first);
  // The gradients of the nine weights for `inputs` pairs of an output and inputs: from 36 values that are `stride` floats apart, to nine
  // that are `pitch` floats apart.
  void (*weights_out)(const float* from, int64_t stride, int64_t inputs, float* to, int64_t pitch);
};

extern const WinogradGradientKernel winograd_gradient_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const WinogradGradientKernel winograd_gradient_kernel_avx2;
extern const WinogradGradientKernel winograd_gradient_kernel_avx512;
#endif

}  // namespace caffetools
