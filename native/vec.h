// Vectors of float for the convolution kernels, for the instruction set that the including file is compiled for: AVX-512, AVX2 with
// FMA, or 128-bit vectors by the compiler's own extension (SSE, NEON).
//
// Everything is in an unnamed namespace: the same file is compiled several times with different options, and the linker must not
// mix the versions.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(CAFFETOOLS_USE_AVX512) || defined(CAFFETOOLS_USE_AVX2)
#include <immintrin.h>
#endif

namespace {

#if defined(CAFFETOOLS_USE_AVX512)

constexpr int kWidth = 16;
// Rows (pixels) by vectors of output channels that one block keeps in registers: 12 x 2 accumulators of 32 registers.
constexpr int kRows = 12;
using Vec = __m512;

inline Vec vload(const float* p) { return _mm512_loadu_ps(p); }
inline void vstore(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec vload(const float* p, int count) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p); }
inline void vstore(float* p, Vec v, int count) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v); }
inline Vec vset(float v) { return _mm512_set1_ps(v); }
inline Vec vfma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// As Caffe compares: where a is not a number, b.
inline Vec vmax(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec vmin(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec vadd(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec vsub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec vmul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }

#elif defined(CAFFETOOLS_USE_AVX2)

constexpr int kWidth = 8;
constexpr int kRows = 6;
using Vec = __m256;

inline __m256i vmask(int count) {
  alignas(32) static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + 8 - count));
}
inline Vec vload(const float* p) { return _mm256_loadu_ps(p); }
inline void vstore(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec vload(const float* p, int count) { return _mm256_maskload_ps(p, vmask(count)); }
inline void vstore(float* p, Vec v, int count) { _mm256_maskstore_ps(p, vmask(count), v); }
inline Vec vset(float v) { return _mm256_set1_ps(v); }
inline Vec vfma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec vmax(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec vmin(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec vadd(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec vsub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec vmul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }

#else

constexpr int kWidth = 4;
constexpr int kRows = 6;
typedef float Vec __attribute__((vector_size(16)));
typedef int VecMask __attribute__((vector_size(16)));

inline Vec vload(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void vstore(float* p, Vec v) { memcpy(p, &v, sizeof v); }
inline Vec vload(const float* p, int count) {
  Vec v = {0, 0, 0, 0};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
inline void vstore(float* p, Vec v, int count) {
  for (int i = 0; i < count; ++i) p[i] = v[i];
}
inline Vec vset(float v) { return Vec{v, v, v, v}; }
inline Vec vfma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec vpick(VecMask m, Vec a, Vec b) { return (Vec)(((VecMask)a & m) | ((VecMask)b & ~m)); }
inline Vec vmax(Vec a, Vec b) { return vpick(a > b, a, b); }
inline Vec vmin(Vec a, Vec b) { return vpick(a < b, a, b); }
inline Vec vadd(Vec a, Vec b) { return a + b; }
inline Vec vsub(Vec a, Vec b) { return a - b; }
inline Vec vmul(Vec a, Vec b) { return a * b; }

#endif

// Channels c to c + kWidth of a row of `channels`: whole vectors, and the last one partial.
inline Vec vload_part(const float* p, int64_t left) { return left >= kWidth ? vload(p) : vload(p, static_cast<int>(left)); }
inline void vstore_part(float* p, Vec v, int64_t left) {
  if (left >= kWidth)
    vstore(p, v);
  else
    vstore(p, v, static_cast<int>(left));
}

}  // namespace
