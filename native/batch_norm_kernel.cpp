// The arithmetic of native/batch_norm.h. CMake compiles this file once for each instruction set, as the kernel that
// CAFFETOOLS_BATCH_NORM_KERNEL names.
#include "batch_norm.h"

#include "vec.h"

namespace {

using caffetools::BatchNormKernel;
using caffetools::Normalization;

// d where z > 0 or z is not a number, else 0.
inline Vec where_positive(Vec z, Vec d) {
#if defined(CAFFETOOLS_USE_AVX512)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NLE_UQ), d);
#elif defined(CAFFETOOLS_USE_AVX2)
  return _mm256_and_ps(_mm256_cmp_ps(z, _mm256_setzero_ps(), _CMP_NLE_UQ), d);
#else
  return vpick(z <= vset(0.0f), vset(0.0f), d);
#endif
}

// A vector of channels' numbers.
struct Channels {
  Vec mean, inverse, scale, shift;

  Channels(const Normalization& of, int64_t at, int64_t left)
      : mean(vload_part(of.mean + at, left)), inverse(vload_part(of.inverse + at, left)),
        scale(of.scale != nullptr ? vload_part(of.scale + at, left) : vset(1.0f)),
        shift(of.shift != nullptr ? vload_part(of.shift + at, left) : vset(0.0f)) {}

  Vec normalized(Vec x) const { return vmul(vsub(x, mean), inverse); }
  // The same instructions forward and backward: the sign decides what the ReLU lets through.
  Vec result(Vec normalized) const { return vfma(normalized, scale, shift); }
};

// Calls work(first channel, number of channels of the vector) for each vector of channels. A vector at a time goes through all rows: they
// are few enough to stay in the cache.
template <typename Work>
inline void each_vector(int64_t channels, const Work& work) {
  for (int64_t at = 0; at < channels; at += kWidth) work(at, channels - at);
}

void moments(const float* x, int64_t rows, int64_t channels, float* mean, float* squares) {
  const Vec share = vset(1.0f / static_cast<float>(rows));
  each_vector(channels, [&](int64_t at, int64_t left) {
    // Two sums each: an addition takes four cycles.
    Vec sum[2] = {vset(0.0f), vset(0.0f)}, square[2] = {vset(0.0f), vset(0.0f)};
    for (int64_t row = 0; row < rows; ++row) sum[row & 1] = vadd(sum[row & 1], vload_part(x + row * channels + at, left));
    const Vec middle = vmul(vadd(sum[0], sum[1]), share);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec distance = vsub(vload_part(x + row * channels + at, left), middle);
      square[row & 1] = vfma(distance, distance, square[row & 1]);
    }
    vstore_part(mean + at, middle, left);
    vstore_part(squares + at, vadd(square[0], square[1]), left);
  });
}

void forward(const float* x, int64_t rows, int64_t channels, const Normalization& to, float* y) {
  each_vector(channels, [&](int64_t at, int64_t left) {
    const Channels numbers(to, at, left);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec z = numbers.result(numbers.normalized(vload_part(x + row * channels + at, left)));
      vstore_part(y + row * channels + at, to.rectify ? vmax(vset(0.0f), z) : z, left);
    }
  });
}

void sums(const float* x, const float* dy, int64_t rows, int64_t channels, const Normalization& of, float* plain, float* weighted) {
  each_vector(channels, [&](int64_t at, int64_t left) {
    const Channels numbers(of, at, left);
    Vec sum = vset(0.0f), product = vset(0.0f);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec normalized = numbers.normalized(vload_part(x + row * channels + at, left));
      Vec gradient = vload_part(dy + row * channels + at, left);
      if (of.rectify) gradient = where_positive(numbers.result(normalized), gradient);
      sum = vadd(sum, gradient);
      product = vfma(gradient, normalized, product);
    }
    vstore_part(plain + at, sum, left);
    vstore_part(weighted + at, product, left);
  });
}

void backward(const float* x, const float* dy, int64_t rows, int64_t channels, const Normalization& of, const float* plain,
              const float* weighted, const float* factor, float* dx) {
  each_vector(channels, [&](int64_t at, int64_t left) {
    const Channels numbers(of, at, left);
    const Vec mean = vload_part(plain + at, left), share = vload_part(weighted + at, left), scale = vload_part(factor + at, left);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec normalized = numbers.normalized(vload_part(x + row * channels + at, left));
      Vec gradient = vload_part(dy + row * channels + at, left);
      if (of.rectify) gradient = where_positive(numbers.result(normalized), gradient);
      vstore_part(dx + row * channels + at, vmul(vsub(vsub(gradient, mean), vmul(normalized, share)), scale), left);
    }
  });
}

}  // namespace

namespace caffetools {

extern const BatchNormKernel CAFFETOOLS_BATCH_NORM_KERNEL{moments, forward, sums, backward};

}  // namespace caffetools
