// The C interface of ReLU and max pooling in training, and how their work is divided among threads.
//
// Blobs are float32. A ReLU sees a blob as rows of consecutive values (channels-last: one row a pixel), each with whole bytes of bits of
// its own.
#include "training.h"

#include <algorithm>
#include <cstring>

#include "export.h"
#include "pool.h"
#include "variants.h"

namespace caffetools {
namespace {

// Values that a thread works on at a time; a multiple of 8, so that stretches of a row begin at whole bytes.
constexpr int64_t kStretch = 16384;

// Rows of a gradient whose sums are added up on their own.
constexpr int64_t kGradientRows = 256;

// Calls work(row, first column, number of columns) for all of rows x columns.
template <typename Work>
void over_rows(int64_t rows, int64_t columns, int threads, const Work& work) {
  const bool short_rows = columns < kStretch;
  const int64_t per_block = short_rows ? std::max<int64_t>(1, kStretch / columns) : 1;
  const int64_t stretches = short_rows ? 1 : (columns + kStretch - 1) / kStretch;
  const int64_t blocks = short_rows ? (rows + per_block - 1) / per_block : rows * stretches;
  parallel_for(threads, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      if (short_rows) {
        const int64_t last = std::min(rows, (block + 1) * per_block);
        for (int64_t row = block * per_block; row < last; ++row) work(row, int64_t{0}, columns);
      } else {
        const int64_t start = block % stretches * kStretch;
        work(block / stretches, start, std::min(kStretch, columns - start));
      }
    }
  });
}

// Calls work(picture, first channel, number of channels) for all of a pooling.
template <typename Work>
void over_channels(const TrainingPool& pool, int threads, const Work& work) {
  const int64_t blocks = (pool.c + kPoolChannels - 1) / kPoolChannels;
  parallel_for(threads, pool.n * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t start = index % blocks * kPoolChannels;
      work(index / blocks, start, std::min(kPoolChannels, pool.c - start));
    }
  });
}

}  // namespace
}  // namespace caffetools

using namespace caffetools;

// y (may be x) and bits (rows x ceil(columns / 8) bytes) from x, rows x columns.
CAFFETOOLS_API void caffetools_relu_forward(const float* x, float* y, uint8_t* bits, int64_t rows, int64_t columns, int threads) {
  if (columns % 8 == 0) columns *= rows, rows = 1;
  const int64_t bytes = (columns + 7) / 8;
  const auto relu = CAFFETOOLS_IN_USE(training_kernel).relu;
  over_rows(rows, columns, threads, [&](int64_t row, int64_t start, int64_t count) {
    const int64_t at = row * columns + start;
    relu(x + at, y + at, bits + row * bytes + start / 8, count);
  });
}

// dx from dy, whose rows begin `pitch` values apart, and the bits.
CAFFETOOLS_API void caffetools_relu_backward(const float* dy, const uint8_t* bits, float* dx, int64_t rows, int64_t columns, int64_t pitch,
                                             int threads) {
  if (columns % 8 == 0 && pitch == columns) pitch = columns *= rows, rows = 1;
  const int64_t bytes = (columns + 7) / 8;
  const auto mask = CAFFETOOLS_IN_USE(training_kernel).mask;
  over_rows(rows, columns, threads, [&](int64_t row, int64_t start, int64_t count) {
    mask(dy + row * pitch + start, bits + row * bytes + start / 8, dx + row * columns + start, count);
  });
}

// y = a + b, `count` values each.
CAFFETOOLS_API void caffetools_add(const float* a, const float* b, float* y, int64_t count, int threads) {
  parallel_for(threads, (count + kStretch - 1) / kStretch, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(count, end * kStretch);
    for (int64_t i = begin * kStretch; i < last; ++i) y[i] = a[i] + b[i];
  });
}

// The largest value of each window, and its place in the window (row by row; kNoPlace where a ReLU set it to 0); all channels-last.
CAFFETOOLS_API void caffetools_training_pool_forward(const float* x, float* y, uint8_t* places, const int64_t* sizes, int threads) {
  TrainingPool pool;
  std::memcpy(&pool, sizes, sizeof pool);
  const auto work = CAFFETOOLS_IN_USE(training_kernel).pool_forward;
  over_channels(pool, threads, [&](int64_t picture, int64_t start, int64_t count) { work(pool, x, y, places, picture, start, count); });
}

// dx from dy and the places.
CAFFETOOLS_API void caffetools_training_pool_backward(const float* dy, const uint8_t* places, float* dx, const int64_t* sizes, int threads) {
  TrainingPool pool;
  std::memcpy(&pool, sizes, sizeof pool);
  const auto work = CAFFETOOLS_IN_USE(training_kernel).pool_backward;
  over_channels(pool, threads, [&](int64_t picture, int64_t start, int64_t count) { work(pool, dy, places, dx, picture, start, count); });
}

// The gradient of a convolution's outputs (TrainingKernel::output_gradient) and its sums over all rows, which are added up in one order
// for any number of threads. `partial` has room for caffetools_output_gradient_parts(rows) x channels floats.
CAFFETOOLS_API int64_t caffetools_output_gradient_parts(int64_t rows) { return (rows + kGradientRows - 1) / kGradientRows; }

CAFFETOOLS_API void caffetools_output_gradient(const float* dy, int64_t dy_pitch, const float* y, int64_t y_pitch, float* to, float* sums,
                                               float* partial, int64_t rows, int64_t channels, int threads) {
  const int64_t parts = caffetools_output_gradient_parts(rows);
  const auto work = CAFFETOOLS_IN_USE(training_kernel).output_gradient;
  parallel_for(threads, parts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kGradientRows;
      work(dy + first * dy_pitch, dy_pitch, y != nullptr ? y + first * y_pitch : nullptr, y_pitch,
           to != nullptr ? to + first * channels : nullptr, std::min(kGradientRows, rows - first), channels, partial + part * channels);
    }
  });
  std::memcpy(sums, partial, static_cast<size_t>(channels) * sizeof(float));
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c) sums[c] += partial[part * channels + c];
}
