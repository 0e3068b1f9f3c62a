// The few vector operations that the kernels need, for the instruction set that the including file is compiled for.
//
// Everything is in an unnamed namespace: the same file is compiled several times with different options, and the linker must not
// take one version's function for another's. For the same reason only C's mathematics is used, no inline function of C++'s headers.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(CAFFETOOLS_USE_AVX512) || defined(CAFFETOOLS_USE_AVX2)
#include <immintrin.h>
#endif

namespace {

#if defined(CAFFETOOLS_USE_AVX512)

constexpr int64_t kLanes = 16;
using Lanes = __m512;
using Mask = __mmask16;

inline Mask first(int64_t count) { return static_cast<Mask>((1u << count) - 1); }
inline Lanes load(const float* p) { return _mm512_loadu_ps(p); }
inline Lanes load(const float* p, Mask mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline void store(float* p, Lanes v) { _mm512_storeu_ps(p, v); }
inline void store(float* p, Lanes v, Mask mask) { _mm512_mask_storeu_ps(p, mask, v); }
inline Lanes all(float v) { return _mm512_set1_ps(v); }
inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes mul(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
inline Lanes divide(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes minus_mul_add(Lanes a, Lanes b, Lanes c) { return _mm512_fnmadd_ps(a, b, c); }
inline Lanes zero_where_infinite(Lanes which, Lanes v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(which, all(HUGE_VALF), _CMP_NEQ_UQ), v);
}
inline Lanes estimate_rsqrt(Lanes v) { return _mm512_rsqrt14_ps(v); }

#elif defined(CAFFETOOLS_USE_AVX2)

constexpr int64_t kLanes = 8;
using Lanes = __m256;
using Mask = __m256i;

inline Mask first(int64_t count) {
  alignas(32) static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + 8 - count));
}
inline Lanes load(const float* p) { return _mm256_loadu_ps(p); }
inline Lanes load(const float* p, Mask mask) { return _mm256_maskload_ps(p, mask); }
inline void store(float* p, Lanes v) { _mm256_storeu_ps(p, v); }
inline void store(float* p, Lanes v, Mask mask) { _mm256_maskstore_ps(p, mask, v); }
inline Lanes all(float v) { return _mm256_set1_ps(v); }
inline Lanes add(Lanes a, Lanes b) { return _mm256_add_ps(a, b); }
inline Lanes mul(Lanes a, Lanes b) { return _mm256_mul_ps(a, b); }
inline Lanes divide(Lanes a, Lanes b) { return _mm256_div_ps(a, b); }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
inline Lanes minus_mul_add(Lanes a, Lanes b, Lanes c) { return _mm256_fnmadd_ps(a, b, c); }
inline Lanes zero_where_infinite(Lanes which, Lanes v) { return _mm256_and_ps(_mm256_cmp_ps(which, all(HUGE_VALF), _CMP_NEQ_UQ), v); }
inline Lanes estimate_rsqrt(Lanes v) { return _mm256_rsqrt_ps(v); }

#else

// One lane, written so that the compiler can vectorise the loops around it.
constexpr int64_t kLanes = 1;
using Lanes = float;
struct Mask {};

inline Mask first(int64_t) { return {}; }
inline Lanes load(const float* p) { return *p; }
inline Lanes load(const float*, Mask) { return 0; }
inline void store(float* p, Lanes v) { *p = v; }
inline void store(float*, Lanes, Mask) {}
inline Lanes all(float v) { return v; }
inline Lanes add(Lanes a, Lanes b) { return a + b; }
inline Lanes mul(Lanes a, Lanes b) { return a * b; }
inline Lanes divide(Lanes a, Lanes b) { return a / b; }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }
inline Lanes minus_mul_add(Lanes a, Lanes b, Lanes c) { return c - a * b; }

#endif

// v^-3/4 to about one unit in the last place, and v^-1, for v that is normal and positive, infinite (0) or not a number.
inline Lanes three_quarters(Lanes v, Lanes* inverse) {
#if defined(CAFFETOOLS_USE_AVX512) || defined(CAFFETOOLS_USE_AVX2)
  // From an estimate t of v^-1/4 that is good to 10 bits: with e = 1 - v t^4, v^-3/4 = t^3 (1 - e)^-3/4 and v^-1 = t^4 (1 - e)^-1;
  // of both series the terms up to e^2 are taken.
  const Lanes guess = estimate_rsqrt(mul(v, estimate_rsqrt(v)));
  const Lanes square = mul(guess, guess), cube = mul(square, guess), fourth = mul(square, square);
  const Lanes error = minus_mul_add(v, fourth, all(1.0f));
  *inverse = zero_where_infinite(v, mul_add(fourth, mul_add(error, error, error), fourth));
  return zero_where_infinite(v, mul_add(mul(cube, error), mul_add(error, all(0.65625f), all(0.75f)), cube));
#else
  const Lanes root = 1.0f / sqrtf(v);
  *inverse = root * root;
  return root * sqrtf(root);
#endif
}

}  // namespace
