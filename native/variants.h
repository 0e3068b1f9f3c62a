// Which instruction set the kernels use: the best that this processor has, or a lower one that a test asks for.
#pragma once

namespace caffetools {

// 0 the baseline, 1 AVX2 with FMA, 2 AVX-512, 3 AVX-512 with AMX (for convolutions; all else as 2).
int current_variant();

// The best variant that this processor has, of those up to `variant`, at most 2.
inline int supported_variant(int variant) {
#ifdef CAFFETOOLS_X86_VARIANTS
  __builtin_cpu_init();
  if (variant >= 2 && __builtin_cpu_supports("avx512f")) return 2;
  if (variant >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#else
  (void)variant;
#endif
  return 0;
}

}  // namespace caffetools

// The variant of `name` in use, of name_baseline, name_avx2 and name_avx512.
#ifdef CAFFETOOLS_X86_VARIANTS
#define CAFFETOOLS_IN_USE(name) (current_variant() >= 2 ? name##_avx512 : current_variant() == 1 ? name##_avx2 : name##_baseline)
#else
#define CAFFETOOLS_IN_USE(name) (name##_baseline)
#endif
