// The arithmetic of amx.h. CMake compiles this file for AVX-512 with bfloat16 and AMX, where the compiler knows them.
#include "amx.h"

#include "epilogue.h"
#include "vec.h"

namespace {

using caffetools::AmxSums;
using caffetools::kBlock;
using caffetools::kPieces;
using caffetools::kStep;
using caffetools::kTile;
using caffetools::kTileHalves;

struct Configuration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// In memory before it is read: the compiler sees only a part of what the instruction reads.
alignas(64) constexpr Configuration kWhole;

void begin() { _tile_loadconfig(&kWhole); }

void end() { _tile_release(); }

struct Pieces {
  __m256i piece[kPieces];
};

inline __m256i halves_of(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __m512 floats_of(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

inline Pieces pieces_of(__m512 v) {
  Pieces p;
  p.piece[0] = halves_of(v);
  v = _mm512_sub_ps(v, floats_of(p.piece[0]));
  p.piece[1] = halves_of(v);
  p.piece[2] = halves_of(_mm512_sub_ps(v, floats_of(p.piece[1])));
  return p;
}

inline void store_halves(uint16_t* to, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }

// Two rows of a panel's tile: inputs k and k + 1 of each column beside each other.
inline void store_pair(uint16_t* to, __m256i even, __m256i odd) {
  _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
}

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

void split(const float* from, int64_t count, int64_t padded, uint16_t* to, int64_t piece) {
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 v = i + 16 <= count ? _mm512_loadu_ps(from + i) : i < count ? _mm512_maskz_loadu_ps(first_lanes(count - i), from + i)
                                                                               : _mm512_setzero_ps();
    const Pieces p = pieces_of(v);
    for (int64_t k = 0; k < kPieces; ++k) store_halves(to + k * piece + i, p.piece[k]);
  }
}

void pack_tile(const float* from, int64_t k_step, int64_t column_step, int64_t inputs, int64_t columns, uint16_t* to, int64_t piece) {
  const __mmask16 mask = first_lanes(columns);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(column_step)));
  const auto load = [&](int64_t k) {
    if (k >= inputs) return _mm512_setzero_ps();
    if (column_step == 1) return _mm512_maskz_loadu_ps(mask, from + k * k_step);
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, places, from + k * k_step, 4);
  };
  for (int64_t k = 0; k < kStep; k += 2) {
    const Pieces even = pieces_of(load(k)), odd = pieces_of(load(k + 1));
    for (int64_t p = 0; p < kPieces; ++p) store_pair(to + p * piece + k * kTile, even.piece[p], odd.piece[p]);
  }
}

// Of 16 vectors: lane j of vector i and lane i of vector j change places.
inline void transpose(__m512* v) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = _mm512_unpacklo_ps(v[i], v[i + 1]), b = _mm512_unpackhi_ps(v[i], v[i + 1]);
    const __m512 c = _mm512_unpacklo_ps(v[i + 2], v[i + 3]), d = _mm512_unpackhi_ps(v[i + 2], v[i + 3]);
    t[i] = _mm512_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  // Vector 4 g + k now holds, in its four quarters q, lanes 4 q + k of vectors 4 g to 4 g + 3.
  for (int k = 0; k < 4; ++k) {
    const __m512 a = _mm512_shuffle_f32x4(t[k], t[4 + k], 0x88), b = _mm512_shuffle_f32x4(t[k], t[4 + k], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(t[8 + k], t[12 + k], 0x88), d = _mm512_shuffle_f32x4(t[8 + k], t[12 + k], 0xdd);
    v[k] = _mm512_shuffle_f32x4(a, c, 0x88);
    v[8 + k] = _mm512_shuffle_f32x4(a, c, 0xdd);
    v[4 + k] = _mm512_shuffle_f32x4(b, d, 0x88);
    v[12 + k] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

void split_transposed(const float* const* rows, int64_t channels, uint16_t* to, int64_t row, int64_t piece) {
  const __mmask16 mask = first_lanes(channels);
  __m512 v[16];
  for (int i = 0; i < 16; ++i) v[i] = rows[i] != nullptr ? _mm512_maskz_loadu_ps(mask, rows[i]) : _mm512_setzero_ps();
  transpose(v);
  for (int64_t c = 0; c < 16 && c < channels; ++c) {
    const Pieces p = pieces_of(v[c]);
    for (int64_t k = 0; k < kPieces; ++k) store_halves(to + c * row + k * piece, p.piece[k]);
  }
}

void pack_pixels(const float* const* rows, int64_t columns, uint16_t* to, int64_t piece) {
  const __mmask16 mask = first_lanes(columns);
  const auto load = [&](int64_t k) { return rows[k] != nullptr ? _mm512_maskz_loadu_ps(mask, rows[k]) : _mm512_setzero_ps(); };
  for (int64_t k = 0; k < kStep; k += 2) {
    const Pieces even = pieces_of(load(k)), odd = pieces_of(load(k + 1));
    for (int64_t p = 0; p < kPieces; ++p) store_pair(to + p * piece + k * kTile, even.piece[p], odd.piece[p]);
  }
}

void accumulate(const float* sums, int64_t rows, int64_t columns, float* to, int64_t pitch, bool first) {
  for (int64_t m = 0; m < rows; ++m, sums += kBlock, to += pitch)
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 mask = first_lanes(columns - c);
      const __m512 sum = _mm512_maskz_loadu_ps(mask, sums + c);
      _mm512_mask_storeu_ps(to + c, mask, first ? sum : _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to + c)));
    }
}

// kR tiles of rows by kV tiles of columns: sums in tiles 0 to 3, rows in 4 and 5, columns in 6 and 7.
template <int kR, int kV>
inline void load_rows(const uint16_t* a, int64_t row) {
  _tile_loadd(4, a, static_cast<size_t>(row * 2));
  if (kR > 1) _tile_loadd(5, a + kTile * row, static_cast<size_t>(row * 2));
}

template <int kR, int kV>
inline void load_columns(const uint16_t* b) {
  _tile_loadd(6, b, 64);
  if (kV > 1) _tile_loadd(7, b + kTileHalves, 64);
}

template <int kR, int kV>
inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  if (kV > 1) _tile_dpbf16ps(1, 4, 7);
  if (kR > 1) _tile_dpbf16ps(2, 5, 6);
  if (kR > 1 && kV > 1) _tile_dpbf16ps(3, 5, 7);
}

template <int kR, int kV>
void multiply_block(const uint16_t* a, const AmxSums& s, const uint16_t* b, float* to) {
  constexpr size_t kPitch = kBlock * sizeof(float);
  float* const below = to + kTile * kBlock;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  constexpr int64_t kPanelPiece = kV * kTileHalves;
  for (int64_t run = 0; run < s.runs; ++run) {
    const uint16_t* at = a + s.offsets[run];
    for (int64_t step = 0; step < s.steps; ++step, at += kStep, b += kPieces * kPanelPiece) {
      // Every pair but the first has one side in common with the one before.
      load_rows<kR, kV>(at, s.row);
      load_columns<kR, kV>(b + 2 * kPanelPiece);
      add_products<kR, kV>();
      load_columns<kR, kV>(b + kPanelPiece);
      add_products<kR, kV>();
      load_rows<kR, kV>(at + s.piece, s.row);
      add_products<kR, kV>();
      load_columns<kR, kV>(b);
      add_products<kR, kV>();
      load_rows<kR, kV>(at + 2 * s.piece, s.row);
      add_products<kR, kV>();
      load_rows<kR, kV>(at, s.row);
      add_products<kR, kV>();
    }
  }
  _tile_stored(0, to, kPitch);
  if (kV > 1) _tile_stored(1, to + kTile, kPitch);
  if (kR > 1) _tile_stored(2, below, kPitch);
  if (kR > 1 && kV > 1) _tile_stored(3, below + kTile, kPitch);
}

void multiply(int64_t rows, int64_t columns, const uint16_t* a, const AmxSums& sums, const uint16_t* panel, float* to) {
  const auto block = rows > kTile ? (columns > kTile ? multiply_block<2, 2> : multiply_block<2, 1>)
                                  : (columns > kTile ? multiply_block<1, 2> : multiply_block<1, 1>);
  block(a, sums, panel, to);
}

void finish_rows(const float* sums, int64_t rows, int64_t channels, float* y, int64_t y_pitch, const float* residual, int64_t residual_pitch,
                 const Epilogue& epilogue) {
  if (channels == kBlock && residual == nullptr && epilogue.activation <= caffetools::kRelu) {
    const Vec zero = vset(0.0f), floor = epilogue.activation == caffetools::kRelu ? zero : vset(-__builtin_inff());
    const Vec first = epilogue.bias != nullptr ? vload(epilogue.bias) : zero, second = epilogue.bias != nullptr ? vload(epilogue.bias + kWidth) : zero;
    for (int64_t m = 0; m < rows; ++m, sums += kBlock, y += y_pitch) {
      vstore(y, vmax(floor, vadd(vload(sums), first)));
      vstore(y + kWidth, vmax(floor, vadd(vload(sums + kWidth), second)));
    }
    return;
  }
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t c = 0; c < channels; c += kWidth)
      vstore_part(y + m * y_pitch + c,
                  finish(vload(sums + m * kBlock + c), epilogue, c, channels - c, residual != nullptr ? residual + m * residual_pitch : nullptr),
                  channels - c);
}

}  // namespace

namespace caffetools {

extern const AmxKernel amx_kernel{begin, end, split, pack_tile, split_transposed, pack_pixels, accumulate, multiply, finish_rows};

}  // namespace caffetools
