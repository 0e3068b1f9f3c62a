// The arithmetic of LRN across channels. CMake compiles this file once for each instruction set, as the kernel that
// CAFFETOOLS_KERNEL names.
#include "lanes.h"
#include "lrn.h"

namespace {

using caffetools::Kernel;
using caffetools::Lrn;
using caffetools::Part;

// Scratch is a copy of a part with zeros around it, so that windows at the ends need no special case: rows `pitch` floats apart,
// a window's members `step` apart, the part's first float `pad` after the start.
struct Scratch {
  int64_t pitch, step, pad, floats;

  Scratch(const Part& part, const Lrn& lrn) {
    const int64_t width = (part.width + kLanes - 1) / kLanes * kLanes;
    if (part.window_over_rows) {
      pitch = step = width;
      pad = lrn.half * pitch;
      floats = (part.rows + 2 * lrn.half) * pitch;
    } else {
      pitch = width + 2 * lrn.half;
      step = 1;
      pad = lrn.half;
      floats = part.rows * pitch;
    }
    floats = (floats + kLanes + 15) / 16 * 16;  // the last row's last lanes may read past its end
  }
};

// How far ahead memory is asked for: about 2 kB, in rows. Rows far apart are more than the processor foresees by itself.
inline int64_t rows_ahead(const Part& part) { return 1 + 512 / part.width; }

// Asks for memory that is about to be needed; any address will do.
inline void prefetch(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

// Calls body(offset in the blob, offset in scratch, load, store) for every group of lanes; the last ones of a row are partial.
template <typename Body>
inline void for_lanes(const Part& part, const Scratch& s, const Body& body) {
  const int64_t whole = part.width / kLanes * kLanes;
  const Mask rest = first(part.width - whole);
  for (int64_t row = 0; row < part.rows; ++row) {
    const int64_t blob = row * part.stride, scratch = row * s.pitch;
    for (int64_t i = 0; i < whole; i += kLanes)
      body(blob + i, scratch + i, [](const float* p) { return load(p); }, [](float* p, Lanes v) { store(p, v); });
    if (whole < part.width)
      body(blob + whole, scratch + whole, [rest](const float* p) { return load(p, rest); },
           [rest](float* p, Lanes v) { store(p, v, rest); });
  }
}

// Zeros in the rows that windows see beyond the part's ends. Within rows there is nothing to do: scratch starts as zeros, and the
// partial lanes that reach into a margin are zeros.
inline void zero_margins(const Part& part, const Scratch& s, float* scratch) {
  if (!part.window_over_rows) return;
  float* after = scratch + s.pad + part.rows * s.pitch;
  for (int64_t i = 0; i < s.pad; ++i) scratch[i] = after[i] = 0;
}

// The sum over the window whose first member is at p; kSize 0 is any size.
template <int kSize>
inline Lanes window_sum(const float* p, int64_t step, int64_t size) {
  Lanes sum = load(p);
  const int64_t count = kSize ? kSize : size;
#pragma GCC unroll 8
  for (int64_t j = 1; j < count; ++j) sum = add(sum, load(p + j * step));
  return sum;
}

// scale^-beta; also gives 1 / scale.
template <bool kThreeQuarters>
inline Lanes negative_power(Lanes scale, float beta, Lanes* inverse) {
  if (kThreeQuarters) return three_quarters(scale, inverse);
  *inverse = divide(all(1.0f), scale);
  alignas(64) float values[kLanes];
  store(values, scale);
  for (int64_t i = 0; i < kLanes; ++i) values[i] = powf(values[i], -beta);
  return load(values);
}

inline void square(const Part& part, const Scratch& s, const float* x, float* scratch) {
  float* inside = scratch + s.pad;
  const int64_t ahead = rows_ahead(part) * part.stride;
  for_lanes(part, s, [=](int64_t blob, int64_t at, auto get, auto) {
    prefetch(x + blob + ahead);
    const Lanes v = get(x + blob);
    store(inside + at, mul(v, v));
  });
  zero_margins(part, s, scratch);
}

template <int kSize, bool kThreeQuarters>
void forward(const Part& part, const Lrn& lrn, const float* x, float* y, float* scratch) {
  const Scratch s(part, lrn);
  const Lanes alpha = all(lrn.alpha_over_size), k = all(lrn.k);
  const int64_t size = 2 * lrn.half + 1;
  const float beta = lrn.beta;
  const int64_t ahead = rows_ahead(part) * part.stride;
  square(part, s, x, scratch);
  for_lanes(part, s, [=](int64_t blob, int64_t at, auto get, auto put) {
    prefetch(y + blob + ahead);
    const Lanes scale = mul_add(window_sum<kSize>(scratch + at, s.step, size), alpha, k);
    Lanes inverse;
    put(y + blob, mul(get(x + blob), negative_power<kThreeQuarters>(scale, beta, &inverse)));
  });
}

// dx = dy * scale^-beta - 2 * alpha * beta / size * x * (sum of dy * y / scale over the window)
template <int kSize, bool kThreeQuarters>
void backward(const Part& part, const Lrn& lrn, const float* x, const float* dy, float* dx, float* scratch, float* ratios) {
  const Scratch s(part, lrn);
  const Lanes alpha = all(lrn.alpha_over_size), k = all(lrn.k), factor = all(2 * lrn.beta * lrn.alpha_over_size);
  const int64_t size = 2 * lrn.half + 1;
  const float beta = lrn.beta;
  const int64_t ahead = rows_ahead(part) * part.stride;
  float* inside = ratios + s.pad;
  square(part, s, x, scratch);
  for_lanes(part, s, [=](int64_t blob, int64_t at, auto get, auto put) {
    prefetch(dy + blob + ahead);
    prefetch(dx + blob + ahead);
    const Lanes scale = mul_add(window_sum<kSize>(scratch + at, s.step, size), alpha, k);
    Lanes inverse;
    const Lanes direct = mul(get(dy + blob), negative_power<kThreeQuarters>(scale, beta, &inverse));
    put(dx + blob, direct);
    store(inside + at, mul(mul(direct, get(x + blob)), inverse));
  });
  zero_margins(part, s, ratios);
  for_lanes(part, s, [=](int64_t blob, int64_t at, auto get, auto put) {
    const Lanes around = window_sum<kSize>(ratios + at, s.step, size);
    put(dx + blob, minus_mul_add(mul(get(x + blob), factor), around, get(dx + blob)));
  });
}

int64_t scratch_floats(const Part& part, const Lrn& lrn) { return Scratch(part, lrn).floats; }

void any_forward(const Part& part, const Lrn& lrn, const float* x, float* y, float* scratch) {
  const bool usual = lrn.beta == 0.75f;
  auto* run = !usual ? &forward<0, false> : lrn.half == 2 ? &forward<5, true> : lrn.half == 1 ? &forward<3, true> : &forward<0, true>;
  run(part, lrn, x, y, scratch);
}

void any_backward(const Part& part, const Lrn& lrn, const float* x, const float* dy, float* dx, float* scratch, float* ratios) {
  const bool usual = lrn.beta == 0.75f;
  auto* run = !usual ? &backward<0, false> : lrn.half == 2 ? &backward<5, true> : lrn.half == 1 ? &backward<3, true> : &backward<0, true>;
  run(part, lrn, x, dy, dx, scratch, ratios);
}

}  // namespace

namespace caffetools {

extern const Kernel CAFFETOOLS_KERNEL = {&scratch_floats, &any_forward, &any_backward};

}  // namespace caffetools
