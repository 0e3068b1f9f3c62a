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

}  // namespace

namespace caffetools {

extern const ProductKernel CAFFETOOLS_PRODUCT_KERNEL{kStreams, run};

}  // namespace caffetools
