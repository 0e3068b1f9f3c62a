// The arithmetic of the gradient of weights by Winograd's algorithm. CMake compiles this file once for each instruction set, as the kernel
// that CAFFETOOLS_WINOGRAD_GRADIENT_KERNEL names.
#include "winograd_gradient.h"

#include "vec.h"

namespace {

using caffetools::kGradientPanel;
using caffetools::WinogradGradientKernel;

// Outputs by vectors of inputs whose sums are in registers.
constexpr int kOutputs = kWidth == 16 ? 8 : 4, kVectors = 2;

// No inline function of C++'s headers: the linker may take one version's for another's.
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The sums of kOutputs outputs by kV vectors of inputs over all tiles: both factors are read as they lie, a row of outputs and inputs a tile.
template <int kV>
void block(const float* dy, const float* x, int64_t count, int64_t rows, int64_t columns, float* to, int64_t pitch, bool first) {
  Vec acc[kOutputs][kV];
#pragma GCC unroll 8
  for (int m = 0; m < kOutputs; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) acc[m][v] = vset(0.0f);
  for (int64_t k = 0; k < count; ++k, dy += kGradientPanel, x += kGradientPanel) {
    Vec inputs[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) inputs[v] = vload(x + v * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < kOutputs; ++m) {
      const Vec output = vset(dy[m]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) acc[m][v] = vfma(output, inputs[v], acc[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kOutputs; ++m) {
    if (m >= rows) continue;
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      const int64_t left = columns - v * kWidth;
      float* at = to + m * pitch + v * kWidth;
      vstore_part(at, first ? acc[m][v] : vadd(acc[m][v], vload_part(at, left)), left);
    }
  }
}

void accumulate(const float* dy, const float* x, int64_t count, int64_t rows, int64_t columns, float* to, int64_t pitch, bool first) {
  for (int64_t column = 0; column < columns; column += kVectors * kWidth) {
    const int64_t left = least(columns - column, kVectors * kWidth);
    const auto compute = left > kWidth ? block<kVectors> : block<1>;
    for (int64_t row = 0; row < rows; row += kOutputs)
      compute(dy + row, x + column, count, least(kOutputs, rows - row), left, to + row * pitch + column, pitch, first);
  }
}

// The transpose of the kernels' transform with points 0, +-1/sqrt(2), +-sqrt(2) and infinity (conv_kernel.cpp).
inline void weights_of(const Vec* u, Vec* w) {
  const Vec third = vset(1.0f / 3), sixth = vset(1.0f / 6), root_third = vset(1.41421356237309505f / 3), root_sixth = vset(1.41421356237309505f / 6);
  const Vec near = vadd(u[1], u[2]), far = vadd(u[3], u[4]);
  w[0] = vadd(u[0], vsub(vmul(sixth, far), vmul(vset(2.0f / 3), near)));
  w[1] = vfma(root_third, vsub(u[2], u[1]), vmul(root_sixth, vsub(u[3], u[4])));
  w[2] = vadd(u[5], vmul(third, vsub(far, near)));
}

void weights_out(const float* from, int64_t stride, int64_t inputs, float* to, int64_t pitch) {
  constexpr int kSide = 6;
  for (int64_t i = 0; i < inputs; i += kWidth) {
    const int64_t left = inputs - i;
    Vec half[kSide][3];
#pragma GCC unroll 6
    for (int row = 0; row < kSide; ++row) {
      Vec u[kSide];
#pragma GCC unroll 6
      for (int column = 0; column < kSide; ++column) u[column] = vload_part(from + (row * kSide + column) * stride + i, left);
      weights_of(u, half[row]);
    }
#pragma GCC unroll 3
    for (int column = 0; column < 3; ++column) {
      Vec u[kSide], w[3];
#pragma GCC unroll 6
      for (int row = 0; row < kSide; ++row) u[row] = half[row][column];
      weights_of(u, w);
#pragma GCC unroll 3
      for (int row = 0; row < 3; ++row) vstore_part(to + (row * 3 + column) * pitch + i, w[row], left);
    }
  }
}

}  // namespace

namespace caffetools {

extern const WinogradGradientKernel CAFFETOOLS_WINOGRAD_GRADIENT_KERNEL{accumulate, weights_out};

}  // namespace caffetools
