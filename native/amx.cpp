// Convolutions by the matrix unit (amx.h): what is packed where, and how the work is divided among threads.
#include "amx.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "pool.h"
#include "variants.h"

#if defined(CAFFETOOLS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace caffetools {

#if defined(CAFFETOOLS_AMX)

namespace {

// Linux lets a process use the tiles' registers when it asks for them, once; later threads inherit the permission.
bool permitted() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // conversion to bfloat16
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// Bytes of a thread's second-level cache that packed inputs of whole images, weights that each block of rows reads in turn, and packed inputs
// of a strip of rows may take.
constexpr int64_t kInputBytes = 1536 * 1024, kWeightBytes = 1024 * 1024, kStripBytes = 384 * 1024;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// An odd number of cache lines, so that the rows of a tile do not meet in one set of the cache.
int64_t spread(int64_t halves) { return round_up(halves, 32) / 32 % 2 ? round_up(halves, 32) : round_up(halves, 32) + 32; }

uint16_t* aligned(float* memory) { return reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64); }

// Packed inputs: places of the grid from `first` on, and the distance of the pieces, in bfloat16.
struct Planes {
  int64_t first, count, width, piece;

  // Of `blocks` blocks of outputs from `first` on.
  Planes(const AmxGrid& grid, int64_t from, int64_t blocks)
      : first(from), count(blocks * kBlock + grid.reach()), width(grid.steps() * kStep), piece(spread(count * width)) {}
};

int64_t place_bytes(const AmxGrid& grid) { return grid.steps() * kStep * kPieces * 2; }

// Images whose packed inputs are made at once where the weights are many.
int64_t images_at_once(const AmxGrid& grid) {
  const int64_t bytes = grid.down() * grid.across() * place_bytes(grid), weights = grid.halves() / grid.groups * 2;
  return std::min(grid.n, std::max<int64_t>(1, std::max(kInputBytes, weights) / bytes));
}

void clear(uint16_t* to, int64_t halves, int64_t piece) {
  for (int64_t p = 0; p < kPieces; ++p) std::memset(to + p * piece, 0, static_cast<size_t>(halves) * sizeof(uint16_t));
}

// Places [begin, end) of the grid of `count` images whose channels of one group begin at `x`.
void split_places(const AmxGrid& grid, const float* x, int64_t x_pitch, int64_t count, const Planes& planes, int64_t begin, int64_t end,
                  uint16_t* to) {
  const int64_t width = planes.width, across = grid.across();
  const bool dense = x_pitch == width && grid.in() == width;
  to += (begin - planes.first) * width;
  while (begin < end) {
    const int64_t row = begin / across, column = begin % across, image = row / grid.down(), y = row % grid.down() - grid.ph;
    const bool inside = image < count && y >= 0 && column >= grid.pw;
    const int64_t stop = inside || image >= count || y < 0 ? across : grid.pw, length = std::min(stop - column, end - begin);
    if (!inside) {
      clear(to, length * width, planes.piece);
    } else {
      const float* from = x + ((image * grid.h + y) * grid.w + column - grid.pw) * x_pitch;
      if (dense) amx_kernel.split(from, length * width, length * width, to, planes.piece);
      for (int64_t i = 0; i < length && !dense; ++i)
        amx_kernel.split(from + i * x_pitch, grid.in(), width, to + i * width, planes.piece);
    }
    to += length * width;
    begin += length;
  }
}

// Memory of this thread that is kept for the next convolution.
uint16_t* own_memory(int64_t halves) {
  thread_local std::vector<uint16_t> memory;
  if (static_cast<int64_t>(memory.size()) < halves + 32) memory.resize(static_cast<size_t>(halves + 32));
  return reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// Where the results go.
struct Target {
  float* y;
  const float* residual;
  int64_t y_pitch, residual_pitch, channels;
};

// Rows [first, first + count) of the grid: those that are outputs.
void finish_rows(const AmxGrid& grid, const float* sums, int64_t first, int64_t count, const Target& to, const Epilogue& epilogue) {
  const int64_t across = grid.across(), down = grid.down();
  int64_t x = first % across, y = first / across % down, image = first / (across * down);
  // Stretches of one row of an output.
  for (int64_t m = 0; m < count;) {
    const int64_t length = std::min(across - x, count - m), valid = y < grid.oh ? std::min(grid.ow - x, length) : 0;
    if (valid > 0) {
      const int64_t pixel = (image * grid.oh + y) * grid.ow + x;
      amx_kernel.finish(sums + m * kBlock, valid, to.channels, to.y + pixel * to.y_pitch, to.y_pitch,
                        to.residual != nullptr ? to.residual + pixel * to.residual_pitch : nullptr, to.residual_pitch, epilogue);
    }
    m += length;
    x = 0;
    if (++y == down) y = 0, ++image;
  }
}

Epilogue of_channel(const Epilogue& e, int64_t channel) {
  return {e.bias != nullptr ? e.bias + channel : nullptr, e.slopes != nullptr ? e.slopes + channel : nullptr, e.activation, e.low, e.high};
}

}  // namespace

bool amx_ready() {
  static const bool may = permitted();
  return current_variant() >= 3 && may;
}

bool amx_takes(const CaffetoolsConv& s) {
  if (s.planar_input || s.sh != 1 || s.sw != 1 || !amx_ready()) return false;
  const int64_t tall = (s.kh - 1) * s.dh, wide = (s.kw - 1) * s.dw;
  return s.ph <= tall && s.pw <= wide && s.oh <= s.h + 2 * s.ph - tall && s.ow <= s.w + 2 * s.pw - wide && s.c / s.groups >= 8;
}

void amx_pack(const AmxGrid& grid, const float* weights, const WeightSteps& steps, uint16_t* to, int threads) {
  const int64_t panels = grid.panels(), per_panel = grid.taps() * grid.steps();
  parallel_for(threads, grid.groups * panels * per_panel, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t step = task % grid.steps(), tap = task / grid.steps() % grid.taps(), group_panel = task / per_panel;
      const int64_t first = group_panel % panels * kBlock, columns = std::min(kBlock, grid.out() - first), tiles = columns > kTile ? 2 : 1;
      const float* from = weights + group_panel / panels * steps.group + first * steps.output + step * kStep * steps.input +
                          tap / grid.kw * steps.row + tap % grid.kw * steps.column;
      uint16_t* at = to + (group_panel * per_panel * 2 + task % per_panel * tiles) * kPieces * kTileHalves;
      for (int64_t tile = 0; tile < tiles; ++tile)
        amx_kernel.pack_tile(from + tile * kTile * steps.output, steps.input, steps.output, grid.in() - step * kStep,
                             std::min(kTile, columns - tile * kTile), at + tile * kTileHalves, tiles * kTileHalves);
    }
  });
}

namespace {

bool weights_are_few(const AmxGrid& grid) { return grid.halves() / grid.groups * 2 <= kWeightBytes; }

int64_t blocks_of(const AmxGrid& grid, int64_t images) { return (grid.places(images) + kBlock - 1) / kBlock; }

// One group of channels of some images.
struct Part {
  const CaffetoolsConv& s;
  const AmxGrid& grid;
  int64_t images;
  const float* x;
  const uint16_t* weights;
  Target target;  // of the group's first channel
  Epilogue epilogue;
  std::vector<int64_t> offsets;

  int64_t panel_halves() const { return grid.taps() * grid.steps() * kPieces * 2 * kTileHalves; }

  void multiply(const Planes& planes, const uint16_t* packed, int64_t block, int64_t panel, float* results) const {
    const int64_t first = block * kBlock, rows = std::min(kBlock, grid.places(images) - first);
    const int64_t channel = panel * kBlock, columns = std::min(kBlock, grid.out() - channel);
    const AmxSums sums{offsets.data(), grid.taps(), grid.steps(), planes.width, planes.piece};
    amx_kernel.multiply(rows, columns, packed + (first - planes.first) * planes.width, sums, weights + panel * panel_halves(), results);
    Target to = target;
    to.y += channel;
    to.residual = to.residual != nullptr ? to.residual + channel : nullptr;
    to.channels = columns;
    finish_rows(grid, results, first, rows, to, of_channel(epilogue, channel));
  }

  // Each thread packs the inputs of some rows and multiplies them by all weights, which its cache holds.
  void run_strips(int threads) const {
    const int64_t blocks = blocks_of(grid, images), fits = kStripBytes / place_bytes(grid) / kBlock;
    const int64_t wanted = std::max((blocks + threads * 4 - 1) / (threads * 4), 3 * grid.reach() / kBlock);
    const int64_t strip = std::max<int64_t>(1, std::min(fits, wanted)), strips = (blocks + strip - 1) / strip;
    parallel_for(threads, strips, [&](int64_t begin, int64_t end) {
      alignas(64) float results[kBlock * kBlock];
      uint16_t* packed = own_memory(kPieces * Planes(grid, 0, strip).piece);
      amx_kernel.begin();
      for (int64_t task = begin; task < end; ++task) {
        const int64_t from = task * strip, to = std::min(blocks, from + strip);
        const Planes planes(grid, from * kBlock, to - from);
        split_places(grid, x, s.x_pitch, images, planes, planes.first, planes.first + planes.count, packed);
        for (int64_t block = from; block < to; ++block)
          for (int64_t panel = 0; panel < grid.panels(); ++panel) multiply(planes, packed, block, panel, results);
      }
      amx_kernel.end();
    });
  }

  // All inputs are packed first. Those that fit into the cache meet one panel of weights after the other; else bundles of panels that fit
  // meet all inputs.
  void run_panels(uint16_t* packed, int threads) const {
    const int64_t blocks = blocks_of(grid, images), panels = grid.panels();
    const Planes planes(grid, 0, blocks);
    parallel_for(threads, (planes.count + kBlock - 1) / kBlock, [&](int64_t begin, int64_t end) {
      split_places(grid, x, s.x_pitch, images, planes, begin * kBlock, std::min(end * kBlock, planes.count), packed);
    });
    const bool small = kPieces * planes.piece * 2 <= kWeightBytes;
    const int64_t bundle = small ? panels : std::max<int64_t>(1, kWeightBytes / (panel_halves() * 2));
    for (int64_t from = 0; from < panels; from += bundle) {
      const int64_t taken = std::min(bundle, panels - from);
      parallel_for(threads, blocks * taken, [&](int64_t begin, int64_t end) {
        alignas(64) float results[kBlock * kBlock];
        amx_kernel.begin();
        for (int64_t task = begin; task < end; ++task)
          multiply(planes, packed, small ? task % blocks : task / taken, from + (small ? task / blocks : task % taken), results);
        amx_kernel.end();
      });
    }
  }
};

}  // namespace

int64_t amx_scratch(const AmxGrid& grid) {
  if (weights_are_few(grid)) return 0;
  return kPieces * Planes(grid, 0, blocks_of(grid, images_at_once(grid))).piece / 2 + 64;
}

void amx_run(const CaffetoolsConv& s, const uint16_t* weights, const float* x, float* y, const float* residual, const Epilogue& epilogue,
             float* scratch, int threads) {
  const AmxGrid grid(s);
  const bool few = weights_are_few(grid);
  const int64_t most = few ? grid.n : images_at_once(grid), group_halves = grid.halves() / grid.groups;
  std::vector<int64_t> offsets;
  for (int64_t tap = 0; tap < grid.taps(); ++tap) offsets.push_back(grid.offset(tap) * grid.steps() * kStep);
  for (int64_t group = 0; group < grid.groups; ++group)
    for (int64_t start = 0; start < grid.n; start += most) {
      const int64_t first = start * grid.oh * grid.ow, channel = group * grid.out();
      const Target target{y + first * s.y_pitch + channel, residual != nullptr ? residual + first * s.residual_pitch + channel : nullptr,
                          s.y_pitch, s.residual_pitch, 0};
      const Part part{s, grid, std::min(most, grid.n - start), x + start * grid.h * grid.w * s.x_pitch + group * grid.in(),
                      weights + group * group_halves, target, of_channel(epilogue, channel), offsets};
      if (few)
        part.run_strips(threads);
      else
        part.run_panels(aligned(scratch), threads);
    }
}

namespace {

// Bytes that the packed values of a chunk of places may take, and the places of one.
constexpr int64_t kChunkBytes = 1536 * 1024, kLeastChunk = 1024, kMostChunk = 2048;

// The gradient of one group's weights. The gradients of outputs are the rows of the products, transposed; the inputs are the columns.
struct WeightGradient {
  const AmxGrid& grid;
  int64_t total;  // places of the grid up to the last input
  int64_t chunk;  // places worked on at once, in whole steps
  int64_t row, piece;  // distance of the transposed rows and of their pieces
  int64_t row_blocks, tiles;
  int64_t panel;  // halves of one panel: [step][piece][tile]

  explicit WeightGradient(const AmxGrid& g) : grid(g) {
    total = ((grid.n - 1) * grid.down() + grid.ph + grid.h - 1) * grid.across() + grid.pw + grid.w;
    const int64_t fits = kChunkBytes / ((grid.in() + grid.out()) * kPieces * 2) / kStep * kStep;
    chunk = std::min(std::max(kLeastChunk, std::min(kMostChunk, fits)), round_up(total, kStep));
    row = spread(chunk + round_up(grid.reach(), kTile) + kTile);
    row_blocks = (grid.out() + kTile - 1) / kTile;
    piece = row_blocks * kTile * row;
    tiles = (grid.in() + kTile - 1) / kTile;
    panel = chunk / kStep * kPieces * 2 * kTileHalves;
  }
  int64_t panels() const { return (tiles + 1) / 2; }
  int64_t halves() const { return kPieces * piece + panels() * panel; }

  // Where the pixels of `count` places from `place` on begin, of images of h x w pixels whose first one is at (top, left) of each image's part of
  // the grid; null for places outside.
  void pixels(const float* from, int64_t pitch, int64_t place, int64_t count, int64_t h, int64_t w, int64_t top, int64_t left,
              const float** rows) const {
    const int64_t across = grid.across(), down = grid.down();
    for (; place < 0 && count > 0; ++place, --count) *rows++ = nullptr;
    int64_t column = place % across, y = place / across % down, image = place / across / down;
    while (count > 0) {
      const int64_t stop = std::min(across, column + count), line = ((image * h + y - top) * w - left) * pitch;
      const bool inside = image < grid.n && y >= top && y < top + h;
      count -= stop - column;
      for (; column < stop; ++column) *rows++ = inside && column >= left && column < left + w ? from + line + column * pitch : nullptr;
      column = 0;
      if (++y == down) y = 0, ++image;
    }
  }

  // The first place of the transposed rows for a chunk from `first` on.
  int64_t before(int64_t first) const { return first - round_up(grid.reach(), kTile); }

  void pack_outputs(const float* dy, int64_t pitch, int64_t first, int64_t task, uint16_t* to) const {
    const float* rows[kTile];
    pixels(dy, pitch, before(first) + task * kTile, kTile, grid.oh, grid.ow, 0, 0, rows);
    for (int64_t block = 0; block < row_blocks; ++block) {
      amx_kernel.split_transposed(rows, std::min(kTile, grid.out() - block * kTile), to + block * kTile * row + task * kTile, row, piece);
      for (const float*& at : rows) at = at != nullptr ? at + kTile : nullptr;
    }
  }

  void pack_inputs(const float* x, int64_t pitch, int64_t first, int64_t step, uint16_t* to) const {
    const float* rows[kStep];
    pixels(x, pitch, first + step * kStep, kStep, grid.h, grid.w, grid.ph, grid.pw, rows);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t wide = std::min<int64_t>(2, tiles - tile / 2 * 2);
      uint16_t* at = to + tile / 2 * panel + step * kPieces * wide * kTileHalves + tile % 2 * kTileHalves;
      amx_kernel.pack_pixels(rows, std::min(kTile, grid.in() - tile * kTile), at, wide * kTileHalves);
      for (const float*& pixel : rows) pixel = pixel != nullptr ? pixel + kTile : nullptr;
    }
  }

  void run(const float* x, int64_t x_pitch, const float* dy, int64_t y_pitch, float* dw, uint16_t* packed, int threads) const {
    uint16_t* const panels_at = packed + kPieces * piece;
    const int64_t taps = grid.taps(), pitch = taps * grid.in(), blocks = (grid.out() + kBlock - 1) / kBlock;
    // Panels that a thread's cache holds while the rows pass by.
    const int64_t bundle = std::max<int64_t>(1, kWeightBytes / (panel * 2));
    for (int64_t first = 0; first < total; first += chunk) {
      const int64_t steps = (std::min(chunk, total - first) + kStep - 1) / kStep;
      const int64_t columns = (steps * kStep + round_up(grid.reach(), kTile)) / kTile;
      parallel_for(threads, columns + steps, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          if (task < columns)
            pack_outputs(dy, y_pitch, first, task, packed);
          else
            pack_inputs(x, x_pitch, first, task - columns, panels_at);
        }
      });
      for (int64_t from = 0; from < panels(); from += bundle) {
        const int64_t taken = std::min(bundle, panels() - from);
        parallel_for(threads, blocks * taken * taps, [&](int64_t begin, int64_t end) {
          alignas(64) float results[kBlock * kBlock];
          const int64_t zero = 0;
          amx_kernel.begin();
          for (int64_t task = begin; task < end; ++task) {
            const int64_t tap = task % taps, column = (from + task / taps % taken) * kBlock, line = task / taps / taken * kBlock;
            const int64_t rows = std::min(kBlock, grid.out() - line), width = std::min(kBlock, grid.in() - column);
            const AmxSums sums{&zero, 1, steps, row, piece};
            const uint16_t* a = packed + line * row + first - grid.offset(tap) - before(first);
            amx_kernel.multiply(rows, width, a, sums, panels_at + column / kBlock * panel, results);
            amx_kernel.accumulate(results, rows, width, dw + line * pitch + tap * grid.in() + column, pitch, first == 0);
          }
          amx_kernel.end();
        });
      }
    }
  }
};

}  // namespace

namespace {

// In multiply-adds of vectors: a product of the unit, where one side lies across cache lines with a kernel of several taps, and the
// conversion of a value; what the sums by vectors take for theirs. Fitted to AlexNet's, GoogLeNet's and SqueezeNet's convolutions.
constexpr double kFlatProduct = 0.56, kTapProduct = 0.75, kConversion = 75, kVectorProduct = 1.02;

bool pays(const AmxGrid& grid) {
  const double places = static_cast<double>(WeightGradient(grid).total), taps = static_cast<double>(grid.taps());
  const int64_t left = grid.in() % kBlock, columns = grid.in() - left + (left == 0 ? 0 : left <= kTile ? 24 : kBlock);
  const double products = places * taps * static_cast<double>(columns * round_up(grid.out(), kTile)) * (taps > 1 ? kTapProduct : kFlatProduct);
  const double vectors = static_cast<double>(grid.n * grid.oh * grid.ow * grid.in() * grid.out()) * taps * kVectorProduct;
  return products + kConversion * places * static_cast<double>(grid.in() + grid.out()) < vectors;
}

}  // namespace

int64_t amx_weight_gradient_scratch(const CaffetoolsConv& s, bool always) {
  if (!amx_takes(s)) return 0;
  const AmxGrid grid(s);
  return always || pays(grid) ? WeightGradient(grid).halves() / 2 + 64 : 0;
}

void amx_weight_gradient(const CaffetoolsConv& s, const float* x, const float* dy, float* dw, float* scratch, int threads) {
  const AmxGrid grid(s);
  const WeightGradient gradient(grid);
  for (int64_t group = 0; group < grid.groups; ++group)
    gradient.run(x + group * grid.in(), s.x_pitch, dy + group * grid.out(), s.y_pitch, dw + group * grid.out() * grid.taps() * grid.in(),
                 aligned(scratch), threads);
}

#else

bool amx_ready() { return false; }
int64_t amx_weight_gradient_scratch(const CaffetoolsConv&, bool) { return 0; }
void amx_weight_gradient(const CaffetoolsConv&, const float*, const float*, float*, float*, int) {}
bool amx_takes(const CaffetoolsConv&) { return false; }
void amx_pack(const AmxGrid&, const float*, const WeightSteps&, uint16_t*, int) {}
int64_t amx_scratch(const AmxGrid&) { return 0; }
void amx_run(const CaffetoolsConv&, const uint16_t*, const float*, float*, const float*, const Epilogue&, float*, int) {}

#endif

}  // namespace caffetools
