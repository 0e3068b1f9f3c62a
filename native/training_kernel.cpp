// The arithmetic of native/training.h, compiled once for each instruction set.
#include "training.h"

#include <cstddef>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace caffetools {
namespace {

// y = max(0, x); a bit is set where the gradient passes, which NaN lets through as torch does.
void relu_row(const float* x, float* y, uint8_t* bits, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 none = _mm512_setzero_ps();
  for (; i + 16 <= count; i += 16) {
    const __m512 a = _mm512_max_ps(none, _mm512_loadu_ps(x + i));  // the second operand where one is NaN
    _mm512_storeu_ps(y + i, a);
    const uint16_t passes = _mm512_cmp_ps_mask(a, none, _CMP_NLE_UQ);
    std::memcpy(bits + i / 8, &passes, sizeof passes);
  }
#elif defined(__SSE2__)
  const __m128 zero = _mm_setzero_ps();
  for (; i + 8 <= count; i += 8) {
    // The second operand is the result where one is NaN.
    const __m128 a = _mm_max_ps(zero, _mm_loadu_ps(x + i)), b = _mm_max_ps(zero, _mm_loadu_ps(x + i + 4));
    _mm_storeu_ps(y + i, a);
    _mm_storeu_ps(y + i + 4, b);
    const int low = _mm_movemask_ps(_mm_cmpnle_ps(a, zero)), high = _mm_movemask_ps(_mm_cmpnle_ps(b, zero));
    bits[i / 8] = static_cast<uint8_t>(low | high << 4);
  }
#endif
  for (; i < count; i += 8) {
    unsigned byte = 0;
    for (int64_t j = i; j < count && j < i + 8; ++j) {
      const bool off = x[j] <= 0.0f;
      byte |= static_cast<unsigned>(!off) << (j - i);
      y[j] = off ? 0.0f : x[j];
    }
    bits[i / 8] = static_cast<uint8_t>(byte);
  }
}

void mask_row(const float* dy, const uint8_t* bits, float* dx, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    uint16_t passes;
    std::memcpy(&passes, bits + i / 8, sizeof passes);
    _mm512_storeu_ps(dx + i, _mm512_maskz_loadu_ps(passes, dy + i));
  }
#elif defined(__SSE2__)
  const __m128i low = _mm_setr_epi32(1, 2, 4, 8), high = _mm_setr_epi32(16, 32, 64, 128);
  for (; i + 8 <= count; i += 8) {
    const __m128i byte = _mm_set1_epi32(bits[i / 8]);
    const __m128 a = _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_and_si128(byte, low), low));
    const __m128 b = _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_and_si128(byte, high), high));
    _mm_storeu_ps(dx + i, _mm_and_ps(a, _mm_loadu_ps(dy + i)));
    _mm_storeu_ps(dx + i + 4, _mm_and_ps(b, _mm_loadu_ps(dy + i + 4)));
  }
#endif
  for (; i < count; ++i) dx[i] = bits[i / 8] >> (i % 8) & 1 ? dy[i] : 0.0f;
}

// Calls visit(place in the window, offset of the pixel) for the pixels of window (i, j) that lie inside of the map.
template <typename Visit>
inline void window(const TrainingPool& pool, int64_t i, int64_t j, const Visit& visit) {
  for (int64_t a = 0; a < pool.kh; ++a) {
    const int64_t y = i * pool.sh - pool.ph + a;
    if (y < 0 || y >= pool.h) continue;
    for (int64_t b = 0; b < pool.kw; ++b) {
      const int64_t x = j * pool.sw - pool.pw + b;
      if (x >= 0 && x < pool.w) visit(static_cast<int32_t>(a * pool.kw + b), (y * pool.w + x) * pool.c);
    }
  }
}

// As torch: the first of equal maxima, and NaN wins. Count is the number of channels where it is known to the compiler, else 0.
template <int64_t Count>
void pool_forward_channels(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t picture, int64_t start, int64_t count) {
  const int64_t channels = Count ? Count : count;
  const float* source = x + picture * pool.h * pool.w * pool.c + start;
  float best[kPoolChannels];
  int32_t where[kPoolChannels];
  for (int64_t i = 0; i < pool.oh; ++i) {
    for (int64_t j = 0; j < pool.ow; ++j) {
      bool first = true;
      window(pool, i, j, [&](int32_t place, int64_t offset) {
        const float* values = source + offset;
        if (first) {
          first = false;
          for (int64_t k = 0; k < channels; ++k) best[k] = values[k], where[k] = place;
          return;
        }
        for (int64_t k = 0; k < channels; ++k) {
          const float value = values[k];
          const bool larger = (value > best[k]) | (value != value);
          best[k] = larger ? value : best[k];
          where[k] = larger ? place : where[k];
        }
      });
      const int64_t at = ((picture * pool.oh + i) * pool.ow + j) * pool.c + start;
      std::memcpy(y + at, best, static_cast<std::size_t>(channels) * sizeof(float));
      for (int64_t k = 0; k < channels; ++k) places[at + k] = static_cast<uint8_t>(where[k]);
    }
  }
}

void pool_forward(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t picture, int64_t start, int64_t count) {
  (count == kPoolChannels ? pool_forward_channels<kPoolChannels> : pool_forward_channels<0>)(pool, x, y, places, picture, start, count);
}

// Each value's sum is taken in the order of the outputs, as torch does.
template <int64_t Count>
void pool_backward_channels(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t picture, int64_t start,
                            int64_t count) {
  const int64_t channels = Count ? Count : count;
  float* target = dx + picture * pool.h * pool.w * pool.c + start;
  for (int64_t pixel = 0; pixel < pool.h * pool.w; ++pixel)
    std::memset(target + pixel * pool.c, 0, static_cast<std::size_t>(channels) * sizeof(float));
  float gradient[kPoolChannels];
  int32_t where[kPoolChannels];
  for (int64_t i = 0; i < pool.oh; ++i) {
    for (int64_t j = 0; j < pool.ow; ++j) {
      const int64_t at = ((picture * pool.oh + i) * pool.ow + j) * pool.c + start;
      std::memcpy(gradient, dy + at, static_cast<std::size_t>(channels) * sizeof(float));
      for (int64_t k = 0; k < channels; ++k) where[k] = places[at + k];
      window(pool, i, j, [&](int32_t place, int64_t offset) {
        float* values = target + offset;
        for (int64_t k = 0; k < channels; ++k) values[k] += where[k] == place ? gradient[k] : 0.0f;
      });
    }
  }
}

void pool_backward(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t picture, int64_t start, int64_t count) {
  (count == kPoolChannels ? pool_backward_channels<kPoolChannels> : pool_backward_channels<0>)(pool, dy, places, dx, picture, start, count);
}

}  // namespace

extern const TrainingKernel CAFFETOOLS_TRAINING_KERNEL;
const TrainingKernel CAFFETOOLS_TRAINING_KERNEL = {relu_row, mask_row, pool_forward, pool_backward};

}  // namespace caffetools
