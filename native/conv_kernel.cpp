// The arithmetic of convolution and pooling over channels-last memory. CMake compiles this file once for each instruction set, as the
// kernel that CAFFETOOLS_CONV_KERNEL names.
#include "conv.h"
#include "epilogue.h"
#include "vec.h"

namespace {

using caffetools::ConvKernel;
using caffetools::Results;
using caffetools::Sums;
using caffetools::WeightSteps;
using caffetools::Window;

// Where the rows of a block begin: anywhere, or at one distance from each other. The second needs few registers for addresses; with the
// first, half of the loads only fetch pointers.
struct AnyRows {
  const float* const* a;
  static constexpr bool kEven = false;
};
struct EvenRows {
  const float* a;
  int64_t step;  // floats
  static constexpr bool kEven = true;
};

// Memory that is fetched while the sums are computed.
struct Ahead {
  const char* at;
  int64_t step;
  inline void fetch() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

// Adds kR rows times kV vectors of weights for `count` inputs to the sums.
template <int kR, int kV>
inline void add_products(const AnyRows& rows, int64_t offset, int64_t count, const float*& weights, Ahead& ahead,
                         Vec (&acc)[kR][kV]) {
  const float* p[kR];
#pragma GCC unroll 16
  for (int m = 0; m < kR; ++m) p[m] = rows.a[m] + offset;
  for (int64_t k = 0; k < count; ++k) {
    Vec b[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) b[v] = vload(weights + v * kWidth);
    weights += 2 * kWidth;
    ahead.fetch();
#pragma GCC unroll 16
    for (int m = 0; m < kR; ++m) {
      const Vec x = vset(p[m][k]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) acc[m][v] = vfma(x, b[v], acc[m][v]);
    }
  }
}

template <int kR, int kV>
inline void add_products(const EvenRows& rows, int64_t offset, int64_t count, const float*& weights, Ahead& ahead,
                         Vec (&acc)[kR][kV]) {
  // A base for every four rows; the three after it are at multiples of the step that addresses can hold.
  constexpr int kBases = (kR + 3) / 4;
  const float* base[kBases];
#pragma GCC unroll 4
  for (int g = 0; g < kBases; ++g) base[g] = rows.a + offset + 4 * g * rows.step;
  const int64_t one = rows.step, three = 3 * rows.step;
  const float* const end = base[0] + count;
  while (base[0] != end) {
    Vec b[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) b[v] = vload(weights + v * kWidth);
    weights += 2 * kWidth;
    ahead.fetch();
#pragma GCC unroll 16
    for (int m = 0; m < kR; ++m) {
      const float* at = base[m / 4];
      const Vec x = vset(m % 4 == 0 ? at[0] : m % 4 == 1 ? at[one] : m % 4 == 2 ? at[2 * one] : at[three]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) acc[m][v] = vfma(x, b[v], acc[m][v]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < kBases; ++g) ++base[g];
  }
}

// The bounds of an activation that only bounds, or false.
inline bool bounds(const Epilogue& e, float* low, float* high) {
  *low = e.activation == caffetools::kRelu ? 0.0f : e.activation == caffetools::kClip ? e.low : -__builtin_inff();
  *high = e.activation == caffetools::kClip ? e.high : __builtin_inff();
  return e.activation == caffetools::kNone || e.activation == caffetools::kRelu || e.activation == caffetools::kClip;
}

// kR rows by kV vectors of channels. The sums stay in registers over the whole of the product. kCommon: whole vectors, no residual,
// and an activation that only bounds, as nearly all convolutions have them; the sums need few operations after the product then.
template <int kR, int kV, bool kCommon, typename Rows>
void multiply_block(const Rows& rows, const Sums& sums, const float* weights, int64_t channels, const Results& to, const Epilogue& epilogue) {
  Vec acc[kR][kV];
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) {
    const Vec start = kCommon && epilogue.bias != nullptr ? vload(epilogue.bias + v * kWidth) : vset(0.0f);
#pragma GCC unroll 16
    for (int m = 0; m < kR; ++m) acc[m][v] = start;
  }
  Ahead ahead{static_cast<const char*>(sums.ahead), sums.ahead_step};
  for (int64_t r = 0; r < sums.runs; ++r) add_products<kR, kV>(rows, sums.offsets[r], sums.run, weights, ahead, acc);
  if (kCommon) {
    float least, most;
    bounds(epilogue, &least, &most);
    const Vec low = vset(least), high = vset(most);
    float* y = to.y;
#pragma GCC unroll 16
    for (int m = 0; m < kR; ++m, y += to.step)
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) vstore(y + v * kWidth, vmin(high, vmax(low, acc[m][v])));
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      const int64_t at = v * kWidth;
      const float* residual = to.residual != nullptr ? to.residual + m * to.residual_step : nullptr;
      vstore_part(to.y + m * to.step + at, finish(acc[m][v], epilogue, at, channels - at, residual), channels - at);
    }
}

template <typename Rows>
using Block = void (*)(const Rows&, const Sums&, const float*, int64_t, const Results&, const Epilogue&);

template <typename Rows, int kV, bool kCommon, int... kR>
struct Blocks {
  static constexpr Block<Rows> table[] = {multiply_block<kR, kV, kCommon, Rows>...};
};

#if defined(CAFFETOOLS_USE_AVX512)
template <typename Rows, int kV, bool kCommon>
using AllBlocks = Blocks<Rows, kV, kCommon, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
#else
template <typename Rows, int kV, bool kCommon>
using AllBlocks = Blocks<Rows, kV, kCommon, 1, 2, 3, 4, 5, 6>;
#endif

// The functions for 1, 2, 3, … rows.
template <typename Rows>
const Block<Rows>* blocks_for(int64_t channels, const Results& to, const Epilogue& epilogue) {
  float low, high;
  const bool wide = channels > kWidth, whole = channels == kWidth || channels == 2 * kWidth;
  if (whole && to.residual == nullptr && bounds(epilogue, &low, &high))
    return wide ? AllBlocks<Rows, 2, true>::table : AllBlocks<Rows, 1, true>::table;
  return wide ? AllBlocks<Rows, 2, false>::table : AllBlocks<Rows, 1, false>::table;
}

void multiply_even(int64_t rows, const float* a, int64_t step, const Sums& sums, const float* weights, int64_t channels, const Results& to,
                   const Epilogue& epilogue) {
  const Block<EvenRows>* table = blocks_for<EvenRows>(channels, to, epilogue);
  // Blocks of nearly one size, so that the last one is not a small one.
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t b = 0, first = 0; b < blocks; ++b) {
    const int64_t last = rows * (b + 1) / blocks;
    table[last - first - 1](EvenRows{a + first * step, step}, sums, weights, channels, to.from(first), epilogue);
    first = last;
  }
}

void multiply(int64_t rows, const float* const* a, const Sums& sums, const float* weights, int64_t channels, const Results& to,
              const Epilogue& epilogue) {
  const int64_t step = rows > 1 ? a[1] - a[0] : 0;
  bool even = true;
  for (int64_t m = 2; m < rows; ++m) even &= a[m] - a[m - 1] == step;
  if (even)
    multiply_even(rows, a[0], step, sums, weights, channels, to, epilogue);
  else
    blocks_for<AnyRows>(channels, to, epilogue)[rows - 1](AnyRows{a}, sums, weights, channels, to, epilogue);
}

// ---- Winograd: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015) ----

template <int kM>
struct Winograd;

template <>
struct Winograd<2> {
  static inline void in(const Vec* d, Vec* t) {
    t[0] = vsub(d[0], d[2]);
    t[1] = vadd(d[1], d[2]);
    t[2] = vsub(d[2], d[1]);
    t[3] = vsub(d[1], d[3]);
  }
  static inline void kernel(const Vec* g, Vec* u) {
    const Vec half = vset(0.5f), a = vmul(half, vadd(g[0], g[2])), b = vmul(half, g[1]);
    u[0] = g[0];
    u[1] = vadd(a, b);
    u[2] = vsub(a, b);
    u[3] = g[2];
  }
  static inline void out(const Vec* s, Vec* y) {
    y[0] = vadd(vadd(s[0], s[1]), s[2]);
    y[1] = vsub(vsub(s[1], s[2]), s[3]);
  }
  static inline void grad(const Vec* y, Vec* s) {
    s[0] = y[0];
    s[1] = vadd(y[0], y[1]);
    s[2] = vsub(y[0], y[1]);
    s[3] = vsub(vset(0.0f), y[1]);
  }
};

// Interpolated at 0, +-1/sqrt(2), +-sqrt(2) and infinity: a third of the rounding error of the usual 0, +-1, +-2.
template <>
struct Winograd<4> {
  static constexpr float kRoot = 1.41421356237309505f, kHalfRoot = 0.70710678118654752f;
  static inline void in(const Vec* d, Vec* t) {
    const Vec root = vset(kRoot), half_root = vset(kHalfRoot), steep = vset(-2.5f);
    t[0] = vadd(vfma(steep, d[2], d[0]), d[4]);
    const Vec a = vfma(vset(-2.0f), d[2], d[4]), b = vsub(vmul(half_root, d[3]), vmul(root, d[1]));
    t[1] = vadd(a, b);
    t[2] = vsub(a, b);
    const Vec e = vfma(vset(-0.5f), d[2], d[4]), f = vsub(vmul(root, d[3]), vmul(half_root, d[1]));
    t[3] = vadd(e, f);
    t[4] = vsub(e, f);
    t[5] = vadd(vfma(steep, d[3], d[1]), d[5]);
  }
  static inline void kernel(const Vec* g, Vec* u) {
    const Vec third = vset(-1.0f / 3), sixth = vset(1.0f / 6);
    const Vec a = vmul(third, vadd(vadd(g[0], g[0]), g[2])), b = vmul(vset(-kRoot / 3), g[1]);
    const Vec e = vmul(sixth, vadd(g[0], vadd(g[2], g[2]))), f = vmul(vset(kRoot / 6), g[1]);
    u[0] = g[0];
    u[1] = vadd(a, b);
    u[2] = vsub(a, b);
    u[3] = vadd(e, f);
    u[4] = vsub(e, f);
    u[5] = g[2];
  }
  static inline void out(const Vec* s, Vec* y) {
    const Vec a = vadd(s[1], s[2]), b = vsub(s[1], s[2]), e = vadd(s[3], s[4]), f = vsub(s[3], s[4]);
    y[0] = vadd(vadd(s[0], a), e);
    y[1] = vfma(vset(kHalfRoot), b, vmul(vset(kRoot), f));
    y[2] = vfma(vset(0.5f), a, vmul(vset(2.0f), e));
    y[3] = vadd(vfma(vset(kHalfRoot / 2), b, vmul(vset(2 * kRoot), f)), s[5]);
  }
  static inline void grad(const Vec* y, Vec* s) {
    const Vec a = vfma(vset(0.5f), y[2], y[0]), b = vfma(vset(kHalfRoot / 2), y[3], vmul(vset(kHalfRoot), y[1]));
    const Vec e = vfma(vset(2.0f), y[2], y[0]), f = vfma(vset(2 * kRoot), y[3], vmul(vset(kRoot), y[1]));
    s[0] = y[0];
    s[1] = vadd(a, b);
    s[2] = vsub(a, b);
    s[3] = vadd(e, f);
    s[4] = vsub(e, f);
    s[5] = y[3];
  }
};

// One of Winograd's two transforms of a tile whose side is kFrom to one whose side is kTo, first along rows, then along columns. kWhole: all
// of the tile is inside of the picture, and all vectors of channels are whole.
template <int kFrom, int kTo, void (*kTransform)(const Vec*, Vec*), bool kWhole>
void transform_tile_as(const float* picture, int64_t h, int64_t w, int64_t pitch, int64_t y, int64_t x, int64_t channels, float* to,
                       int64_t stride) {
  const float* corner = picture + (y * w + x) * pitch;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t left = channels - c;
    Vec rows[kFrom][kTo];
#pragma GCC unroll 6
    for (int i = 0; i < kFrom; ++i) {
      Vec d[kFrom];
      const bool inside = kWhole || (y + i >= 0 && y + i < h);
#pragma GCC unroll 6
      for (int j = 0; j < kFrom; ++j) {
        const float* from = corner + (i * w + j) * pitch + c;
        const bool here = inside && x + j >= 0 && x + j < w;
        d[j] = kWhole ? vload(from) : here ? vload_part(from, left) : vset(0.0f);
      }
      kTransform(d, rows[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < kTo; ++j) {
      Vec d[kFrom], t[kTo];
#pragma GCC unroll 6
      for (int i = 0; i < kFrom; ++i) d[i] = rows[i][j];
      kTransform(d, t);
#pragma GCC unroll 6
      for (int i = 0; i < kTo; ++i) {
        float* place = to + (i * kTo + j) * stride + c;
        if (kWhole)
          vstore(place, t[i]);
        else
          vstore_part(place, t[i], left);
      }
    }
  }
}

template <int kFrom, int kTo, void (*kTransform)(const Vec*, Vec*)>
void transform_tile(const float* picture, int64_t h, int64_t w, int64_t pitch, int64_t y, int64_t x, int64_t channels, float* to,
                    int64_t stride) {
  const bool whole = y >= 0 && x >= 0 && y + kFrom <= h && x + kFrom <= w && channels % kWidth == 0;
  (whole ? transform_tile_as<kFrom, kTo, kTransform, true> : transform_tile_as<kFrom, kTo, kTransform, false>)(picture, h, w, pitch, y, x,
                                                                                                               channels, to, stride);
}

void tile_in(int m, const float* picture, int64_t h, int64_t w, int64_t pitch, int64_t y, int64_t x, int64_t channels, float* to,
             int64_t stride) {
  (m == 2 ? transform_tile<4, 4, Winograd<2>::in> : transform_tile<6, 6, Winograd<4>::in>)(picture, h, w, pitch, y, x, channels, to, stride);
}

void tile_grad(int m, const float* picture, int64_t h, int64_t w, int64_t pitch, int64_t y, int64_t x, int64_t channels, float* to,
               int64_t stride) {
  (m == 2 ? transform_tile<2, 4, Winograd<2>::grad> : transform_tile<4, 6, Winograd<4>::grad>)(picture, h, w, pitch, y, x, channels, to,
                                                                                               stride);
}

template <int kM>
void kernels_in_m(const float* weights, const WeightSteps& steps, int64_t outputs, float* to, int64_t stride) {
  constexpr int kSide = kM + 2;
  for (int64_t o = 0; o < 2 * kWidth; o += kWidth) {
    alignas(64) float gathered[9][kWidth];
    for (int i = 0; i < 9; ++i) {
      const float* from = weights + o * steps.output + i / 3 * steps.row + i % 3 * steps.column;
      for (int lane = 0; lane < kWidth; ++lane) gathered[i][lane] = o + lane < outputs ? from[lane * steps.output] : 0.0f;
    }
    Vec half[kSide][3];
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) {
      const Vec g[3] = {vload(gathered[x]), vload(gathered[3 + x]), vload(gathered[6 + x])};
      Vec u[kSide];
      Winograd<kM>::kernel(g, u);
#pragma GCC unroll 6
      for (int i = 0; i < kSide; ++i) half[i][x] = u[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < kSide; ++i) {
      Vec u[kSide];
      Winograd<kM>::kernel(half[i], u);
#pragma GCC unroll 6
      for (int j = 0; j < kSide; ++j) vstore(to + (i * kSide + j) * stride + o, u[j]);
    }
  }
}

void kernels_in(int m, const float* weights, const WeightSteps& steps, int64_t outputs, float* to, int64_t stride) {
  (m == 2 ? kernels_in_m<2> : kernels_in_m<4>)(weights, steps, outputs, to, stride);
}

struct Place {
  float* picture;
  const float* residual;
  int64_t rows, columns, row_pitch, residual_row_pitch, pitch, residual_pitch;
};

// kCommon: all m x m outputs are inside of the picture, vectors of channels are whole, there is no residual, and the activation only bounds.
template <int kM, bool kCommon>
void tile_out_m(const float* from, int64_t channels, const Place& place, const Epilogue& epilogue) {
  constexpr int kSide = kM + 2;
  float least, most;
  bounds(epilogue, &least, &most);
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t left = channels - c;
    Vec columns[kM][kSide];
#pragma GCC unroll 6
    for (int j = 0; j < kSide; ++j) {
      Vec s[kSide], y[kM];
#pragma GCC unroll 6
      for (int i = 0; i < kSide; ++i) {
        const float* at = from + (i * kSide + j) * channels + c;
        s[i] = kCommon ? vload(at) : vload_part(at, left);
      }
      Winograd<kM>::out(s, y);
#pragma GCC unroll 4
      for (int i = 0; i < kM; ++i) columns[i][j] = y[i];
    }
    const Vec bias = kCommon && epilogue.bias != nullptr ? vload(epilogue.bias + c) : vset(0.0f);
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i) {
      Vec y[kM];
      Winograd<kM>::out(columns[i], y);
      if (!kCommon && i >= place.rows) continue;
      float* row = place.picture + i * place.row_pitch + c;
#pragma GCC unroll 4
      for (int j = 0; j < kM; ++j) {
        if (kCommon) {
          vstore(row + j * place.pitch, vmin(vset(most), vmax(vset(least), vadd(y[j], bias))));
          continue;
        }
        if (j >= place.columns) continue;
        const float* residual =
            place.residual != nullptr ? place.residual + i * place.residual_row_pitch + j * place.residual_pitch : nullptr;
        vstore_part(row + j * place.pitch, finish(y[j], epilogue, c, left, residual), left);
      }
    }
  }
}

template <int kM>
void tile_out_m(const float* from, int64_t channels, const Place& place, const Epilogue& epilogue) {
  float low, high;
  const bool whole = place.rows == kM && place.columns == kM && channels % kWidth == 0;
  (whole && place.residual == nullptr && bounds(epilogue, &low, &high) ? tile_out_m<kM, true> : tile_out_m<kM, false>)(from, channels, place,
                                                                                                                      epilogue);
}

void tile_out(int m, const float* from, int64_t channels, float* picture, const float* residual, int64_t rows, int64_t columns,
              int64_t row_pitch, int64_t residual_row_pitch, int64_t pitch, int64_t residual_pitch, const Epilogue& epilogue) {
  const Place place{picture, residual, rows, columns, row_pitch, residual_row_pitch, pitch, residual_pitch};
  (m == 2 ? tile_out_m<2> : tile_out_m<4>)(from, channels, place, epilogue);
}

// ---- depthwise convolution and pooling: vectors run over channels ----

// The part of a window that is inside of the picture: kernel positions [first, last) of an output at `o`.
struct Range {
  int64_t first, last, start;  // start: the picture's coordinate of kernel position 0

  Range(int64_t o, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel, int64_t size) {
    start = o * stride - pad;
    first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    last = start + (kernel - 1) * dilation >= size ? (size - start + dilation - 1) / dilation : kernel;
    if (last < first) last = first;
  }
};

// Outputs of a row that are computed together.
constexpr int kAhead = 4;

// kR rows of kAhead outputs of a 3 x 3 depthwise convolution of stride kS from (oy, ox) on, for all channels: each input is loaded once
// for all rows and outputs that it adds to, and the weights of 16 channels stay in registers. kEdge: some columns are outside.
template <int kR, int kS, bool kEdge>
void depthwise_block(const Window& w, const float* picture, int64_t oy, int64_t ox, const float* weights, float* y, const Epilogue& epilogue) {
  constexpr int kDown = (kR - 1) * kS + 3, kAcross = (kAhead - 1) * kS + 3;
  const int64_t top = oy * w.sh - w.ph, start = ox * w.sw - w.pw;
  float low, high;
  const bool plain = bounds(epilogue, &low, &high);
  const auto block = [&](int64_t c, auto load, auto store) {
    Vec taps[9], acc[kR][kAhead];
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) taps[i] = load(weights + i * w.c + c);
#pragma GCC unroll 2
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
      for (int m = 0; m < kAhead; ++m) acc[r][m] = vset(0.0f);
#pragma GCC unroll 5
    for (int i = 0; i < kDown; ++i) {
      if (top + i < 0 || top + i >= w.h) continue;
      const float* row = picture + ((top + i) * w.w + start) * w.x_pitch + c;
#pragma GCC unroll 9
      for (int j = 0; j < kAcross; ++j) {
        if (kEdge && (start + j < 0 || start + j >= w.w)) continue;
        const Vec x = load(row + j * w.x_pitch);
#pragma GCC unroll 2
        for (int r = 0; r < kR; ++r) {
          const int ky = i - r * kS;
          if (ky < 0 || ky > 2) continue;
#pragma GCC unroll 4
          for (int m = 0; m < kAhead; ++m) {
            const int kx = j - m * kS;
            if (kx >= 0 && kx <= 2) acc[r][m] = vfma(taps[3 * ky + kx], x, acc[r][m]);
          }
        }
      }
    }
    const Vec bias = plain && epilogue.bias != nullptr ? load(epilogue.bias + c) : vset(0.0f);
#pragma GCC unroll 2
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
      for (int m = 0; m < kAhead; ++m) {
        const Vec v = plain ? vmin(vset(high), vmax(vset(low), vadd(acc[r][m], bias))) : finish(acc[r][m], epilogue, c, w.c - c, nullptr);
        store(y + (r * w.ow + ox + m) * w.y_pitch + c, v);
      }
  };
  int64_t c = 0;
  for (; c + kWidth <= w.c; c += kWidth)
    block(c, [](const float* p) { return vload(p); }, [](float* p, Vec v) { vstore(p, v); });
  const int64_t left = w.c - c;
  if (left > 0)
    block(c, [left](const float* p) { return vload_part(p, left); }, [left](float* p, Vec v) { vstore_part(p, v, left); });
}

// kR rows; the last block may begin inside of the one before it.
template <int kR, int kS>
void depthwise_rows_3x3(const Window& w, const float* picture, int64_t oy, const float* weights, float* y, const Epilogue& epilogue) {
  for (int64_t at = 0; at < w.ow; at += kAhead) {
    const int64_t ox = at + kAhead <= w.ow ? at : w.ow - kAhead, start = ox * kS - w.pw;
    const bool edge = start < 0 || start + (kAhead - 1) * kS + 3 > w.w;
    (edge ? depthwise_block<kR, kS, true> : depthwise_block<kR, kS, false>)(w, picture, oy, ox, weights, y, epilogue);
  }
}

void depthwise_row(const Window& w, const float* picture, int64_t oy, const float* weights, float* y, const Epilogue& epilogue) {
  const Range ry(oy, w.sh, w.ph, w.dh, w.kh, w.h);
  for (int64_t ox = 0; ox < w.ow; ox += kAhead) {
    const int count = static_cast<int>(w.ow - ox < kAhead ? w.ow - ox : kAhead);
    const Range first(ox, w.sw, w.pw, w.dw, w.kw, w.w), last(ox + count - 1, w.sw, w.pw, w.dw, w.kw, w.w);
    const bool whole = count == kAhead && first.first == 0 && first.last == w.kw && last.first == 0 && last.last == w.kw;
    for (int64_t c = 0; c < w.c; c += kWidth) {
      const int64_t left = w.c - c;
      Vec acc[kAhead];
      for (int m = 0; m < kAhead; ++m) acc[m] = vset(0.0f);
      for (int64_t ky = ry.first; ky < ry.last; ++ky) {
        const float* row = picture + (ry.start + ky * w.dh) * w.w * w.x_pitch + c;
        const float* taps = weights + ky * w.kw * w.c + c;
        if (whole) {
          for (int64_t kx = 0; kx < w.kw; ++kx) {
            const Vec tap = vload_part(taps + kx * w.c, left);
            const float* x = row + (first.start + kx * w.dw) * w.x_pitch;
#pragma GCC unroll 4
            for (int m = 0; m < kAhead; ++m) acc[m] = vfma(tap, vload_part(x + m * w.sw * w.x_pitch, left), acc[m]);
          }
        } else {
          for (int m = 0; m < count; ++m) {
            const Range rx(ox + m, w.sw, w.pw, w.dw, w.kw, w.w);
            for (int64_t kx = rx.first; kx < rx.last; ++kx)
              acc[m] = vfma(vload_part(taps + kx * w.c, left), vload_part(row + (rx.start + kx * w.dw) * w.x_pitch, left), acc[m]);
          }
        }
      }
      for (int m = 0; m < count; ++m) vstore_part(y + (ox + m) * w.y_pitch + c, finish(acc[m], epilogue, c, left, nullptr), left);
    }
  }
}

void depthwise_rows(const Window& w, const float* picture, int64_t oy, int64_t count, const float* weights, float* y, const Epilogue& epilogue) {
  const bool small = w.kh == 3 && w.kw == 3 && w.dh == 1 && w.dw == 1 && w.sh == w.sw && w.sh <= 2 && w.ow >= kAhead;
  for (int64_t row = 0; row < count;) {
    float* to = y + row * w.ow * w.y_pitch;
    const bool pair = small && w.sh == 1 && row + 1 < count;
    (!small ? depthwise_row : w.sh == 2 ? depthwise_rows_3x3<1, 2> : pair ? depthwise_rows_3x3<2, 1> : depthwise_rows_3x3<1, 1>)(
        w, picture, oy + row, weights, to, epilogue);
    row += pair ? 2 : 1;
  }
}

template <bool kLargest>
void pool_row_of(const Window& w, const float* picture, int64_t oy, float* y) {
  const Range ry(oy, w.sh, w.ph, 1, w.kh, w.h);
  const int64_t padded_rows = (ry.start + w.kh < w.h + w.ph ? ry.start + w.kh : w.h + w.ph) - ry.start;
  for (int64_t ox = 0; ox < w.ow; ++ox) {
    const Range rx(ox, w.sw, w.pw, 1, w.kw, w.w);
    const int64_t padded_columns = (rx.start + w.kw < w.w + w.pw ? rx.start + w.kw : w.w + w.pw) - rx.start;
    const Vec area = vset(1.0f / static_cast<float>(padded_rows * padded_columns));
    const float* corner = picture + ((ry.start + ry.first) * w.w + rx.start + rx.first) * w.x_pitch;
    const int64_t rows = ry.last - ry.first, columns = rx.last - rx.first;
    const auto pool = [&](int64_t c, auto load, auto store) {
      Vec acc = vset(kLargest ? -3.402823466e+38f : 0.0f);
      const float* row = corner + c;
      for (int64_t ky = 0; ky < rows; ++ky, row += w.w * w.x_pitch) {
        const float* x = row;
        for (int64_t kx = 0; kx < columns; ++kx, x += w.x_pitch) acc = kLargest ? vmax(load(x), acc) : vadd(acc, load(x));
      }
      store(y + ox * w.y_pitch + c, kLargest ? acc : vmul(acc, area));
    };
    const auto whole = [&](int64_t c, auto load, auto store) {
      const float* x = corner + c;
      const int64_t down = w.w * w.x_pitch;
      Vec best = load(x);
#pragma GCC unroll 9
      for (int i = 1; i < 9; ++i) best = vmax(load(x + i / 3 * down + i % 3 * w.x_pitch), best);
      store(y + ox * w.y_pitch + c, best);
    };
    const auto load = [](const float* p) { return vload(p); };
    const auto store = [](float* p, Vec v) { vstore(p, v); };
    int64_t c = 0;
    if (kLargest && rows == 3 && columns == 3) {
      for (; c + kWidth <= w.c; c += kWidth) whole(c, load, store);
    } else {
      for (; c + kWidth <= w.c; c += kWidth) pool(c, load, store);
    }
    const int64_t left = w.c - c;
    if (left > 0)
      pool(c, [left](const float* p) { return vload_part(p, left); }, [left](float* p, Vec v) { vstore_part(p, v, left); });
  }
}

void pool_row(const Window& w, const float* picture, int64_t oy, bool largest, float* y) {
  (largest ? pool_row_of<true> : pool_row_of<false>)(w, picture, oy, y);
}

}  // namespace

namespace caffetools {

extern const ConvKernel CAFFETOOLS_CONV_KERNEL{kWidth, kRows, multiply, multiply_even, tile_in, tile_grad, tile_out, kernels_in, depthwise_rows, pool_row};

}  // namespace caffetools
