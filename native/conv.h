// Convolution and pooling over channels-last (N, H, W, C) float32 memory: what conv.cpp and the variants of conv_kernel.cpp share.
#pragma once

#include <cstdint>

// What Python says of a convolution; the fields are in the order of the ctypes structure in caffetools/layers/native_conv.py.
struct CaffetoolsConv {
  int64_t n, c, h, w, oc, oh, ow, x_pitch, y_pitch, residual_pitch;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw, groups;
  int32_t planar_input;  // the input is (N, C, H, W) in memory
  int32_t algorithm;     // 0: choose; 1: sums over windows; 2, 4: Winograd of 2 x 2 or 4 x 4 outputs; 8: the matrix unit (amx.h)
  int32_t activation, with_bias;
  float low, high;
};

namespace caffetools {

enum Activation : int { kNone = 0, kRelu = 1, kLeaky = 2, kPrelu = 3, kClip = 4 };

// Steps of weights from one group, output, input, row and column of the kernel to the next, in floats. The weights of a gradient are
// those of the convolution with outputs and inputs exchanged, and rows and columns in descending order.
struct WeightSteps {
  int64_t group, output, input, row, column;
};

// What is done to the sums: bias and residual are added, then the activation is applied.
struct Epilogue {
  const float* bias;    // of the first channel; null: none
  const float* slopes;  // kPrelu: of the first channel
  int activation;
  float low, high;  // kLeaky: low is the slope; kClip: the bounds
};

// Sums over `runs` runs of `run` floats each: row m of the result is sum_r sum_k a[m][offsets[r] + k] * weights[r * run + k].
// Meanwhile memory from `ahead` on is brought into the second-level cache, `ahead_step` bytes for each k.
struct Sums {
  const int64_t* offsets;
  int64_t runs, run;
  const void* ahead;
  int64_t ahead_step;
};

// Where results go: row m to y + m * step, after `residual` + m * residual_step (null: none) was added.
struct Results {
  float* y;
  int64_t step;
  const float* residual;
  int64_t residual_step;

  Results from(int64_t row) const { return {y + row * step, step, residual != nullptr ? residual + row * residual_step : nullptr, residual_step}; }
};

// A window over (N, H, W, C): sizes of the input and output in pixels, and the distance of their pixels in floats.
struct Window {
  int64_t n, c, h, w, oh, ow, x_pitch, y_pitch;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
};

// What one instruction set offers.
struct ConvKernel {
  int64_t width;  // floats of a vector
  int64_t rows;   // rows that are computed together: of one call of multiply at the most
  // `rows` rows, which begin at a[0], a[1] and so on, by one panel of `channels` <= 2 * width output channels, whose weights are
  // [k][panel width].
  void (*multiply)(int64_t rows, const float* const* a, const Sums& sums, const float* weights, int64_t channels, const Results& to,
                   const Epilogue& epilogue);
  // The same for any number of rows that are `step` floats apart: where k is small, much of the time of separate calls is lost between them.
  void (*multiply_even)(int64_t rows, const float* a, int64_t step, const Sums& sums, const float* weights, int64_t channels,
                        const Results& to, const Epilogue& epilogue);
  // Winograd's transforms of one tile, m x m outputs of a 3 x 3 kernel, m = 2 or 4. The input tile starts at (y, x), which may be
  // outside of the picture; `to` is [(m + 2)^2][channels], the positions `stride` floats apart.
  void (*tile_in)(int m, const float* picture, int64_t h, int64_t w, int64_t pitch, int64_t y, int64_t x, int64_t channels, float* to,
                  int64_t stride);
  // The transpose of tile_out: the gradient of the (m + 2)^2 positions from that of the m x m outputs at (y, x), zero outside.
  void (*tile_grad)(int m, const float* picture, int64_t h, int64_t w, int64_t pitch, int64_t y, int64_t x, int64_t channels, float* to,
                    int64_t stride);
  void (*tile_out)(int m, const float* from, int64_t channels, float* picture, const float* residual, int64_t rows, int64_t columns,
                   int64_t row_pitch, int64_t residual_row_pitch, int64_t pitch, int64_t residual_pitch, const Epilogue& epilogue);
  // The transform of the 3 x 3 kernels of one input channel for a panel of `outputs` <= 2 * width output channels; `to` is
  // [(m + 2)^2][2 * width], the positions `stride` floats apart, zeros after the last output.
  void (*kernels_in)(int m, const float* weights, const WeightSteps& steps, int64_t outputs, float* to, int64_t stride);
  // `count` rows of outputs of a depthwise convolution, from row `oy` of a picture on; weights are [kh][kw][c].
  void (*depthwise_rows)(const Window& w, const float* picture, int64_t oy, int64_t count, const float* weights, float* y,
                         const Epilogue& epilogue);
  // One row of outputs of a pooling: the largest value, or the mean over the window clipped to the padded picture, as Caffe has it.
  void (*pool_row)(const Window& w, const float* picture, int64_t oy, bool largest, float* y);
};

extern const ConvKernel conv_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const ConvKernel conv_kernel_avx2;
extern const ConvKernel conv_kernel_avx512;
#endif

}  // namespace caffetools
