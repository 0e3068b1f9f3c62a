// The arithmetic of native/pixels.h, compiled once for each instruction set; the loops are left to the compiler's vectors.
#include "pixels.h"

#include <cstring>

#if defined(__SSSE3__)
#include <tmmintrin.h>
#endif

namespace caffetools {
namespace {

// Bytes of one picture that are added before the next picture's: the sums stay in the core's own cache.
constexpr int64_t kStretch = 65536;
// A line of the cache, and how far ahead of its use one is fetched; bytes.
constexpr int64_t kLine = 64, kAhead = 2048;
constexpr int kTogether = 4;
// Pictures whose bytes are added as integers of 16 bits before they are added to the sums; at most 257.
constexpr int kCounted = 8;

// The bytes of a row in reverse order.
void reverse(const uint8_t* from, uint8_t* to, int64_t count) {
  int64_t i = 0;
#if defined(__SSSE3__)
  const __m128i order = _mm_setr_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; i + 16 <= count; i += 16) {
    const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + count - 16 - i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_shuffle_epi8(value, order));
  }
#endif
  for (; i < count; ++i) to[i] = from[count - 1 - i];
}

// Three rows of bytes as one of pixels.
void interleave(const uint8_t* b, const uint8_t* g, const uint8_t* r, uint8_t* to, int64_t count) {
  int64_t i = 0;
#if defined(__SSSE3__)
  // Where byte j of the 48 comes from: channel j % 3, pixel j / 3.
  const char x = -128;
  const __m128i b0 = _mm_setr_epi8(0, x, x, 1, x, x, 2, x, x, 3, x, x, 4, x, x, 5), g0 = _mm_setr_epi8(x, 0, x, x, 1, x, x, 2, x, x, 3, x, x, 4, x, x),
                r0 = _mm_setr_epi8(x, x, 0, x, x, 1, x, x, 2, x, x, 3, x, x, 4, x);
  const __m128i b1 = _mm_setr_epi8(x, x, 6, x, x, 7, x, x, 8, x, x, 9, x, x, 10, x), g1 = _mm_setr_epi8(5, x, x, 6, x, x, 7, x, x, 8, x, x, 9, x, x, 10),
                r1 = _mm_setr_epi8(x, 5, x, x, 6, x, x, 7, x, x, 8, x, x, 9, x, x);
  const __m128i b2 = _mm_setr_epi8(x, 11, x, x, 12, x, x, 13, x, x, 14, x, x, 15, x, x), g2 = _mm_setr_epi8(x, x, 11, x, x, 12, x, x, 13, x, x, 14, x, x, 15, x),
                r2 = _mm_setr_epi8(10, x, x, 11, x, x, 12, x, x, 13, x, x, 14, x, x, 15);
  for (; i + 16 <= count; i += 16) {
    const __m128i bv = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)), gv = _mm_loadu_si128(reinterpret_cast<const __m128i*>(g + i)),
                  rv = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r + i));
    const auto mix = [&](__m128i bi, __m128i gi, __m128i ri) {
      return _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(bv, bi), _mm_shuffle_epi8(gv, gi)), _mm_shuffle_epi8(rv, ri));
    };
    __m128i* const out = reinterpret_cast<__m128i*>(to + 3 * i);
    _mm_storeu_si128(out, mix(b0, g0, r0));
    _mm_storeu_si128(out + 1, mix(b1, g1, r1));
    _mm_storeu_si128(out + 2, mix(b2, g2, r2));
  }
#endif
  for (; i < count; ++i) to[3 * i] = b[i], to[3 * i + 1] = g[i], to[3 * i + 2] = r[i];
}

// `count` bytes that are `step` apart, the last one first where flip; as they lie in memory if that is how they are asked for.
const uint8_t* gathered(const uint8_t* from, int64_t step, int64_t count, bool flip, uint8_t* scratch) {
  if (step == 1 && !flip) return from;
  if (step == 1) {
    reverse(from, scratch, count);
  } else {
    for (int64_t i = 0; i < count; ++i) scratch[flip ? count - 1 - i : i] = from[i * step];
  }
  return scratch;
}

// Row `y` of three channels as pixels. `scratch` holds six rows of bytes.
const uint8_t* pixels(const Transform& transform, const Crop& crop, int64_t y, uint8_t* scratch) {
  const int64_t width = transform.width;
  const uint8_t* const from = crop.at + y * crop.row;
  if (crop.channel == 1 && crop.column == 3) {
    if (!crop.flip) return from;
    for (int64_t x = 0; x < width; ++x) std::memcpy(scratch + 3 * x, from + 3 * (width - 1 - x), 3);
    return scratch;
  }
  const uint8_t* rows[3];
  for (int64_t c = 0; c < 3; ++c) {
    rows[c] = gathered(from + c * crop.channel, crop.column, width, crop.flip != 0, scratch + (3 + c) * width);
  }
  interleave(rows[0], rows[1], rows[2], scratch, width);
  return scratch;
}

template <bool Mean>
void arithmetic(const uint8_t* __restrict from, const float* __restrict mean, const float* __restrict values, float scale, float* __restrict to,
                int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = Mean ? static_cast<float>(from[i]) - mean[i] : static_cast<float>(from[i]);
    to[i] = (value - values[i]) * scale;
  }
}

void transform(const Transform& transform, const Crop& crop, float* out, uint8_t* bytes, float* row) {
  const int64_t width = transform.width, lanes = transform.interleaved ? transform.channels : 1, planes = transform.channels / lanes;
  const float* const mean = crop.flip ? transform.flipped : transform.mean;
  const int64_t left = crop.flip ? transform.mean_width - crop.mean_left - width : crop.mean_left;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int64_t i = 0; i < lanes * width; ++i) row[i] = transform.values ? transform.values[plane + i % lanes] : 0.0f;
    for (int64_t y = 0; y < transform.height; ++y) {
      const uint8_t* from = lanes == 3
                                ? pixels(transform, crop, y, bytes)
                                : gathered(crop.at + plane * crop.channel + y * crop.row, crop.column, width, crop.flip != 0, bytes);
      const int64_t at = ((plane * transform.mean_height + crop.mean_top + y) * transform.mean_width + left) * lanes;
      float* const to = out + (plane * transform.height + y) * lanes * width;
      if (mean) {
        arithmetic<true>(from, mean + at, row, transform.scale, to, lanes * width);
      } else {
        arithmetic<false>(from, nullptr, row, transform.scale, to, lanes * width);
      }
    }
  }
}

// One picture, or kTogether at once: the sums are then read and written once for all of them.
template <int Count>
void add(const uint8_t* const* pictures, int64_t begin, int64_t end, float* __restrict sums) {
  const uint8_t* from[Count];
  for (int k = 0; k < Count; ++k) from[k] = pictures[k];
  int64_t i = begin;
#if defined(__GNUC__)
  for (; i + kLine <= end; i += kLine) {
    // The processor's own prefetching stops at the end of each page.
    for (int k = 0; k < Count; ++k) __builtin_prefetch(from[k] + i + kAhead, 0, 2);
    for (int64_t j = i; j < i + kLine; ++j) {
      float sum = sums[j];
      for (int k = 0; k < Count; ++k) sum += static_cast<float>(from[k][j]);
      sums[j] = sum;
    }
  }
#endif
  for (; i < end; ++i) {
    for (int k = 0; k < Count; ++k) sums[i] += static_cast<float>(from[k][i]);
  }
}

// kCounted pictures at once, as integers: the same sums where float32 has no rounding to do.
int64_t add_counted(const uint8_t* const* pictures, int64_t begin, int64_t end, float* __restrict sums) {
  int64_t i = begin;
#if defined(__GNUC__)
  for (; i + kLine <= end; i += kLine) {
    uint16_t counted[kLine] = {};
    for (int k = 0; k < kCounted; ++k) {
      const uint8_t* const from = pictures[k] + i;
      __builtin_prefetch(from + kAhead, 0, 2);
      for (int64_t j = 0; j < kLine; ++j) counted[j] = static_cast<uint16_t>(counted[j] + from[j]);
    }
    for (int64_t j = 0; j < kLine; ++j) sums[i + j] += static_cast<float>(counted[j]);
  }
#endif
  return i;
}

void sum(const uint8_t* const* pictures, int64_t count, int64_t size, float* sums, bool whole) {
  for (int64_t begin = 0; begin < size; begin += kStretch) {
    const int64_t end = begin + kStretch < size ? begin + kStretch : size;
    int64_t i = 0;
    for (; whole && i + kCounted <= count; i += kCounted) add<kCounted>(pictures + i, add_counted(pictures + i, begin, end, sums), end, sums);
    for (; i + kTogether <= count; i += kTogether) add<kTogether>(pictures + i, begin, end, sums);
    for (; i < count; ++i) add<1>(pictures + i, begin, end, sums);
  }
}

}  // namespace

extern const PixelsKernel CAFFETOOLS_PIXELS_KERNEL;
const PixelsKernel CAFFETOOLS_PIXELS_KERNEL = {transform, sum};

}  // namespace caffetools
