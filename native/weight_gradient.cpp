// The gradient of a convolution's weights by vectors: which pixels and channels each call of the kernel sums over, and how the work is
// divided among threads.
//
// The pixels are divided into parts, whose sums are added up at the end in one order. A part goes through its pixels in bands that caches
// hold, for all weights. One of the two factors, outputs or inputs, is read by vectors; the sums lie in its order until they are written.
#include "weight_gradient.h"

#include <algorithm>
#include <cstring>

#include "pool.h"
#include "variants.h"

namespace caffetools {
namespace {

// Floats of a band, which stay in the second-level cache; most parts, and floats of their sums; channels of the first factor of a task.
constexpr int64_t kBandFloats = 96 * 1024, kMostParts = 16, kSumFloats = 2 * 1024 * 1024, kLeastOfTask = 24;
// With fewer channels the inputs of a row of the kernel, which are neighbours in memory, are taken as one factor.
constexpr int64_t kFewInputs = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Gradient {
 public:
  explicit Gradient(const CaffetoolsConv& shape) : s(shape) {
    joint = s.c < kFewInputs && s.groups == 1 && s.dw == 1 && s.x_pitch == s.c && s.kw > 1;
    padded = joint && (s.ph > 0 || s.pw > 0);
    if (s.kh * s.kw == 1 && s.sh == 1 && s.sw == 1 && s.ph == 0 && s.pw == 0) {
      // All pixels are one row.
      s.w = s.ow = s.n * s.h * s.w;
      s.n = s.h = s.oh = 1;
    }
    in = s.c / s.groups, out = s.oc / s.groups;
    // A row of the kernel is one tap if its inputs are one factor.
    taps = joint ? s.kh : s.kh * s.kw;
    inputs = joint ? s.kw * s.c : in;
    by_outputs = joint || (in % 32 != 0 && in < out);
    a_count = by_outputs ? inputs : out, b_count = by_outputs ? out : inputs;
    sums = s.groups * taps * a_count * b_count;
    const int64_t pixels = std::max<int64_t>(16, kBandFloats / (s.c + s.oc));
    columns = std::min(s.ow, std::max<int64_t>(pixels, 64));
    if (s.ow < 2 * columns) columns = s.ow;
    rows = columns < s.ow ? 1 : std::min(s.oh, std::max<int64_t>(1, pixels / s.ow));
    bands = s.n * ceil_div(s.oh, rows) * ceil_div(s.ow, columns);
    parts = std::min({bands, kMostParts, std::max<int64_t>(1, kSumFloats / sums)});
    splits = std::min(ceil_div(kMostParts, parts), ceil_div(a_count, kLeastOfTask));
    of_task = ceil_div(ceil_div(a_count, splits), 4) * 4;
    splits = ceil_div(a_count, of_task);
  }

  int64_t floats() const { return parts * sums + (padded ? s.n * high() * wide() * s.c : 0); }

  void run(const float* x, const float* dy, float* dw, float* scratch, int threads) const {
    if (padded) x = pad(x, scratch + parts * sums, threads);
    parallel_for(threads, parts * splits, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) add(x, dy, task / splits, task % splits * of_task, scratch);
    });
    parallel_for(threads, ceil_div(sums, kSlice), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin * kSlice; at < std::min(sums, end * kSlice); ++at) {
        float sum = scratch[at];
        for (int64_t part = 1; part < parts; ++part) sum += scratch[part * sums + at];
        scratch[at] = sum;
      }
    });
    parallel_for(threads, s.oc, [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output) write(scratch, output, dw + output * s.kh * s.kw * in);
    });
  }

 private:
  static constexpr int64_t kSlice = 4096;

  int64_t high() const { return (s.oh - 1) * s.sh + (s.kh - 1) * s.dh + 1; }
  int64_t wide() const { return (s.ow - 1) * s.sw + s.kw; }

  // The part of the input that windows see, with its border of zeros.
  const float* pad(const float* x, float* to, int threads) const {
    const int64_t last = std::min(s.w, wide() - s.pw);
    parallel_for(threads, s.n * high(), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t y = row % high() - s.ph;
        float* line = to + row * wide() * s.c;
        const bool inside = y >= 0 && y < s.h;
        if (!inside || wide() > last) std::memset(line, 0, static_cast<size_t>(wide() * s.c) * sizeof(float));
        if (inside) std::memcpy(line + s.pw * s.c, x + (row / high() * s.h + y) * s.w * s.c, static_cast<size_t>(last * s.c) * sizeof(float));
      }
    });
    return to;
  }

  // The sums of one part, for channels of the first factor from `first` on.
  void add(const float* x, const float* dy, int64_t part, int64_t first, float* scratch) const {
    const int64_t count = std::min(of_task, a_count - first);
    float* to = scratch + part * sums;
    for (int64_t at = 0; at < s.groups * taps; ++at)
      std::memset(to + (at * a_count + first) * b_count, 0, static_cast<size_t>(count * b_count) * sizeof(float));
    const int64_t across = ceil_div(s.ow, columns), down = ceil_div(s.oh, rows);
    for (int64_t band = part * bands / parts; band < (part + 1) * bands / parts; ++band) {
      const int64_t image = band / (across * down), y = band / across % down * rows, column = band % across * columns;
      for (int64_t at = 0; at < s.groups * taps; ++at)
        add_tap(x, dy, image, {y, std::min(s.oh, y + rows)}, {column, std::min(s.ow, column + columns)}, at / taps, at % taps, first, count,
                to + (at * a_count + first) * b_count);
    }
  }

  struct Range {
    int64_t begin, end;
    // The part of the range whose windows' place at `offset` is inside of the map.
    Range clipped(int64_t offset, int64_t stride, int64_t size) const {
      return {std::max(begin, offset < 0 ? ceil_div(-offset, stride) : 0), std::min(end, size <= offset ? 0 : (size - offset - 1) / stride + 1)};
    }
    int64_t count() const { return end - begin; }
  };

  void add_tap(const float* x, const float* dy, int64_t image, Range ys, Range xs, int64_t group, int64_t tap, int64_t first, int64_t count,
               float* to) const {
    const int64_t top = padded ? 0 : s.ph, left = padded ? 0 : s.pw, h = padded ? high() : s.h, w = padded ? wide() : s.w;
    const int64_t down = (joint ? tap : tap / s.kw) * s.dh - top, across = joint ? -left : tap % s.kw * s.dw - left;
    ys = ys.clipped(down, s.sh, h);
    if (!joint) xs = xs.clipped(across, s.sw, w);
    if (ys.count() <= 0 || xs.count() <= 0) return;
    const float* from_x = x + ((image * h + ys.begin * s.sh + down) * w + xs.begin * s.sw + across) * s.x_pitch + group * in;
    const float* from_dy = dy + ((image * s.oh + ys.begin) * s.ow + xs.begin) * s.y_pitch + group * out;
    const int64_t x_step = s.sw * s.x_pitch, x_row = s.sh * w * s.x_pitch, dy_step = s.y_pitch, dy_row = s.ow * s.y_pitch;
    const auto accumulate = CAFFETOOLS_IN_USE(weight_gradient_kernel).accumulate;
    if (by_outputs)
      accumulate(from_x + first, from_dy, {ys.count(), xs.count(), x_step, x_row, dy_step, dy_row}, count, b_count, to);
    else
      accumulate(from_dy + first, from_x, {ys.count(), xs.count(), dy_step, dy_row, x_step, x_row}, count, b_count, to);
  }

  // The weights of one output: (kh, kw, in).
  void write(const float* from, int64_t output, float* to) const {
    const int64_t group = output / out, o = output % out;
    from += group * taps * a_count * b_count;
    for (int64_t tap = 0; tap < taps; ++tap, from += a_count * b_count, to += inputs) {
      if (!by_outputs)
        std::memcpy(to, from + o * b_count, static_cast<size_t>(inputs) * sizeof(float));
      else
        for (int64_t i = 0; i < inputs; ++i) to[i] = from[i * b_count + o];
    }
  }

  CaffetoolsConv s;
  bool joint, padded, by_outputs;
  int64_t in, out, taps, inputs, a_count, b_count, sums, columns, rows, bands, parts, splits, of_task;
};

}  // namespace

int64_t weight_gradient_scratch(const CaffetoolsConv& s) { return Gradient(s).floats(); }

void weight_gradient(const CaffetoolsConv& s, const float* x, const float* dy, float* dw, float* scratch, int threads) {
  Gradient(s).run(x, dy, dw, scratch, threads);
}

}  // namespace caffetools
