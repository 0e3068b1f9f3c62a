// The arithmetic of native/update.h, compiled once for each instruction set; the loops are left to the compiler's vectors.
#include "update.h"

#include <cmath>

namespace caffetools {
namespace {

// g is the gradient of weight w, h and k are its histories; each formula is that of Caffe's solver of that name.
template <Rule rule>
inline void step(const UpdateRule& c, float& w, float g, float& h, float& k) {
  if (rule == kSgd) {
    h = c.momentum * h + c.rate * g;
    w -= h;
  } else if (rule == kNesterov) {
    const float before = h;
    h = c.momentum * h + c.rate * g;
    w -= (1.0f + c.momentum) * h - c.momentum * before;
  } else if (rule == kAdaGrad) {
    h += g * g;
    w -= c.rate * (g / (std::sqrt(h) + c.delta));
  } else if (rule == kRmsProp) {
    h = c.momentum * h + (1.0f - c.momentum) * (g * g);
    w -= c.rate * (g / (std::sqrt(h) + c.delta));
  } else if (rule == kAdaDelta) {
    h = c.momentum * h + (1.0f - c.momentum) * (g * g);
    const float change = g * std::sqrt((k + c.delta) / (h + c.delta));
    k = c.momentum * k + (1.0f - c.momentum) * (change * change);
    w -= c.rate * change;
  } else {
    h = c.momentum * h + (1.0f - c.momentum) * g;
    k = c.second * k + (1.0f - c.second) * (g * g);
    w -= c.rate * (h / (std::sqrt(k) + c.delta));
  }
}

inline float sign(float w) { return static_cast<float>(w > 0.0f) - static_cast<float>(w < 0.0f); }

template <Rule rule>
void update(const UpdateRule& constants, float* weights, const float* gradients, float* first, float* second, int64_t count) {
  constexpr bool two = rule == kAdaDelta || rule == kAdam;
  const UpdateRule c = constants;
  const bool absolute = c.absolute != 0.0f, decays = c.decay != 0.0f;
  // The arrays are different tensors.
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    float w = weights[i], h = first[i], k = two ? second[i] : 0.0f;
    const float scaled = c.scale * gradients[i], g = decays ? scaled + c.decay * (absolute ? sign(w) : w) : scaled;
    step<rule>(c, w, g, h, k);
    weights[i] = w;
    first[i] = h;
    if (two) second[i] = k;
  }
}

void run(Rule rule, const UpdateRule& constants, float* weights, const float* gradients, float* first, float* second, int64_t count) {
  switch (rule) {
    case kSgd:
      return update<kSgd>(constants, weights, gradients, first, second, count);
    case kNesterov:
      return update<kNesterov>(constants, weights, gradients, first, second, count);
    case kAdaGrad:
      return update<kAdaGrad>(constants, weights, gradients, first, second, count);
    case kRmsProp:
      return update<kRmsProp>(constants, weights, gradients, first, second, count);
    case kAdaDelta:
      return update<kAdaDelta>(constants, weights, gradients, first, second, count);
    default:
      return update<kAdam>(constants, weights, gradients, first, second, count);
  }
}

}  // namespace

extern const UpdateKernel CAFFETOOLS_UPDATE_KERNEL{run};

}  // namespace caffetools
