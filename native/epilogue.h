// What is done to sums before they are stored, for the instruction set that the including file is compiled for; see vec.h.
#pragma once

#include "conv.h"
#include "vec.h"

namespace {

using caffetools::Epilogue;

inline Vec activate(Vec v, const Epilogue& e, int64_t channel, int64_t left) {
  switch (e.activation) {
    case caffetools::kRelu:
      return vmax(vset(0.0f), v);  // in this order what is not a number remains so
    case caffetools::kLeaky:
      return vfma(vset(e.low), vmin(vset(0.0f), v), vmax(vset(0.0f), v));
    case caffetools::kPrelu:
      return vfma(vload_part(e.slopes + channel, left), vmin(vset(0.0f), v), vmax(vset(0.0f), v));
    case caffetools::kClip:
      return vmin(vset(e.high), vmax(vset(e.low), v));
    default:
      return v;
  }
}

inline Vec finish(Vec v, const Epilogue& e, int64_t channel, int64_t left, const float* residual) {
  if (e.bias != nullptr) v = vadd(v, vload_part(e.bias + channel, left));
  if (residual != nullptr) v = vadd(v, vload_part(residual + channel, left));
  return activate(v, e, channel, left);
}

}  // namespace
