// The update rules of Caffe's solvers, as one pass over weights, gradients and histories.
#pragma once

#include <cstdint>

namespace caffetools {

// As caffetools/solver/native_update.py numbers them.
enum Rule : int { kSgd = 0, kNesterov = 1, kAdaGrad = 2, kRmsProp = 3, kAdaDelta = 4, kAdam = 5 };

// Float constants of an update, in the order in which Python gives them.
struct UpdateRule {
  float scale;     // of the gradients: clipping, and the mean over iter_size
  float decay;     // weight decay
  float absolute;  // not 0: by the weights' signs (L1) rather than the weights
  float rate;
  float momentum;  // kRmsProp: the decay of the mean; kAdam: of the gradients' mean
  float second;    // kAdam: the decay of the squares' mean
  float delta;
};

// What one instruction set offers: the update of `count` weights.
struct UpdateKernel {
  void (*run)(Rule rule, const UpdateRule& constants, float* weights, const float* gradients, float* first, float* second, int64_t count);
};

extern const UpdateKernel update_kernel_baseline, update_kernel_avx2, update_kernel_avx512;

}  // namespace caffetools
