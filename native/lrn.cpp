// The C interface of the native LRN: plain pointers, so that one binary serves every release of Python and of torch.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "amx.h"
#include "export.h"
#include "lrn.h"
#include "pool.h"
#include "variants.h"

namespace caffetools {
namespace {

// NCHW is worked on in stretches of the picture whose squares stay in the core's own cache.
constexpr int64_t kStretchFloats = 16384;
// Channels-last, in so many points of the picture at once.
constexpr int64_t kPoints = 4;
constexpr int64_t kAlignment = 64;

// The best variant up to `variant`; 3 adds AMX to AVX-512 (see amx.h).
int best(int variant) {
  const int found = supported_variant(variant);
  return variant >= 3 && found == 2 ? 3 : found;
}

std::atomic<int> in_use{best(3)};

// How a blob is cut: `parts` pieces, the last of a picture narrower where `width` does not divide it.
struct Cut {
  int64_t channels, points;  // of one picture
  bool channels_last;
  int64_t width, per_picture, parts;

  Cut(int64_t n, int64_t c, int64_t hw, bool last) : channels(c), points(hw), channels_last(last) {
    if (last) {
      width = kPoints;
    } else {
      width = kStretchFloats / c / 16 * 16;
      if (width < 16) width = 16;
    }
    if (width > hw) width = hw;
    per_picture = (hw + width - 1) / width;
    parts = n * per_picture;
  }

  Part part(int64_t index) const {
    const int64_t start = index % per_picture * width, count = start + width <= points ? width : points - start;
    return channels_last ? Part{count, channels, channels, false} : Part{channels, count, points, true};
  }

  int64_t offset(int64_t index) const {
    const int64_t start = index % per_picture * width;
    return index / per_picture * channels * points + (channels_last ? start * channels : start);
  }
};

// Scratch of a thread, on a cache line of its own; null where there is no memory.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : block_(std::malloc(bytes + kAlignment)) {
    if (block_ == nullptr) return;
    floats_ = reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(block_) + kAlignment - 1) / kAlignment * kAlignment);
    std::memset(floats_, 0, bytes);
  }
  ~Scratch() { std::free(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* get() const { return floats_; }

 private:
  void* block_;
  float* floats_ = nullptr;
};

// Runs work(part, offset, scratch, more scratch) over the blob on `threads` threads; false when there is no memory for scratch.
template <typename Work>
bool run(const Kernel& kernel, const Cut& cut, const Lrn& lrn, int threads, const Work& work) {
  const int64_t floats = kernel.scratch_floats(cut.part(0), lrn);
  std::atomic<bool> enough{true};
  parallel_for(threads, cut.parts, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const Scratch scratch(2 * static_cast<std::size_t>(floats) * sizeof(float));
    if (scratch.get() == nullptr) {
      enough = false;
      return;
    }
    for (int64_t index = begin; index < end; ++index) work(cut.part(index), cut.offset(index), scratch.get(), scratch.get() + floats);
  });
  return enough;
}

Lrn layer(int64_t channels, int64_t size, float alpha, float beta, float k) {
  const int64_t half = size / 2 < channels - 1 ? size / 2 : channels - 1;
  return {channels, half, alpha / static_cast<float>(size), beta, k};
}

bool forward(const float* x, float* y, const Cut& cut, const Lrn& lrn, int threads) {
  const Kernel& kernel = CAFFETOOLS_IN_USE(kernel);
  return run(kernel, cut, lrn, threads,
             [&](const Part& part, int64_t at, float* squares, float*) { kernel.forward(part, lrn, x + at, y + at, squares); });
}

}  // namespace

int current_variant() { return in_use; }

bool normalize(const float* x, float* y, int64_t n, int64_t c, int64_t hw, int64_t size, float alpha, float beta, float k, int threads) {
  return forward(x, y, {n, c, hw, true}, layer(c, size, alpha, beta, k), threads);
}

}  // namespace caffetools

using namespace caffetools;

// The version of this interface; the loader refuses others.
CAFFETOOLS_API int caffetools_native_version() { return 12; }

// Use the best kernel up to `variant` from now on (as variants.h numbers them); returns whether it is that very one. For tests.
// The variant in use (variants.h).
CAFFETOOLS_API int caffetools_native_variant() { return current_variant(); }

CAFFETOOLS_API int caffetools_native_use(int variant) {
  in_use = best(variant);
  return in_use == variant && (variant < 3 || amx_ready());
}

// As pool.h has them; whether loops run on OpenMP's threads (1) or on the library's own (0).
CAFFETOOLS_API void caffetools_use_openmp(int on) { use_openmp(on != 0); }
CAFFETOOLS_API int caffetools_limit_openmp(int threads) { return limit_openmp(threads) ? 1 : 0; }

// y from x: (n, c, hw) in memory, or (n, hw, c) where channels_last. `size` is odd, k > 0, alpha >= 0. 0 is success, 1 no memory.
CAFFETOOLS_API int caffetools_lrn_forward(const float* x, float* y, int64_t n, int64_t c, int64_t hw, int channels_last, int64_t size,
                                          float alpha, float beta, float k, int threads) {
  return forward(x, y, {n, c, hw, channels_last != 0}, layer(c, size, alpha, beta, k), threads) ? 0 : 1;
}

// dx from x and the gradient dy of y, all in one layout. The rest as above.
CAFFETOOLS_API int caffetools_lrn_backward(const float* x, const float* dy, float* dx, int64_t n, int64_t c, int64_t hw, int channels_last,
                                           int64_t size, float alpha, float beta, float k, int threads) {
  const Kernel& kernel = CAFFETOOLS_IN_USE(kernel);
  const Lrn lrn = layer(c, size, alpha, beta, k);
  const Cut cut(n, c, hw, channels_last != 0);
  const bool done = run(kernel, cut, lrn, threads, [&](const Part& part, int64_t at, float* squares, float* ratios) {
    kernel.backward(part, lrn, x + at, dy + at, dx + at, squares, ratios);
  });
  return done ? 0 : 1;
}
