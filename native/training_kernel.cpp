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

// The first and last window (exclusive) that see place `at` of an axis.
inline void windows_of(int64_t at, int64_t kernel, int64_t stride, int64_t pad, int64_t outputs, int64_t& from, int64_t& to) {
  const int64_t first = at + pad - kernel + 1;
  from = first > 0 ? (first + stride - 1) / stride : 0;
  to = (at + pad) / stride + 1;
  if (to > outputs) to = outputs;
}

// The part [from, to) of the window of output `o` that lies inside of an axis.
inline void inside(int64_t o, int64_t kernel, int64_t stride, int64_t pad, int64_t size, int64_t& from, int64_t& to) {
  const int64_t start = o * stride - pad;
  from = start < 0 ? -start : 0;
  to = size - start < kernel ? size - start : kernel;
}

#if defined(__AVX512F__)

constexpr int64_t kWide = 16;
inline __mmask16 lanes(int64_t count) { return static_cast<__mmask16>(count >= kWide ? 0xffff : (1u << count) - 1); }
inline __m512i as_integers(__m128i bytes) { return _mm512_cvtepu8_epi32(bytes); }

// Below 16 channels the bytes are copied one by one: loads of bytes have no masks in AVX-512F.
inline __m128i load_places(const uint8_t* from, int64_t count) {
  if (count >= kWide) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  alignas(16) uint8_t bytes[kWide] = {};
  std::memcpy(bytes, from, static_cast<std::size_t>(count));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

inline void store_places(uint8_t* to, __m512i places, int64_t count) {
  const __m128i bytes = _mm512_cvtepi32_epi8(places);
  if (count >= kWide)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  else
    std::memcpy(to, &bytes, static_cast<std::size_t>(count));
}

// As torch: the first of equal maxima, and NaN wins. V vectors of channels, of which the last has `last` channels.
template <int V>
void pool_forward_channels(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t last) {
  const __mmask16 mask = lanes(last);
  for (int64_t i = 0; i < pool.oh; ++i) {
    int64_t top, bottom;
    inside(i, pool.kh, pool.sh, pool.ph, pool.h, top, bottom);
    for (int64_t j = 0; j < pool.ow; ++j, y += pool.c, places += pool.c) {
      int64_t left, right;
      inside(j, pool.kw, pool.sw, pool.pw, pool.w, left, right);
      __m512 best[V];
      __m512i where[V];
      bool first = true;
      for (int64_t a = top; a < bottom; ++a) {
        const float* from = x + ((i * pool.sh - pool.ph + a) * pool.w + j * pool.sw - pool.pw + left) * pool.c;
        for (int64_t b = left; b < right; ++b, from += pool.c) {
          const __m512i place = _mm512_set1_epi32(static_cast<int>(a * pool.kw + b));
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            const __m512 value = _mm512_maskz_loadu_ps(v + 1 < V ? 0xffff : mask, from + v * kWide);
            const __mmask16 larger = first ? static_cast<__mmask16>(0xffff)
                                           : _mm512_kor(_mm512_cmp_ps_mask(value, best[v], _CMP_GT_OQ),
                                                        _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q));
            best[v] = first ? value : _mm512_mask_mov_ps(best[v], larger, value);
            where[v] = first ? place : _mm512_mask_mov_epi32(where[v], larger, place);
          }
          first = false;
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        if (pool.rectify) {
          const __mmask16 off = _mm512_cmp_ps_mask(best[v], _mm512_setzero_ps(), _CMP_LE_OQ);
          best[v] = _mm512_mask_mov_ps(best[v], off, _mm512_setzero_ps());
          where[v] = _mm512_mask_mov_epi32(where[v], off, _mm512_set1_epi32(kNoPlace));
        }
        _mm512_mask_storeu_ps(y + v * kWide, v + 1 < V ? 0xffff : mask, best[v]);
        store_places(places + v * kWide, where[v], v + 1 < V ? kWide : last);
      }
    }
  }
}

// Each value's sum is taken in the order of the outputs, as torch does.
template <int V>
void pool_backward_channels(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t last) {
  const __mmask16 mask = lanes(last);
  for (int64_t y = 0; y < pool.h; ++y) {
    int64_t top, bottom;
    windows_of(y, pool.kh, pool.sh, pool.ph, pool.oh, top, bottom);
    for (int64_t x = 0; x < pool.w; ++x, dx += pool.c) {
      int64_t left, right;
      windows_of(x, pool.kw, pool.sw, pool.pw, pool.ow, left, right);
      __m512 sum[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[v] = _mm512_setzero_ps();
      for (int64_t i = top; i < bottom; ++i) {
        for (int64_t j = left; j < right; ++j) {
          const int64_t at = (i * pool.ow + j) * pool.c;
          const __m512i place = _mm512_set1_epi32(static_cast<int>((y + pool.ph - i * pool.sh) * pool.kw + x + pool.pw - j * pool.sw));
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            const __m512i where = as_integers(load_places(places + at + v * kWide, v + 1 < V ? kWide : last));
            const __mmask16 here = _mm512_cmpeq_epi32_mask(where, place) & (v + 1 < V ? 0xffff : mask);
            sum[v] = _mm512_add_ps(sum[v], _mm512_maskz_loadu_ps(here, dy + at + v * kWide));
          }
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) _mm512_mask_storeu_ps(dx + v * kWide, v + 1 < V ? 0xffff : mask, sum[v]);
    }
  }
}

void pool_forward(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t picture, int64_t start, int64_t count) {
  static constexpr void (*kVectors[])(const TrainingPool&, const float*, float*, uint8_t*, int64_t) = {
      pool_forward_channels<1>, pool_forward_channels<2>, pool_forward_channels<3>, pool_forward_channels<4>};
  const int64_t vectors = (count + kWide - 1) / kWide, to = picture * pool.oh * pool.ow * pool.c + start;
  kVectors[vectors - 1](pool, x + picture * pool.h * pool.w * pool.c + start, y + to, places + to, count - (vectors - 1) * kWide);
}

void pool_backward(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t picture, int64_t start, int64_t count) {
  static constexpr void (*kVectors[])(const TrainingPool&, const float*, const uint8_t*, float*, int64_t) = {
      pool_backward_channels<1>, pool_backward_channels<2>, pool_backward_channels<3>, pool_backward_channels<4>};
  const int64_t vectors = (count + kWide - 1) / kWide, from = picture * pool.oh * pool.ow * pool.c + start;
  kVectors[vectors - 1](pool, dy + from, places + from, dx + picture * pool.h * pool.w * pool.c + start, count - (vectors - 1) * kWide);
}

#else

// As torch: the first of equal maxima, and NaN wins. Count is the number of channels where it is known to the compiler, else 0.
template <int64_t Count>
void pool_forward_channels(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t count) {
  const int64_t channels = Count ? Count : count;
  float best[kPoolChannels];
  int32_t where[kPoolChannels];
  for (int64_t i = 0; i < pool.oh; ++i) {
    int64_t top, bottom;
    inside(i, pool.kh, pool.sh, pool.ph, pool.h, top, bottom);
    for (int64_t j = 0; j < pool.ow; ++j, y += pool.c, places += pool.c) {
      int64_t left, right;
      inside(j, pool.kw, pool.sw, pool.pw, pool.w, left, right);
      bool first = true;
      for (int64_t a = top; a < bottom; ++a) {
        const float* values = x + ((i * pool.sh - pool.ph + a) * pool.w + j * pool.sw - pool.pw + left) * pool.c;
        for (int64_t b = left; b < right; ++b, values += pool.c) {
          const int32_t place = static_cast<int32_t>(a * pool.kw + b);
          if (first) {
            first = false;
            for (int64_t k = 0; k < channels; ++k) best[k] = values[k], where[k] = place;
            continue;
          }
          for (int64_t k = 0; k < channels; ++k) {
            const float value = values[k];
            const bool larger = (value > best[k]) | (value != value);
            best[k] = larger ? value : best[k];
            where[k] = larger ? place : where[k];
          }
        }
      }
      if (pool.rectify)
        for (int64_t k = 0; k < channels; ++k) {
          const bool off = best[k] <= 0.0f;
          best[k] = off ? 0.0f : best[k];
          where[k] = off ? kNoPlace : where[k];
        }
      std::memcpy(y, best, static_cast<std::size_t>(channels) * sizeof(float));
      for (int64_t k = 0; k < channels; ++k) places[k] = static_cast<uint8_t>(where[k]);
    }
  }
}

// Each value's sum is taken in the order of the outputs, as torch does.
template <int64_t Count>
void pool_backward_channels(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t count) {
  const int64_t channels = Count ? Count : count;
  float sum[kPoolChannels];
  for (int64_t y = 0; y < pool.h; ++y) {
    int64_t top, bottom;
    windows_of(y, pool.kh, pool.sh, pool.ph, pool.oh, top, bottom);
    for (int64_t x = 0; x < pool.w; ++x, dx += pool.c) {
      int64_t left, right;
      windows_of(x, pool.kw, pool.sw, pool.pw, pool.ow, left, right);
      for (int64_t k = 0; k < channels; ++k) sum[k] = 0.0f;
      for (int64_t i = top; i < bottom; ++i) {
        for (int64_t j = left; j < right; ++j) {
          const int64_t at = (i * pool.ow + j) * pool.c;
          const int32_t place = static_cast<int32_t>((y + pool.ph - i * pool.sh) * pool.kw + x + pool.pw - j * pool.sw);
          for (int64_t k = 0; k < channels; ++k) sum[k] += places[at + k] == place ? dy[at + k] : 0.0f;
        }
      }
      std::memcpy(dx, sum, static_cast<std::size_t>(channels) * sizeof(float));
    }
  }
}

void pool_forward(const TrainingPool& pool, const float* x, float* y, uint8_t* places, int64_t picture, int64_t start, int64_t count) {
  const int64_t to = picture * pool.oh * pool.ow * pool.c + start;
  (count == kPoolChannels ? pool_forward_channels<kPoolChannels> : pool_forward_channels<0>)(
      pool, x + picture * pool.h * pool.w * pool.c + start, y + to, places + to, count);
}

void pool_backward(const TrainingPool& pool, const float* dy, const uint8_t* places, float* dx, int64_t picture, int64_t start, int64_t count) {
  const int64_t from = picture * pool.oh * pool.ow * pool.c + start;
  (count == kPoolChannels ? pool_backward_channels<kPoolChannels> : pool_backward_channels<0>)(
      pool, dy + from, places + from, dx + picture * pool.h * pool.w * pool.c + start, count);
}

#endif

void output_gradient(const float* dy, int64_t dy_pitch, const float* y, int64_t y_pitch, float* to, int64_t rows, int64_t channels,
                     float* sums) {
  std::memset(sums, 0, static_cast<std::size_t>(channels) * sizeof(float));
  for (int64_t row = 0; row < rows; ++row, dy += dy_pitch) {
    int64_t c = 0;
#if defined(__AVX512F__)
    for (; c < channels; c += kWide) {
      const __mmask16 here = lanes(channels - c);
      __mmask16 passes = here;
      if (y != nullptr) passes = _mm512_mask_cmp_ps_mask(here, _mm512_maskz_loadu_ps(here, y + c), _mm512_setzero_ps(), _CMP_NLE_UQ);
      const __m512 gradient = _mm512_maskz_loadu_ps(passes, dy + c);
      if (to != nullptr) _mm512_mask_storeu_ps(to + c, here, gradient);
      _mm512_mask_storeu_ps(sums + c, here, _mm512_add_ps(_mm512_maskz_loadu_ps(here, sums + c), gradient));
    }
#endif
    for (; c < channels; ++c) {
      const float gradient = y != nullptr && y[c] <= 0.0f ? 0.0f : dy[c];
      if (to != nullptr) to[c] = gradient;
      sums[c] += gradient;
    }
    if (y != nullptr) y += y_pitch;
    if (to != nullptr) to += channels;
  }
}

}  // namespace

extern const TrainingKernel CAFFETOOLS_TRAINING_KERNEL;
const TrainingKernel CAFFETOOLS_TRAINING_KERNEL = {relu_row, mask_row, pool_forward, pool_backward, output_gradient};

}  // namespace caffetools
