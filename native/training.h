// What a training pass keeps in little memory: ReLU with one bit a value, max pooling with one byte an output.
#pragma once

#include <cstdint>

namespace caffetools {

// Channels of a pooling that are worked on together.
constexpr int64_t kPoolChannels = 64;

// The place of a maximum that gets no gradient.
constexpr int32_t kNoPlace = 255;

// A max pooling over channels-last memory; the fields are the sizes that Python gives. `rectify`: the results pass through a ReLU.
struct TrainingPool {
  int64_t n, c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, rectify;
};

// The arithmetic for one instruction set.
struct TrainingKernel {
  // y = max(0, x) for `count` values, and a bit for each through which the gradient passes.
  void (*relu)(const float* x, float* y, uint8_t* bits, int64_t count);
  // dx = dy where the bit is set, else 0.
  void (*mask)(const float* dy, const uint8_t* bits, float* dx, int64_t count);
  // `count` channels of a picture, from `start` on.
  void (*pool_forward)(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t picture, int64_t start, int64_t count);
  void (*pool_backward)(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t picture, int64_t start,
                        int64_t count);
  // The gradient of a convolution's outputs with a ReLU: `to` (rows x channels) = dy where not y <= 0, else 0, and `sums` (channels) their sums
  // over the rows. y null: no ReLU; `to` null: the sums alone.
  void (*output_gradient)(const float* dy, int64_t dy_pitch, const float* y, int64_t y_pitch, float* to, int64_t rows, int64_t channels,
                          float* sums);
};

extern const TrainingKernel training_kernel_baseline, training_kernel_avx2, training_kernel_avx512;

}  // namespace caffetools
