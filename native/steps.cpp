// Programs: operators of the inference plan that run one after the other without a return to Python.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "export.h"
#include "lrn.h"
#include "pool.h"

using namespace caffetools;

CAFFETOOLS_API void caffetools_conv_run(const void* handle, const float* x, float* y, const float* residual, float* scratch, int threads);
CAFFETOOLS_API void caffetools_conv_pool_run(const void* handle, const int64_t* sizes, const float* x, float* y, int largest, float* scratch,
                                             int threads);
CAFFETOOLS_API void caffetools_pool_run(const int64_t* sizes, const float* x, float* y, int largest, int threads);
struct CaffetoolsProduct;
CAFFETOOLS_API void caffetools_product_run(const CaffetoolsProduct* product, const float* x, float* y, float* scratch, int threads);

// One operator of a program. Places: 0 memory of the thread, at an offset in floats; 1 the input; 2 the output, at an offset.
struct CaffetoolsStep {
  // 0 convolution, 1 pooling, 2 LRN across channels, 3 inner product, 4 softmax over channels, 5 convolution and pooling of its outputs
  int32_t kind;
  int32_t x_place, y_place, residual_place;  // residual_place -1: none
  int64_t x, y, residual;
  const void* handle;    // of a convolution or an inner product
  const int64_t* sizes;  // pooling: the fields of Window; LRN: n, c, h * w, size; softmax: pixels, c, x_pitch, y_pitch
  int32_t largest;
  float alpha, beta, k;
};

namespace {

// exp(x) over its sum for the `c` values of each pixel; the largest value is subtracted first, as Caffe does.
void softmax(const int64_t* sizes, const float* x, float* y, int threads) {
  const int64_t pixels = sizes[0], c = sizes[1], x_pitch = sizes[2], y_pitch = sizes[3];
  parallel_for(threads, pixels, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const float* from = x + pixel * x_pitch;
      float* to = y + pixel * y_pitch;
      const float largest = *std::max_element(from, from + c);
      double sum = 0;
      for (int64_t i = 0; i < c; ++i) sum += to[i] = std::exp(from[i] - largest);
      const float total = static_cast<float>(sum);
      for (int64_t i = 0; i < c; ++i) to[i] /= total;
    }
  });
}

template <typename Place>
void run_step(const CaffetoolsStep& s, const Place& place, float* scratch, int threads) {
  const float* x = place(s.x_place, s.x);
  float* y = place(s.y_place, s.y);
  switch (s.kind) {
    case 0:
      return caffetools_conv_run(s.handle, x, y, s.residual_place < 0 ? nullptr : place(s.residual_place, s.residual), scratch, threads);
    case 1:
      return caffetools_pool_run(s.sizes, x, y, s.largest, threads);
    case 2:
      normalize(x, y, s.sizes[0], s.sizes[1], s.sizes[2], s.sizes[3], s.alpha, s.beta, s.k, threads);
      return;
    case 4:
      return softmax(s.sizes, x, y, threads);
    case 5:
      return caffetools_conv_pool_run(s.handle, s.sizes, x, y, s.largest, scratch, threads);
    default:
      return caffetools_product_run(static_cast<const CaffetoolsProduct*>(s.handle), x, y, scratch, threads);
  }
}

}  // namespace

// Wake the library's threads, which sleep a millisecond after their last loop: waking takes a while, in which the caller prepares a pass.
CAFFETOOLS_API void caffetools_wake_threads() { wake_threads(); }

// Run `count` operators one after the other, each on all threads.
CAFFETOOLS_API void caffetools_steps_run(const CaffetoolsStep* steps, int64_t count, float* memory, const float* input, float* scratch,
                                         int threads) {
  const auto place = [&](int32_t where, int64_t offset) -> float* { return where == 1 ? const_cast<float*>(input) : memory + offset; };
  for (int64_t i = 0; i < count; ++i) run_step(steps[i], place, scratch, threads);
}

// Run `count` operators for each of `parts` parts of a batch, each part on one thread from the first operator to the last. A thread works in
// `memory` + lane * lane_floats, for as many lanes as there are threads, and in scratch likewise. Strides are those of a part, in floats.
CAFFETOOLS_API void caffetools_sequence_run(const CaffetoolsStep* steps, int64_t count, int64_t parts, float* memory, int64_t lane_floats,
                                            float* scratch, int64_t scratch_floats, const float* input, int64_t input_stride, float* output,
                                            int64_t output_stride, int threads) {
  LaneSet lanes(threads);
  parallel_for(threads, parts, [&](int64_t begin, int64_t end) {
    const Lane lane(lanes);
    float* mine = memory + lane.number() * lane_floats;
    float* rough = scratch + lane.number() * scratch_floats;
    for (int64_t part = begin; part < end; ++part) {
      const auto place = [&](int32_t where, int64_t offset) -> float* {
        if (where == 1) return const_cast<float*>(input) + part * input_stride;
        return where == 2 ? output + part * output_stride + offset : mine + offset;
      };
      for (int64_t i = 0; i < count; ++i) run_step(steps[i], place, rough, 1);
    }
  });
}
