// The C interface of batch normalization in training, and how its work is divided among threads: blocks of rows, whose sums are added up in
// one order for any number of threads.
#include "batch_norm.h"

#include <algorithm>
#include <cmath>

#include "export.h"
#include "pool.h"
#include "variants.h"

using namespace caffetools;

namespace {

// Floats of a block: x and dy of one stay in the second-level cache.
constexpr int64_t kBlockFloats = 32 * 1024;

int64_t rows_of_block(int64_t channels) { return std::max<int64_t>(16, kBlockFloats / channels); }
int64_t blocks_of(int64_t rows, int64_t channels) { return (rows + rows_of_block(channels) - 1) / rows_of_block(channels); }

// Calls work(block, first row, number of rows) for each block.
template <typename Work>
void over_blocks(int64_t rows, int64_t channels, int threads, const Work& work) {
  const int64_t each = rows_of_block(channels);
  parallel_for(threads, blocks_of(rows, channels), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) work(block, block * each, std::min(each, rows - block * each));
  });
}

}  // namespace

// Floats of scratch of both passes.
CAFFETOOLS_API int64_t caffetools_batch_norm_scratch(int64_t rows, int64_t channels) { return (2 * blocks_of(rows, channels) + 3) * channels; }

// mean, inverse = 1 / sqrt(variance + eps) and the variance times rows / (rows - 1), of x (rows x channels).
CAFFETOOLS_API void caffetools_batch_norm_moments(const float* x, float* mean, float* inverse, float* corrected, float* scratch, int64_t rows,
                                                  int64_t channels, double eps, int threads) {
  const BatchNormKernel& kernel = CAFFETOOLS_IN_USE(batch_norm_kernel);
  const int64_t blocks = blocks_of(rows, channels), each = rows_of_block(channels);
  float* const squares = scratch + blocks * channels;
  over_blocks(rows, channels, threads, [&](int64_t block, int64_t first, int64_t count) {
    kernel.moments(x + first * channels, count, channels, scratch + block * channels, squares + block * channels);
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, distance = 0;
    for (int64_t block = 0; block < blocks; ++block)
      sum += static_cast<double>(scratch[block * channels + c]) * static_cast<double>(std::min(each, rows - block * each));
    const double middle = sum / static_cast<double>(rows);
    for (int64_t block = 0; block < blocks; ++block) {
      const double off = static_cast<double>(scratch[block * channels + c]) - middle;
      distance += static_cast<double>(squares[block * channels + c]) + off * off * static_cast<double>(std::min(each, rows - block * each));
    }
    mean[c] = static_cast<float>(middle);
    inverse[c] = static_cast<float>(1 / std::sqrt(distance / static_cast<double>(rows) + eps));
    corrected[c] = static_cast<float>(distance / static_cast<double>(rows - 1));
  }
}

CAFFETOOLS_API void caffetools_batch_norm_forward(const float* x, float* y, const float* mean, const float* inverse, const float* scale,
                                                  const float* shift, int64_t rows, int64_t channels, int rectify, int threads) {
  const BatchNormKernel& kernel = CAFFETOOLS_IN_USE(batch_norm_kernel);
  const Normalization to{mean, inverse, scale, shift, rectify != 0};
  over_blocks(rows, channels, threads, [&](int64_t, int64_t first, int64_t count) {
    kernel.forward(x + first * channels, count, channels, to, y + first * channels);
  });
}

// The gradients of x, scale and shift; dx may be null.
CAFFETOOLS_API void caffetools_batch_norm_backward(const float* x, const float* dy, const float* mean, const float* inverse, const float* scale,
                                                   const float* shift, float* dx, float* dscale, float* dshift, float* scratch, int64_t rows,
                                                   int64_t channels, int rectify, int threads) {
  const BatchNormKernel& kernel = CAFFETOOLS_IN_USE(batch_norm_kernel);
  const Normalization of{mean, inverse, scale, shift, rectify != 0};
  const int64_t blocks = blocks_of(rows, channels);
  float* const weighted = scratch + blocks * channels;
  over_blocks(rows, channels, threads, [&](int64_t block, int64_t first, int64_t count) {
    kernel.sums(x + first * channels, dy + first * channels, count, channels, of, scratch + block * channels, weighted + block * channels);
  });
  float* const shares = weighted + blocks * channels;
  for (int64_t c = 0; c < channels; ++c) {
    double plain = 0, product = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      plain += static_cast<double>(scratch[block * channels + c]);
      product += static_cast<double>(weighted[block * channels + c]);
    }
    dshift[c] = static_cast<float>(plain);
    dscale[c] = static_cast<float>(product);
    shares[c] = static_cast<float>(plain / static_cast<double>(rows));
    shares[channels + c] = static_cast<float>(product / static_cast<double>(rows));
    shares[2 * channels + c] = inverse[c] * (scale != nullptr ? scale[c] : 1.0f);
  }
  if (dx == nullptr) return;
  over_blocks(rows, channels, threads, [&](int64_t, int64_t first, int64_t count) {
    kernel.backward(x + first * channels, dy + first * channels, count, channels, of, shares, shares + channels, shares + 2 * channels,
                    dx + first * channels);
  });
}
