// The arithmetic of inner products with few rows. CMake compiles this file once for each instruction set, as the kernel that
// CAFFETOOLS_PRODUCT_KERNEL names.
//
// With one image the time is that of reading the weights. Several rows of them are read at once: each is a stream of its own to the
// processor's prefetcher, which brings them at the memory's full rate (one row after the other: at two thirds of it).
#include "product.h"

#include "epilogue.h"
#include "vec.h"

namespace {

using caffetools::ProductKernel;

constexpr int kStreams = 8;
// Images that share the loads of a few rows of weights, and those rows: as many sums as registers hold.
constexpr int kImages = kWidth == 16 ? 4 : 2;
constexpr int kSharedRows = 4;

inline float sum_of(Vec v) {
  float part[kWidth];
  vstore(part, v);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

// R rows of weights by I images.
template <int R, int I>
void block(const float* x, int64_t x_pitch, int64_t k, const float* weights, float* y, int64_t y_pitch) {
  Vec sums[R][I];
  for (auto& row : sums)
    for (Vec& sum : row) sum = vset(0.0f);
  const auto step = [&](int64_t at, auto load) {
    Vec values[I];
    for (int i = 0; i < I; ++i) values[i] = load(x + i * x_pitch + at);
    for (int r = 0; r < R; ++r) {
      const Vec weight = load(weights + r * k + at);
      for (int i = 0; i < I; ++i) sums[r][i] = vfma(values[i], weight, sums[r][i]);
    }
  };
  int64_t at = 0;
  for (; at + kWidth <= k; at += kWidth) step(at, [](const float* p) { return vload(p); });
  if (at < k) step(at, [left = static_cast<int>(k - at)](const float* p) { return vload(p, left); });
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < I; ++i) y[i * y_pitch + r] = sum_of(sums[r][i]);
}

using Block = void (*)(const float*, int64_t, int64_t, const float*, float*, int64_t);
constexpr Block kShared[] = {block<kSharedRows, 1>, block<kSharedRows, 2>, block<kSharedRows, 3>, block<kSharedRows, 4>};
constexpr Block kSingle[] = {block<1, 1>, block<1, 2>, block<1, 3>, block<1, 4>};

void run(int64_t images, const float* x, int64_t x_pitch, int64_t k, const float* weights, int64_t rows, float* y, int64_t y_pitch,
         const Epilogue& epilogue) {
  const int streams = images == 1 ? kStreams : kSharedRows;
  for (int64_t row = 0; row < rows;) {
    const int64_t taken = row + streams <= rows ? streams : 1;
    for (int64_t image = 0; image < images; image += kImages) {
      const int64_t together = image + kImages <= images ? kImages : images - image;
      const Block compute = images == 1 && taken > 1 ? block<kStreams, 1> : (taken > 1 ? kShared : kSingle)[together - 1];
      compute(x + image * x_pitch, x_pitch, k, weights + row * k, y + image * y_pitch + row, y_pitch);
    }
    row += taken;
  }
  for (int64_t image = 0; image < images; ++image)
    for (int64_t row = 0; row < rows; row += kWidth) {
      float* at = y + image * y_pitch + row;
      vstore_part(at, finish(vload_part(at, rows - row), epilogue, row, rows - row, nullptr), rows - row);
    }
}

// Adds R rows of weights times their gradients.
template <int R>
void add_rows(int64_t images, const float* dy, int64_t dy_pitch, const float* weights, int64_t k, int64_t columns, float* dx, bool first) {
  for (int64_t j = 0; j < columns; j += kWidth) {
    const int64_t left = columns - j;
    Vec rows[R];
    for (int r = 0; r < R; ++r) rows[r] = vload_part(weights + r * k + j, left);
    for (int64_t image = 0; image < images; ++image) {
      float* at = dx + image * k + j;
      Vec sum = first ? vset(0.0f) : vload_part(at, left);
      for (int r = 0; r < R; ++r) sum = vfma(vset(dy[image * dy_pitch + r]), rows[r], sum);
      vstore_part(at, sum, left);
    }
  }
}

void input_gradient(int64_t images, const float* dy, const float* weights, int64_t rows, int64_t k, int64_t columns, float* dx) {
  int64_t row = 0;
  for (; row + kStreams <= rows; row += kStreams) add_rows<kStreams>(images, dy + row, rows, weights + row * k, k, columns, dx, row == 0);
  for (; row < rows; ++row) add_rows<1>(images, dy + row, rows, weights + row * k, k, columns, dx, row == 0);
}

// R rows of weights' gradients, by V vectors at a time.
template <int R, int V>
void weight_rows(int64_t images, const float* dy, int64_t dy_pitch, const float* x, int64_t k, int64_t columns, float* dw) {
  for (int64_t j = 0; j < columns; j += V * kWidth) {
    Vec sums[R][V];
    for (auto& row : sums)
      for (Vec& sum : row) sum = vset(0.0f);
    for (int64_t image = 0; image < images; ++image) {
      Vec values[V];
      for (int v = 0; v < V; ++v) values[v] = vload_part(x + image * k + j + v * kWidth, columns - j - v * kWidth);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] = vfma(vset(dy[image * dy_pitch + r]), values[v], sums[r][v]);
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) vstore_part(dw + r * k + j + v * kWidth, sums[r][v], columns - j - v * kWidth);
  }
}

template <int R>
void weight_rows_of(int64_t images, const float* dy, int64_t dy_pitch, const float* x, int64_t k, int64_t columns, float* dw) {
  const int64_t whole = columns / (2 * kWidth) * 2 * kWidth;
  weight_rows<R, 2>(images, dy, dy_pitch, x, k, whole, dw);
  weight_rows<R, 1>(images, dy, dy_pitch, x + whole, k, columns - whole, dw + whole);
}

void weight_gradient(int64_t images, const float* dy, int64_t dy_pitch, const float* x, int64_t count, int64_t k, int64_t columns, float* dw) {
  int64_t row = 0;
  for (; row + kSharedRows <= count; row += kSharedRows)
    weight_rows_of<kSharedRows>(images, dy + row, dy_pitch, x, k, columns, dw + row * k);
  for (; row < count; ++row) weight_rows_of<1>(images, dy + row, dy_pitch, x, k, columns, dw + row * k);
}

}  // namespace

namespace caffetools {

extern const ProductKernel CAFFETOOLS_PRODUCT_KERNEL{kStreams, run, input_gradient, weight_gradient};

}  // namespace caffetools
