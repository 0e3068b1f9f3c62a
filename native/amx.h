// Convolutions by the matrix unit of x86 processors (AMX), which multiplies bfloat16 and adds in float32.
//
// A float32 is the sum of three bfloat16 (8 + 8 + 8 bits of its fraction), its pieces. Of the nine products of two numbers' pieces
// the six largest are computed; the rest is below 2^-26 of the product, less than one rounding of float32. The unit is 16 times as fast
// as float32 vectors, so six products still take about half of their time. The unit treats subnormal numbers as zeros, and an infinite
// input gives what is not a number (infinity minus infinity), as Winograd's algorithm does.
#pragma once

#include <cstdint>

#include "conv.h"

namespace caffetools {

// Columns of a tile of weights; rows of a block and columns of a panel, two tiles each; inputs of one step.
constexpr int64_t kTile = 16, kBlock = 32, kStep = 32;
// bfloat16 of one tile.
constexpr int64_t kTileHalves = 512;
constexpr int64_t kPieces = 3;

// A product of `kBlock` rows and a panel. Rows are `row` values apart in `a`, pieces `piece`; a run of `steps` * kStep inputs begins at each
// of `offsets`. The panel is [run][step][piece][tile][kTileHalves].
struct AmxSums {
  const int64_t* offsets;
  int64_t runs, steps, row, piece;
};

struct AmxKernel {
  // The unit is configured, and released, by each thread for itself.
  void (*begin)();
  void (*end)();
  // The pieces of `count` values, and zeros up to `padded` (a multiple of 16); pieces are `piece` values apart.
  void (*split)(const float* from, int64_t count, int64_t padded, uint16_t* to, int64_t piece);
  // The pieces of one tile of a panel: input k of column j is from[k * k_step + j * column_step], zeros beyond `inputs` and `columns`.
  // Pieces are `piece` values apart.
  void (*pack_tile)(const float* from, int64_t k_step, int64_t column_step, int64_t inputs, int64_t columns, uint16_t* to, int64_t piece);
  // The pieces of the transpose of kTile pixels: channel c of pixel i, which begins at rows[i] (null: zeros), goes to to[c * row + i].
  void (*split_transposed)(const float* const* rows, int64_t channels, uint16_t* to, int64_t row, int64_t piece);
  // The pieces of one tile of a panel whose inputs are kStep pixels: column j of input k is rows[k][j], zeros where rows[k] is null.
  void (*pack_pixels)(const float* const* rows, int64_t columns, uint16_t* to, int64_t piece);
  // Adds (or, first, stores) `rows` x `columns` of the sums [kBlock][kBlock] to `to`, whose rows are `pitch` floats apart.
  void (*accumulate)(const float* sums, int64_t rows, int64_t columns, float* to, int64_t pitch, bool first);
  // Sums [kBlock][kBlock] for `rows` and `columns` of up to kBlock; whole tiles of them are computed.
  void (*multiply)(int64_t rows, int64_t columns, const uint16_t* a, const AmxSums& sums, const uint16_t* panel, float* to);
  // Rows of sums [rows][kBlock]: bias, residual (or null) and activation.
  void (*finish)(const float* sums, int64_t rows, int64_t channels, float* y, int64_t y_pitch, const float* residual, int64_t residual_pitch,
                 const Epilogue& epilogue);
};

#ifdef CAFFETOOLS_AMX
extern const AmxKernel amx_kernel;
#endif

// Whether the processor has the unit, the system lets this process use it, and no test asks for a lower variant.
bool amx_ready();

// A convolution of stride 1 whose windows are sums over the grid of pixels with a border of zeros, which is kept once between rows and
// between images: pixel (y, x) of image i is at ((i * down + ph + y) * across + pw + x).
struct AmxGrid {
  int64_t n, c, h, w, oc, oh, ow, kh, kw, ph, pw, dh, dw, groups;

  explicit AmxGrid(const CaffetoolsConv& s)
      : n(s.n), c(s.c), h(s.h), w(s.w), oc(s.oc), oh(s.oh), ow(s.ow), kh(s.kh), kw(s.kw), ph(s.ph), pw(s.pw), dh(s.dh), dw(s.dw),
        groups(s.groups) {
    // A 1 x 1 kernel sees all pixels as one row.
    if (kh * kw == 1) w = ow = n * h * w, n = h = oh = 1;
  }
  int64_t in() const { return c / groups; }
  int64_t out() const { return oc / groups; }
  int64_t down() const { return h + ph; }
  int64_t across() const { return w + pw; }
  int64_t taps() const { return kh * kw; }
  int64_t offset(int64_t tap) const { return tap / kw * dh * across() + tap % kw * dw; }
  int64_t reach() const { return offset(taps() - 1); }
  // Places of the grid from the first output to the last.
  int64_t places(int64_t images) const { return ((images - 1) * down() + oh - 1) * across() + ow; }
  int64_t panels() const { return (out() + kBlock - 1) / kBlock; }
  int64_t steps() const { return (in() + kStep - 1) / kStep; }
  // bfloat16 of the weights' pieces.
  int64_t halves() const { return groups * panels() * taps() * steps() * kPieces * 2 * kTileHalves; }
};

// Whether the unit computes such a convolution at all.
bool amx_takes(const CaffetoolsConv& s);

void amx_pack(const AmxGrid& grid, const float* weights, const WeightSteps& steps, uint16_t* to, int threads);

// Floats of scratch that a run needs.
int64_t amx_scratch(const AmxGrid& grid);

void amx_run(const CaffetoolsConv& s, const uint16_t* weights, const float* x, float* y, const float* residual, const Epilogue& epilogue,
             float* scratch, int threads);

// The gradient of the weights: dw[o][tap][i] = sum over the places of the grid of dy[place - offset(tap)][o] * x[place][i].
// Floats of scratch that it needs; 0 if the unit does not compute it, or (unless `always`) vectors are expected to be faster.
int64_t amx_weight_gradient_scratch(const CaffetoolsConv& s, bool always);

// dw (oc, kh, kw, c / groups) from x and dy, whose pixels are s.x_pitch and s.y_pitch floats apart.
void amx_weight_gradient(const CaffetoolsConv& s, const float* x, const float* dy, float* dw, float* scratch, int threads);

}  // namespace caffetools
