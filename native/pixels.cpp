// The C interface of the kernels for pictures of bytes. A library of its own: it needs neither torch nor OpenMP, so that commands that
// only read databases start quickly; threads are the caller's.
#include "pixels.h"

#include <atomic>
#include <cstddef>
#include <new>
#include <vector>

#include "export.h"

namespace caffetools {
namespace {

// The best kernel that this processor has, of those up to `variant`: 0 the baseline, 1 AVX2, 2 AVX-512.
const PixelsKernel* choose(int variant) {
#ifdef CAFFETOOLS_X86_VARIANTS
  __builtin_cpu_init();
  if (variant >= 2 && __builtin_cpu_supports("avx512f")) return &pixels_kernel_avx512;
  if (variant >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &pixels_kernel_avx2;
#else
  (void)variant;
#endif
  return &pixels_kernel_baseline;
}

std::atomic<const PixelsKernel*> in_use{choose(2)};

}  // namespace
}  // namespace caffetools

using namespace caffetools;

// The version of this interface; the loader refuses others.
CAFFETOOLS_API int caffetools_pixels_version() { return 1; }

// Use the best kernel up to `variant` from now on. For tests.
CAFFETOOLS_API void caffetools_pixels_use(int variant) { in_use = choose(variant); }

// `count` crops to `out`, one after the other. 0 is success, 1 no memory.
CAFFETOOLS_API int caffetools_pixels_transform(const Transform* transform, const Crop* crops, int64_t count, float* out) try {
  const int64_t row = transform->channels * transform->width;
  std::vector<uint8_t> bytes(static_cast<std::size_t>(2 * row));
  std::vector<float> values(static_cast<std::size_t>(row));
  const PixelsKernel& kernel = *in_use;
  for (int64_t i = 0; i < count; ++i) kernel.transform(*transform, crops[i], out + i * row * transform->height, bytes.data(), values.data());
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// Add `count` pictures of `size` bytes to the sums, in their order.
CAFFETOOLS_API void caffetools_pixels_sum(const uint8_t* const* pictures, int64_t count, int64_t size, float* sums) {
  in_use.load()->sum(pictures, count, size, sums);
}
