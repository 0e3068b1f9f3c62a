// The C interface of the kernels for pictures of bytes. A library of its own: it needs neither torch nor OpenMP, so that commands that
// only read databases start quickly; threads are the caller's.
#include "pixels.h"

#include <atomic>
#include <cstddef>
#include <new>
#include <vector>

#include "export.h"
#include "variants.h"

namespace caffetools {
namespace {

std::atomic<int> in_use{supported_variant(2)};

}  // namespace

int current_variant() { return in_use; }

}  // namespace caffetools

using namespace caffetools;

// The version of this interface; the loader refuses others.
CAFFETOOLS_API int caffetools_pixels_version() { return 2; }

// Use the best kernel up to `variant` from now on. For tests.
CAFFETOOLS_API void caffetools_pixels_use(int variant) { in_use = supported_variant(variant); }

// `count` crops to `out`, one after the other. 0 is success, 1 no memory.
CAFFETOOLS_API int caffetools_pixels_transform(const Transform* transform, const Crop* crops, int64_t count, float* out) try {
  const int64_t row = transform->channels * transform->width;
  std::vector<uint8_t> bytes(static_cast<std::size_t>(2 * row));
  std::vector<float> values(static_cast<std::size_t>(row));
  const PixelsKernel& kernel = CAFFETOOLS_IN_USE(pixels_kernel);
  for (int64_t i = 0; i < count; ++i) kernel.transform(*transform, crops[i], out + i * row * transform->height, bytes.data(), values.data());
  return 0;
} catch (const std::bad_alloc&) {
  return 2;
}

// Add `count` pictures of `size` bytes to the sums, in their order; `whole`: see pixels.h.
CAFFETOOLS_API void caffetools_pixels_sum(const uint8_t* const* pictures, int64_t count, int64_t size, float* sums, int64_t whole) {
  CAFFETOOLS_IN_USE(pixels_kernel).sum(pictures, count, size, sums, whole != 0);
}
