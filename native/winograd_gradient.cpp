// The gradient of the weights of 3 x 3 convolutions by Winograd's algorithm, and how the work is divided among threads.
//
// Inputs and gradients of outputs are transformed into panels of 32 channels for as many tiles as caches hold; for each of the 36 positions
// their products are added up over the tiles. The sums are transformed to the nine weights once, at the end.
#include "winograd_gradient.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv.h"
#include "export.h"
#include "pool.h"
#include "variants.h"

using namespace caffetools;

// What Python says of it; the fields are in the order of the ctypes structure in caffetools/layers/winograd.py.
struct CaffetoolsWinogradGradient {
  int64_t n, c, h, w, oc, oh, ow, pad;  // x is (n, h, w, c), dy (n, oh, ow, oc), both dense
};

namespace {

constexpr int kM = 4, kPoints = 36;
// Tiles worked on at once: their panels for one position stay in the second-level cache, and those of all positions in the third.
constexpr int64_t kMostTiles = 128, kChunkFloats = 2 * 1024 * 1024;

class Gradient {
 public:
  explicit Gradient(const CaffetoolsWinogradGradient& sizes)
      : s(sizes), across((s.ow + kM - 1) / kM), down((s.oh + kM - 1) / kM), tiles(s.n * down * across) {
    in_panels = (s.c + kGradientPanel - 1) / kGradientPanel;
    out_panels = (s.oc + kGradientPanel - 1) / kGradientPanel;
    const int64_t each = kPoints * (in_panels + out_panels) * kGradientPanel;
    chunk = std::min(tiles, std::max<int64_t>(16, std::min(kMostTiles, kChunkFloats / each)));
    // A distance that is no multiple of a page, or the positions of a tile would compete for the same lines of the caches.
    stride = (in_panels + out_panels) * chunk * kGradientPanel + 16;
  }

  int64_t floats() const { return kPoints * (stride + s.oc * s.c); }

  void run(const float* x, const float* dy, float* dw, float* scratch, int threads) const {
    float* const sums = scratch + kPoints * stride;
    const WinogradGradientKernel& kernel = CAFFETOOLS_IN_USE(winograd_gradient_kernel);
    // The rest of a last panel is multiplied too, for sums that nobody reads.
    if (s.c % kGradientPanel != 0 || s.oc % kGradientPanel != 0) std::memset(scratch, 0, static_cast<size_t>(kPoints * stride) * sizeof(float));
    for (int64_t first = 0; first < tiles; first += chunk) {
      const int64_t count = std::min(chunk, tiles - first);
      parallel_for(threads, count, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) transform(x, dy, first + tile, scratch + tile * kGradientPanel);
      });
      parallel_for(threads, kPoints * out_panels, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t point = task / out_panels, output = task % out_panels * kGradientPanel;
          const float* panels = scratch + point * stride;
          const float* outputs = panels + (in_panels + task % out_panels) * chunk * kGradientPanel;
          for (int64_t panel = 0; panel < in_panels; ++panel)
            kernel.accumulate(outputs, panels + panel * chunk * kGradientPanel, count, std::min(kGradientPanel, s.oc - output),
                              std::min(kGradientPanel, s.c - panel * kGradientPanel),
                              sums + (point * s.oc + output) * s.c + panel * kGradientPanel, s.c, first == 0);
        }
      });
    }
    parallel_for(threads, s.oc, [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output)
        kernel.weights_out(sums + output * s.c, s.oc * s.c, s.c, dw + output * 9 * s.c, s.c);
    });
  }

 private:
  // One tile of inputs and of gradients of outputs, to its row of each panel.
  void transform(const float* x, const float* dy, int64_t tile, float* to) const {
    const ConvKernel& kernel = CAFFETOOLS_IN_USE(conv_kernel);
    const int64_t image = tile / (down * across), y = tile / across % down * kM, column = tile % across * kM;
    const float* inputs = x + image * s.h * s.w * s.c;
    const float* outputs = dy + image * s.oh * s.ow * s.oc;
    for (int64_t c = 0; c < s.c; c += kGradientPanel, to += chunk * kGradientPanel)
      kernel.tile_in(kM, inputs + c, s.h, s.w, s.c, y - s.pad, column - s.pad, std::min(kGradientPanel, s.c - c), to, stride);
    for (int64_t c = 0; c < s.oc; c += kGradientPanel, to += chunk * kGradientPanel)
      kernel.tile_grad(kM, outputs + c, s.oh, s.ow, s.oc, y, column, std::min(kGradientPanel, s.oc - c), to, stride);
  }

  const CaffetoolsWinogradGradient& s;
  int64_t across, down, tiles, in_panels, out_panels, chunk, stride;
};

}  // namespace

// Floats of scratch that the gradient needs.
CAFFETOOLS_API int64_t caffetools_winograd_gradient_scratch(const CaffetoolsWinogradGradient* sizes) { return Gradient(*sizes).floats(); }

// dw (oc, 3, 3, c) = the gradient of the weights, from the input x and the gradient dy of the output.
CAFFETOOLS_API void caffetools_winograd_gradient(const CaffetoolsWinogradGradient* sizes, const float* x, const float* dy, float* dw,
                                                 float* scratch, int threads) {
  Gradient(*sizes).run(x, dy, dw, scratch, threads);
}
