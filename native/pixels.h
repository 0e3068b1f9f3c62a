// Bytes of pictures into batches and sums: what pixels.cpp and the variants of pixels_kernel.cpp share.
#pragma once

#include <cstdint>

namespace caffetools {

// A picture's crop. Strides count bytes and may be negative.
struct Crop {
  const uint8_t* at;                  // the crop's first pixel, first channel
  int64_t channel, row, column;       // strides
  int64_t mean_top, mean_left, flip;  // the crop's place in the mean; flip: left to right
};

// A batch of crops: out = ((pixel - mean) - values) * scale, each step in float32.
struct Transform {
  int64_t channels, height, width;  // of each crop
  int64_t interleaved;              // out is (height, width, channels) for each crop, else (channels, height, width)
  const float *mean, *flipped;      // in out's layout, and flipped left to right; null: there is none
  int64_t mean_height, mean_width;
  const float* values;  // one for each channel; null: there are none
  float scale;
};

// What one instruction set offers.
struct PixelsKernel {
  // The crop as floats to `out`. `bytes` and `row` are scratch of 2 * channels * width bytes and channels * width floats.
  void (*transform)(const Transform&, const Crop&, float* out, uint8_t* bytes, float* row);
  // sums[i] += pictures[0][i], then pictures[1][i] and so on, in float32. `whole`: the sums are integers of at most 2^24 before and after, which
  // float32 holds exactly, so the order does not matter.
  void (*sum)(const uint8_t* const* pictures, int64_t count, int64_t size, float* sums, bool whole);
};

extern const PixelsKernel pixels_kernel_baseline;
#ifdef CAFFETOOLS_X86_VARIANTS
extern const PixelsKernel pixels_kernel_avx2;
extern const PixelsKernel pixels_kernel_avx512;
#endif

}  // namespace caffetools
