// The C interface of the native convolution and pooling, and how the work is divided among threads.
//
// A convolution is made once for its weights and sizes and run any number of times. Two algorithms: sums over the window taken where
// it lies (over a copy with a border of zeros where the layer pads), and Winograd's for 3 x 3 windows of stride 1.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "amx.h"
#include "conv.h"
#include "export.h"
#include "lrn.h"
#include "pool.h"
#include "variants.h"
#include "weight_gradient.h"

using namespace caffetools;

namespace {

constexpr int64_t kBundleFloats = 64 * 1024, kSmallFloats = 256 * 1024;

// Floats of transformed tiles that are worked on at once, for 2 x 2 and 4 x 4 outputs: what was fastest with 2 MB of second-level cache.
int64_t winograd_floats(int m) { return m == 2 ? 256 * 1024 : 512 * 1024; }

struct Conv {
  CaffetoolsConv s;
  const ConvKernel* kernel;
  bool depthwise = false;
  int winograd = 0;  // outputs of a tile's side; 0: not Winograd's
  bool amx = false;   // by the matrix unit
  bool copies = false;
  bool flat = false;  // a 1 x 1 kernel of stride 1 without padding
  bool planes = false;  // a planar input is read plane by plane, not put into channels-last order before
  // Of the (copied) input: pixels of a row and column, floats from pixel to pixel, from image to image and from group to group.
  int64_t hp, wp, pitch, image, group_step;
  std::vector<int64_t> offsets;
  int64_t run = 0, group_in, group_out, panel, panels;
  // Of all groups: [group][panel][k][panel width], k in the order kh, kw, c, of planes c, kh, kw; depthwise: [kh][kw][c]; Winograd:
  // [position][panel][c][panel width]. Convolutions of
  // one layer over pictures of other sizes share them.
  std::shared_ptr<float> weights;  // AMX: as amx_pack has them
  std::unique_ptr<float[]> bias, slopes;

  Epilogue epilogue(int64_t channel) const {
    return {bias ? bias.get() + channel : nullptr, slopes ? slopes.get() + channel : nullptr, s.activation, s.low, s.high};
  }
  int64_t k() const { return s.kh * s.kw * group_in; }
  int64_t positions() const { return (winograd + 2) * (winograd + 2); }
  int64_t tiles_down() const { return (s.oh + winograd - 1) / winograd; }
  int64_t tiles_across() const { return (s.ow + winograd - 1) / winograd; }
  int64_t tiles() const { return s.n * tiles_down() * tiles_across(); }
  // Tiles worked on at once: as many as fit, in whole blocks of rows.
  int64_t chunk() const {
    const int64_t most = std::max<int64_t>(kernel->rows, winograd_floats(winograd) / (positions() * (s.c + s.oc)));
    return std::min(tiles(), most);
  }
};

// On a cache line of its own. Not by aligned_alloc, which splits the block that it finds, so that no freed one fits the next of its size.
std::shared_ptr<float> aligned_floats(int64_t count) {
  constexpr size_t kLine = 64;
  size_t space = std::max<size_t>(static_cast<size_t>(count) * sizeof(float), kLine) + kLine;
  std::shared_ptr<void> owner(std::malloc(space), std::free);
  void* first = owner.get();
  if (first == nullptr) throw std::bad_alloc();
  return {owner, static_cast<float*>(std::align(kLine, space - kLine, first, space))};
}

// The time of each algorithm in multiply-adds of one thread: the products, the transforms of tiles, and bringing the weights from
// memory once a chunk. The constants were fitted to measured times (benchmarks/inference.py).
constexpr double kWeightCost = 30, kTileInCost = 24, kTileOutCost = 20;

double winograd_cost(const CaffetoolsConv& s, int m) {
  const double tiles = static_cast<double>(s.n) * static_cast<double>((s.oh + m - 1) / m * ((s.ow + m - 1) / m)), points = (m + 2) * (m + 2);
  const double c = static_cast<double>(s.c), oc = static_cast<double>(s.oc), floats = static_cast<double>(winograd_floats(m));
  const double chunks = std::max(1.0, std::ceil(tiles * points * (c + oc) / floats));
  return tiles * points * (c * oc + kTileInCost * c + kTileOutCost * oc) + kWeightCost * chunks * points * c * oc;
}

double direct_cost(const CaffetoolsConv& s) {
  const int64_t out = s.oc / s.groups, in = s.c / s.groups;
  // Half of a panel takes three quarters of its time.
  const int64_t columns = out / 32 * 32 + (out % 32 == 0 ? 0 : out % 32 <= 16 ? 24 : 32);
  const double weights = static_cast<double>(s.groups * columns * in * s.kh * s.kw);
  return weights * (static_cast<double>(s.n * s.oh * s.ow) + kWeightCost);
}

// Of the matrix unit: a product, the conversion of an input, an output, and bringing the weights' pieces from memory.
constexpr double kAmxProductCost = 0.51, kAmxInputCost = 26, kAmxOutputCost = 6, kAmxWeightCost = 40;

double amx_cost(const CaffetoolsConv& s) {
  const AmxGrid grid(s);
  const double places = static_cast<double>((grid.places(grid.n) + kBlock / 2 - 1) / (kBlock / 2) * (kBlock / 2));
  const double inputs = static_cast<double>(grid.groups * grid.steps() * kStep);
  const double columns = static_cast<double>((grid.out() + kTile - 1) / kTile * kTile), taps = static_cast<double>(grid.taps());
  return inputs * (columns * taps * (kAmxProductCost * places + kAmxWeightCost) + kAmxInputCost * places) +
         kAmxOutputCost * places * static_cast<double>(s.oc);
}

// The tile's side of Winograd's algorithm, 8 for the matrix unit, 0 for sums over windows by vectors.
int choose_algorithm(const CaffetoolsConv& s) {
  const bool fits = s.kh == 3 && s.kw == 3 && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1 && s.groups == 1 && !s.planar_input;
  const bool amx = (s.algorithm == 0 || s.algorithm == 8) && amx_takes(s);
  if (s.algorithm == 1) return 0;
  if (s.algorithm != 0) return s.algorithm == 8 ? (amx ? 8 : 0) : (fits ? s.algorithm : 0);
  int best = 0;
  double least = direct_cost(s);
  const auto offer = [&](int algorithm, double cost) {
    if (cost < least) best = algorithm, least = cost;
  };
  if (fits) offer(2, winograd_cost(s, 2));
  if (fits) offer(4, winograd_cost(s, 4));
  if (amx) offer(8, amx_cost(s));
  return best;
}

// The panels of each group's matrix; zeros after the last channel.
void pack_direct(const Conv& conv, const float* weights, const WeightSteps& steps, int threads) {
  const CaffetoolsConv& s = conv.s;
  const int64_t taps = s.kh * s.kw, panel = conv.panel;
  parallel_for(threads, s.groups * conv.panels * taps, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tap = task % taps, group = task / taps / conv.panels, first = task / taps % conv.panels * panel;
      const int64_t count = std::min(panel, conv.group_out - first);
      const float* from = weights + group * steps.group + first * steps.output + tap / s.kw * steps.row + tap % s.kw * steps.column;
      float* to = conv.weights.get() + (conv.planes ? (task - tap) * conv.group_in + tap : task * conv.group_in) * panel;
      for (int64_t i = 0; i < conv.group_in; ++i, from += steps.input, to += conv.planes ? taps * panel : panel) {
        for (int64_t j = 0; j < count; ++j) to[j] = from[j * steps.output];
        std::fill(to + count, to + panel, 0.0f);
      }
    }
  });
}

// The kernels in Winograd's domain.
void pack_winograd(const Conv& conv, const float* weights, const WeightSteps& steps, int threads) {
  const int64_t c = conv.s.c, oc = conv.s.oc, each = conv.panels * conv.panel * c;
  parallel_for(threads, conv.panels * c, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / c, channel = task % c, first = panel * conv.panel;
      conv.kernel->kernels_in(conv.winograd, weights + first * steps.output + channel * steps.input, steps, std::min(conv.panel, oc - first),
                              conv.weights.get() + task * conv.panel, each);
    }
  });
}

void pack_weights(Conv& conv, const float* weights, const WeightSteps& steps, int threads) {
  const CaffetoolsConv& s = conv.s;
  if (conv.amx) {
    amx_pack(AmxGrid(s), weights, steps, reinterpret_cast<uint16_t*>(conv.weights.get()), threads);
  } else if (conv.depthwise) {
    for (int64_t i = 0; i < s.kh * s.kw; ++i)
      for (int64_t c = 0; c < s.c; ++c)
        conv.weights.get()[i * s.c + c] = weights[c * steps.group + i / s.kw * steps.row + i % s.kw * steps.column];
  } else if (conv.winograd) {
    pack_winograd(conv, weights, steps, threads);
  } else {
    pack_direct(conv, weights, steps, threads);
  }
}

// Planes of an input that are read where they lie.
constexpr int64_t kMostPlanes = 4;

// The stretches of memory under one window.
void plan_runs(Conv& conv) {
  const CaffetoolsConv& s = conv.s;
  if (conv.planes) {
    conv.run = s.kw;
    for (int64_t c = 0; c < conv.group_in; ++c)
      for (int64_t y = 0; y < s.kh; ++y) conv.offsets.push_back((c * conv.hp + y * s.dh) * conv.wp);
    return;
  }
  const bool merged = s.groups == 1 && s.dw == 1 && conv.pitch == s.c;  // a row of the kernel is one stretch of memory
  conv.run = merged ? s.kw * s.c : conv.group_in;
  for (int64_t y = 0; y < s.kh; ++y)
    for (int64_t x = 0; x < (merged ? 1 : s.kw); ++x) conv.offsets.push_back((y * s.dh * conv.wp + x * s.dw) * conv.pitch);
}

// The sizes and layouts that follow from what was asked for; the weights are not packed yet.
void plan(Conv& conv) {
  const CaffetoolsConv& s = conv.s;
  conv.group_in = s.c / s.groups;
  conv.group_out = s.oc / s.groups;
  conv.depthwise = s.groups > 1 && conv.group_in == 1 && conv.group_out == 1 && !s.planar_input;
  const int algorithm = conv.depthwise ? 0 : choose_algorithm(s);
  conv.amx = algorithm == 8;
  conv.winograd = conv.amx ? 0 : algorithm;
  conv.panel = 2 * conv.kernel->width;
  conv.panels = (conv.group_out + conv.panel - 1) / conv.panel;
  // Of many planes each has too few products in a row of the kernel.
  conv.planes = s.planar_input && !conv.amx && s.kw >= 3 && s.dw == 1 && s.c <= kMostPlanes;
  conv.copies = !conv.depthwise && !conv.winograd && ((s.planar_input && !conv.planes) || s.ph > 0 || s.pw > 0);
  // Stride and kernel may also read beyond the picture's end where sizes round up.
  conv.hp = std::max((s.oh - 1) * s.sh + (s.kh - 1) * s.dh + 1, s.h + s.ph);
  conv.wp = std::max((s.ow - 1) * s.sw + (s.kw - 1) * s.dw + 1, s.w + s.pw);
  if (!conv.copies && !conv.depthwise && !conv.winograd && (conv.hp > s.h || conv.wp > s.w)) conv.copies = true;
  if (!conv.copies) conv.hp = s.h, conv.wp = s.w;
  conv.pitch = conv.planes ? 1 : conv.copies ? s.c : s.x_pitch;
  conv.image = conv.hp * conv.wp * (conv.planes ? s.c : conv.pitch);
  conv.group_step = conv.planes ? conv.group_in * conv.hp * conv.wp : conv.group_in;
  conv.flat = !conv.copies && s.kh == 1 && s.kw == 1 && s.sh == 1 && s.sw == 1;
  plan_runs(conv);
}

int64_t weight_floats(const Conv& conv) {
  if (conv.amx) return AmxGrid(conv.s).halves() / 2;
  if (conv.depthwise) return conv.s.kh * conv.s.kw * conv.s.c;
  if (conv.winograd) return conv.positions() * conv.panels * conv.panel * conv.s.c;
  return conv.s.groups * conv.panels * conv.panel * conv.k();
}

// A row of `count` pixels from planes that are `plane` floats apart to channels last.
void interleave(const float* from, int64_t plane, int64_t channels, int64_t count, float* to) {
  if (channels == 3) {
    const float *red = from, *green = from + plane, *blue = from + 2 * plane;
    for (int64_t i = 0; i < count; ++i) to[3 * i] = red[i], to[3 * i + 1] = green[i], to[3 * i + 2] = blue[i];
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < count; ++i) to[i * channels + c] = from[c * plane + i];
}

// A planar input with a border of zeros.
void pad_planes(const Conv& conv, const float* x, float* to, int threads) {
  const CaffetoolsConv& s = conv.s;
  parallel_for(threads, s.n * s.c * conv.hp, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t plane = row / conv.hp, y = row % conv.hp - s.ph;
      float* at = to + row * conv.wp;
      std::memset(at, 0, static_cast<size_t>(conv.wp) * sizeof(float));
      if (y >= 0 && y < s.h) std::memcpy(at + s.pw, x + (plane * s.h + y) * s.w, static_cast<size_t>(s.w) * sizeof(float));
    }
  });
}

// Of the input with its border.
int64_t padded_floats(const Conv& conv) { return conv.s.n * conv.hp * conv.wp * conv.s.c; }

// The input with a border of zeros, channels last.
void copy_padded(const Conv& conv, const float* x, float* to, int threads) {
  const CaffetoolsConv& s = conv.s;
  const int64_t row_floats = conv.wp * s.c;
  parallel_for(threads, s.n * conv.hp, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / conv.hp, y = row % conv.hp - s.ph;
    float* at = to + row * row_floats;
    if (y < 0 || y >= s.h) {
      std::memset(at, 0, static_cast<size_t>(row_floats) * sizeof(float));
      continue;
    }
    std::memset(at, 0, static_cast<size_t>(s.pw * s.c) * sizeof(float));
    float* inside = at + s.pw * s.c;
    if (s.planar_input) {
      interleave(x + image * s.c * s.h * s.w + y * s.w, s.h * s.w, s.c, s.w, inside);
    } else {
      const float* from = x + (image * s.h + y) * s.w * s.x_pitch;
      if (s.x_pitch == s.c) {
        std::memcpy(inside, from, static_cast<size_t>(s.w * s.c) * sizeof(float));
      } else {
        for (int64_t i = 0; i < s.w; ++i)
          std::memcpy(inside + i * s.c, from + i * s.x_pitch, static_cast<size_t>(s.c) * sizeof(float));
      }
    }
    float* after = inside + s.w * s.c;
    std::memset(after, 0, static_cast<size_t>(at + row_floats - after) * sizeof(float));
  }
  });
}

// One of several blocks of rows that meet the same panel of weights one after the other, on one thread.
struct Turn {
  int64_t block, blocks;
};

// More blocks than these hide the time that the memory takes for a panel.
constexpr int64_t kAheadBlocks = 16;

// Sums over a panel of `floats` weights at `weights`, which bring a part of the next panel into the cache.
Sums sums_of(const int64_t* offsets, int64_t runs, int64_t run, const float* weights, int64_t floats, const Turn& turn) {
  if (turn.blocks > kAheadBlocks) return {offsets, runs, run, weights, 0};
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float)), part = (bytes + turn.blocks - 1) / turn.blocks;
  return {offsets, runs, run, reinterpret_cast<const char*>(weights + floats) + turn.block * part, (part + runs * run - 1) / (runs * run)};
}

// Rows of an input's pixels that follow each other with one distance are multiplied in one call where a row of outputs has so many.
constexpr int64_t kLongRow = 24;

// Rows [first, first + count) of the outputs' pixels times one panel.
void multiply_pixels(const Conv& conv, const float* x, float* y, const float* residual, int64_t group, int64_t panel, int64_t first,
                     int64_t count, const Turn& turn) {
  const CaffetoolsConv& s = conv.s;
  const int64_t channel = group * conv.group_out + panel * conv.panel, channels = std::min(conv.panel, conv.group_out - panel * conv.panel);
  const float* weights = conv.weights.get() + (group * conv.panels + panel) * conv.panel * conv.k();
  const Sums sums = sums_of(conv.offsets.data(), static_cast<int64_t>(conv.offsets.size()), conv.run, weights, conv.panel * conv.k(), turn);
  const Epilogue epilogue = conv.epilogue(channel);
  const Results all{y + channel, s.y_pitch, residual != nullptr ? residual + channel : nullptr, s.residual_pitch};
  x += group * conv.group_step;
  if (conv.flat) {
    // One pixel of the input for each of the output.
    conv.kernel->multiply_even(count, x + first * conv.pitch, conv.pitch, sums, weights, channels, all.from(first), epilogue);
    return;
  }
  const int64_t down = conv.wp * conv.pitch, step = s.sw * conv.pitch, end = first + count;
  int64_t ox = first % s.ow, oy = first / s.ow % s.oh, image = first / (s.ow * s.oh);
  const auto next_row = [&] {
    ox = 0;
    if (++oy == s.oh) oy = 0, ++image;
  };
  if (s.ow >= kLongRow) {
    for (int64_t rows; first < end; first += rows, next_row()) {
      rows = std::min(end - first, s.ow - ox);
      const float* from = x + image * conv.image + oy * s.sh * down + ox * step;
      conv.kernel->multiply_even(rows, from, step, sums, weights, channels, all.from(first), epilogue);
    }
    return;
  }
  const float* a[16];
  for (int64_t rows; first < end; first += rows) {
    rows = std::min(end - first, conv.kernel->rows);
    for (int64_t m = 0; m < rows; ++m) {
      a[m] = x + image * conv.image + oy * s.sh * down + ox * step;
      if (++ox == s.ow) next_row();
    }
    conv.kernel->multiply(rows, a, sums, weights, channels, all.from(first), epilogue);
  }
}

// Floats of the inputs of blocks that meet one panel after the other: a part of the first-level cache.
constexpr int64_t kNearFloats = 4 * 1024;

void run_direct(const Conv& conv, const float* x, float* y, const float* residual, float* scratch, int threads) {
  const CaffetoolsConv& s = conv.s;
  if (conv.copies) {
    (conv.planes ? pad_planes : copy_padded)(conv, x, scratch, threads);
    x = scratch;
  }
  const int64_t pixels = s.n * s.oh * s.ow, columns = s.groups * conv.panels;
  // The panels are taken in bundles that fit into the second-level cache, where the blocks of pixels that pass by find them. A small
  // input fits there itself: then each panel is brought from memory once and meets all pixels.
  const bool small = s.n * conv.image <= kSmallFloats && conv.panel * conv.k() > kBundleFloats / 8;
  const int64_t bundle = small ? columns : std::max<int64_t>(1, kBundleFloats / (conv.panel * conv.k()));
  const int64_t bundles = (columns + bundle - 1) / bundle;
  // Where k is small, several blocks in one call; but enough calls for all threads.
  const int64_t together = std::max<int64_t>(1, std::min(kNearFloats / (conv.kernel->rows * conv.k()), pixels / (conv.kernel->rows * 8 * threads)));
  const int64_t rows = conv.kernel->rows * together, blocks = (pixels + rows - 1) / rows;
  for (int64_t b = 0; b < bundles; ++b) {
    const int64_t from = b * bundle, to = std::min(columns, from + bundle), count = to - from;
    // With few pixels, threads share the panels among them rather than read each of them in turn.
    const bool panels_outside = small || count * conv.panel > pixels;
    parallel_for(threads, blocks * count, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column = from + (panels_outside ? task / blocks : task % count), block = panels_outside ? task % blocks : task / count;
        const int64_t first = pixels * block / blocks, last = pixels * (block + 1) / blocks;
        const Turn turn{block, small ? blocks : kAheadBlocks + 1};
        multiply_pixels(conv, x, y, residual, column / conv.panels, column % conv.panels, first, last - first, turn);
      }
    });
  }
}

// Floats of new rows that are convolved at once before they are pooled.
constexpr int64_t kBandFloats = 32 * 1024;

// Rows of a pooling's outputs that are computed at once, and the floats of the convolution's rows that they read.
int64_t pooled_rows(const Window& w) { return std::clamp<int64_t>(kBandFloats / (w.sh * w.w * w.x_pitch), 1, w.oh); }
int64_t band_floats(const Window& w) { return std::min(w.h, (pooled_rows(w) - 1) * w.sh + w.kh) * w.w * w.x_pitch; }

// Rows [first, last) of the outputs of a pooling of one image of a convolution, whose rows pass through `rows`.
void pool_band(const Conv& conv, const Window& w, const float* x, int64_t image, int64_t first, int64_t last, bool largest, float* rows,
               float* y) {
  const int64_t floats = w.w * w.x_pitch, columns = conv.s.groups * conv.panels, step = pooled_rows(w);
  int64_t from = 0, to = 0;  // the convolution's rows that are there
  for (int64_t at = first; at < last; at += step) {
    const int64_t stop = std::min(at + step, last), top = std::max<int64_t>(0, at * w.sh - w.ph);
    const int64_t bottom = std::min(w.h, (stop - 1) * w.sh - w.ph + w.kh), kept = std::max<int64_t>(0, to - top);
    if (kept > 0) std::memmove(rows, rows + (top - from) * floats, static_cast<size_t>(kept * floats) * sizeof(float));
    from = top, to = std::max(top + kept, bottom);
    const int64_t pixel = (image * w.h + top + kept) * w.w, pixels = (to - top - kept) * w.w;
    for (int64_t column = 0; column < columns && pixels > 0; ++column)
      multiply_pixels(conv, x, rows + (kept * w.w - pixel) * w.x_pitch, nullptr, column / conv.panels, column % conv.panels, pixel, pixels,
                      {0, kAheadBlocks + 1});
    for (int64_t row = at; row < stop; ++row)
      conv.kernel->pool_row(w, rows - top * floats, row, largest, y + (image * w.oh + row) * w.ow * w.y_pitch);
  }
}

// A pooling of a convolution whose own outputs are not kept: they pass through memory of each thread, which stays in its cache.
void run_pooled(const Conv& conv, const Window& w, const float* x, float* y, bool largest, float* scratch, int threads) {
  if (conv.copies) {
    (conv.planes ? pad_planes : copy_padded)(conv, x, scratch, threads);
    x = scratch;
    scratch += padded_floats(conv);
  }
  // Few bands: where one begins, the rows that it shares with the one before are computed again.
  const int64_t bands = threads == 1 ? 1 : std::min(w.oh, (4 * threads + w.n - 1) / w.n);
  LaneSet lanes(threads);
  parallel_for(threads, w.n * bands, [&](int64_t begin, int64_t end) {
    const Lane lane(lanes);
    float* rows = scratch + lane.number() * band_floats(w);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands, band = task % bands;
      pool_band(conv, w, x, image, w.oh * band / bands, w.oh * (band + 1) / bands, largest, rows, y);
    }
  });
}

Window window_of(const int64_t* sizes) {
  Window w;
  static_assert(sizeof w == 16 * sizeof(int64_t), "Window is sixteen numbers");
  std::memcpy(&w, sizes, sizeof w);
  return w;
}

// The three steps of Winograd's algorithm for tiles [first, first + count). Transformed tiles are [tile][position][channel].
void transform_tiles(const Conv& conv, const float* x, int64_t first, int64_t count, float* to) {
  const CaffetoolsConv& s = conv.s;
  const int64_t m = conv.winograd, across = conv.tiles_across(), down = conv.tiles_down();
  for (int64_t tile = first; tile < first + count; ++tile, to += conv.positions() * s.c) {
    const int64_t image = tile / (across * down), row = tile / across % down, column = tile % across;
    conv.kernel->tile_in(conv.winograd, x + image * s.h * s.w * s.x_pitch, s.h, s.w, s.x_pitch, row * m - s.ph, column * m - s.pw, s.c, to,
                         s.c);
  }
}

// The products for positions and panels [begin, end) of `count` tiles.
void multiply_tiles(const Conv& conv, const float* in, float* out, int64_t count, int64_t begin, int64_t end) {
  const CaffetoolsConv& s = conv.s;
  const int64_t points = conv.positions(), blocks = (count + conv.kernel->rows - 1) / conv.kernel->rows, zero = 0;
  const Epilogue plain{nullptr, nullptr, kNone, 0, 0};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t point = task / conv.panels, panel = task % conv.panels;
    const float* weights = conv.weights.get() + (point * conv.panels + panel) * conv.panel * s.c;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = count * block / blocks, last = count * (block + 1) / blocks;
      const Sums sums = sums_of(&zero, 1, s.c, weights, conv.panel * s.c, {block, blocks});
      const Results to{out + (first * points + point) * s.oc + panel * conv.panel, points * s.oc, nullptr, 0};
      conv.kernel->multiply_even(last - first, in + (first * points + point) * s.c, points * s.c, sums, weights,
                                 std::min(conv.panel, s.oc - panel * conv.panel), to, plain);
    }
  }
}

void finish_tiles(const Conv& conv, const float* from, float* y, const float* residual, int64_t first, int64_t count) {
  const CaffetoolsConv& s = conv.s;
  const int64_t m = conv.winograd, across = conv.tiles_across(), down = conv.tiles_down();
  for (int64_t tile = first; tile < first + count; ++tile, from += conv.positions() * s.oc) {
    const int64_t image = tile / (across * down), row = tile / across % down * m, column = tile % across * m;
    const int64_t pixel = (image * s.oh + row) * s.ow + column;
    conv.kernel->tile_out(conv.winograd, from, s.oc, y + pixel * s.y_pitch,
                          residual != nullptr ? residual + pixel * s.residual_pitch : nullptr, std::min(m, s.oh - row),
                          std::min(m, s.ow - column), s.ow * s.y_pitch, s.ow * s.residual_pitch, s.y_pitch, s.residual_pitch,
                          conv.epilogue(0));
  }
}

// Weights that each thread may read for itself, so that a tile stays in one thread's cache from its first step to the last.
constexpr int64_t kOwnWeights = 192 * 1024;
// Floats of transformed tiles of one part then. A thread's parts lie at one place, which stays in its cache.
constexpr int64_t kPartFloats = 48 * 1024;

void run_winograd(const Conv& conv, const float* x, float* y, const float* residual, float* scratch, int threads) {
  const CaffetoolsConv& s = conv.s;
  const int64_t points = conv.positions(), chunk = conv.chunk(), all = conv.tiles(), columns = points * conv.panels;
  const bool own = columns * conv.panel * s.c <= kOwnWeights;
  for (int64_t start = 0; start < all; start += chunk) {
    const int64_t count = std::min(chunk, all - start);
    if (own) {
      const int64_t least = std::max<int64_t>(1, count * points * (s.c + s.oc) / kPartFloats);
      const int64_t wanted = threads > 1 ? (least + 2 * threads - 1) / (2 * threads) * 2 * threads : least;
      const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(wanted, count / conv.kernel->rows));
      const int64_t lane_floats = (count + parts - 1) / parts * points * (s.c + s.oc);
      LaneSet lanes(static_cast<int>(std::min<int64_t>(threads, parts)));
      parallel_for(threads, parts, [&](int64_t begin, int64_t end) {
        const Lane lane(lanes);
        float* in = scratch + lane.number() * lane_floats;
        for (int64_t part = begin; part < end; ++part) {
          const int64_t first = count * part / parts, tiles = count * (part + 1) / parts - first;
          float* out = in + tiles * points * s.c;
          transform_tiles(conv, x, start + first, tiles, in);
          multiply_tiles(conv, in, out, tiles, 0, columns);
          finish_tiles(conv, out, y, residual, start + first, tiles);
        }
      });
      continue;
    }
    float* in = scratch;
    float* out = scratch + chunk * points * s.c;
    parallel_for(threads, count,
                 [&](int64_t begin, int64_t end) { transform_tiles(conv, x, start + begin, end - begin, in + begin * points * s.c); });
    parallel_for(threads, columns, [&](int64_t begin, int64_t end) { multiply_tiles(conv, in, out, count, begin, end); });
    parallel_for(threads, count, [&](int64_t begin, int64_t end) {
      finish_tiles(conv, out + begin * points * s.oc, y, residual, start + begin, end - begin);
    });
  }
}

void run_depthwise(const Conv& conv, const float* x, float* y, int threads) {
  const CaffetoolsConv& s = conv.s;
  const Window window{s.n, s.c, s.h, s.w, s.oh, s.ow, s.x_pitch, s.y_pitch, s.kh, s.kw, s.sh, s.sw, s.ph, s.pw, s.dh, s.dw};
  // Two rows at a time: they read the same inputs.
  const int64_t pairs = (s.oh + 1) / 2;
  parallel_for(threads, s.n * pairs, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / pairs, row = task % pairs * 2;
      conv.kernel->depthwise_rows(window, x + image * s.h * s.w * s.x_pitch, row, std::min<int64_t>(2, s.oh - row), conv.weights.get(),
                                  y + (image * s.oh + row) * s.ow * s.y_pitch, conv.epilogue(0));
    }
  });
}

}  // namespace

// The algorithm that a convolution would get: 0 sums over windows, 2 or 4 Winograd's, 8 the matrix unit.
CAFFETOOLS_API int caffetools_conv_choice(const CaffetoolsConv* shape) { return choose_algorithm(*shape); }

// Make a convolution; null where there is no memory. `weights` are those of the first output, input, row and column, the others at
// `steps` from there; `bias` and `slopes` (oc) or null; all are copied. `like` is null or a convolution with the same weights over another
// size, with which packed weights are shared where the algorithm is the same; else `threads` threads pack them. Sizes are checked by the caller.
CAFFETOOLS_API void* caffetools_conv_create_from(const CaffetoolsConv* shape, const float* weights, const WeightSteps* steps,
                                                 const float* bias, const float* slopes, const void* like, int threads) {
  try {
    auto conv = std::make_unique<Conv>();
    conv->s = *shape;
    conv->kernel = &CAFFETOOLS_IN_USE(conv_kernel);
    plan(*conv);
    const auto copied = [&](const float* from) {
      std::unique_ptr<float[]> to;
      if (from != nullptr) {
        to.reset(new float[static_cast<size_t>(shape->oc)]);
        std::copy(from, from + shape->oc, to.get());
      }
      return to;
    };
    conv->bias = copied(bias);
    conv->slopes = copied(slopes);
    const Conv* other = static_cast<const Conv*>(like);
    if (other != nullptr && other->kernel == conv->kernel && other->winograd == conv->winograd && other->amx == conv->amx &&
        other->depthwise == conv->depthwise && other->planes == conv->planes) {
      conv->weights = other->weights;
    } else {
      conv->weights = aligned_floats(weight_floats(*conv));
      pack_weights(*conv, weights, *steps, threads);
    }
    return conv.release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

CAFFETOOLS_API void caffetools_conv_destroy(void* handle) { delete static_cast<Conv*>(handle); }

// Floats of scratch that one run needs.
CAFFETOOLS_API int64_t caffetools_conv_scratch(const void* handle) {
  const Conv& conv = *static_cast<const Conv*>(handle);
  if (conv.amx) return amx_scratch(AmxGrid(conv.s));
  // The parts of several threads are rounded up to whole tiles.
  if (conv.winograd) return (conv.chunk() + conv.chunk() / conv.kernel->rows) * conv.positions() * (conv.s.c + conv.s.oc);
  return conv.copies ? padded_floats(conv) : 0;
}

// 0: sums over windows; 1: depthwise; 2, 4: Winograd's of that many outputs; 8: the matrix unit.
CAFFETOOLS_API int caffetools_conv_algorithm(const void* handle) {
  const Conv& conv = *static_cast<const Conv*>(handle);
  return conv.amx ? 8 : conv.depthwise ? 1 : conv.winograd;
}

// y = activation(conv(x) + bias + residual); residual may be null. A handle may be run by several threads at once, each with a scratch
// of its own.
CAFFETOOLS_API void caffetools_conv_run(const void* handle, const float* x, float* y, const float* residual, float* scratch, int threads) {
  const Conv& conv = *static_cast<const Conv*>(handle);
  if (conv.amx)
    amx_run(conv.s, reinterpret_cast<const uint16_t*>(conv.weights.get()), x, y, residual, conv.epilogue(0), scratch, threads);
  else if (conv.depthwise)
    run_depthwise(conv, x, y, threads);
  else if (conv.winograd)
    run_winograd(conv, x, y, residual, scratch, threads);
  else
    run_direct(conv, x, y, residual, scratch, threads);
}

// The convolution followed by a pooling of its outputs; `sizes` are those of caffetools_pool_run. The convolution sums over windows
// (algorithm 1), and its outputs' channels follow each other. Floats of scratch that one run needs:
CAFFETOOLS_API int64_t caffetools_conv_pool_scratch(const void* handle, const int64_t* sizes, int threads) {
  return caffetools_conv_scratch(handle) + threads * band_floats(window_of(sizes));
}

CAFFETOOLS_API void caffetools_conv_pool_run(const void* handle, const int64_t* sizes, const float* x, float* y, int largest, float* scratch,
                                             int threads) {
  run_pooled(*static_cast<const Conv*>(handle), window_of(sizes), x, y, largest != 0, scratch, threads);
}

// Pooling over channels-last memory; `sizes` are the fields of Window in their order.
CAFFETOOLS_API void caffetools_pool_run(const int64_t* sizes, const float* x, float* y, int largest, int threads) {
  const Window w = window_of(sizes);
  const ConvKernel& kernel = CAFFETOOLS_IN_USE(conv_kernel);
  parallel_for(threads, w.n * w.oh, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernel.pool_row(w, x + row / w.oh * w.h * w.w * w.x_pitch, row % w.oh, largest != 0, y + row * w.ow * w.y_pitch);
  });
}

// The gradient of the weights. Algorithms: 0 chooses, 1 vectors (weight_gradient.h), 8 the matrix unit (amx.h).
// Floats of scratch; 0 where the algorithm does not take the convolution.
CAFFETOOLS_API int64_t caffetools_weight_gradient_scratch(const CaffetoolsConv* shape) {
  if (shape->algorithm == 8) return amx_weight_gradient_scratch(*shape, true);
  const int64_t amx = shape->algorithm == 0 ? amx_weight_gradient_scratch(*shape, false) : 0;
  return amx != 0 ? amx : weight_gradient_scratch(*shape);
}

CAFFETOOLS_API void caffetools_weight_gradient(const CaffetoolsConv* shape, const float* x, const float* dy, float* dw, float* scratch,
                                               int threads) {
  const bool amx = shape->algorithm == 8 || (shape->algorithm == 0 && amx_weight_gradient_scratch(*shape, false) != 0);
  (amx ? amx_weight_gradient : weight_gradient)(*shape, x, dy, dw, scratch, threads);
}
