// Convolutions by kernels of 3x3 without strides: four ninths of the products, by F(2x2, 3x3) (Lavin and Gray,
// arXiv 1509.09308, section 4.1; in its terms: U are the packed kernels, V the inputs, M the products).
//
// What is rounded how depends on where in its block of 2x2 a position is: blocks must begin at the same positions in
// whatever tile they are computed. `_encode.py` and `runs_of` see to it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "ahead.h"
#include "convolution.h"
#include "segment.h"
#include "vector.h"

namespace {

constexpr int64_t FREQUENCIES = 16;   // 4x4 of them
constexpr size_t BLOCKS = 2 * PIXELS;  // done together: as many as find the kernels in the nearest cache

// From one frequency to the next, in floats; a power of two would put all of them into one place of the cache.
inline int64_t inputs_apart(int64_t channels) { return BLOCKS * channels + LANES; }
constexpr int64_t PRODUCTS_APART = BLOCKS * PANEL + LANES;

inline int64_t winograd_scratch(int64_t channels_in) { return FREQUENCIES * (inputs_apart(channels_in) + PRODUCTS_APART); }

// Of one frequency: the blocks' inputs, and their products by a panel.
Positions block_positions(int64_t channels_in) {
  Positions at;
  at.offsets = at.kernels = {0};
  at.together = {1};
  for (size_t m = 0; m < BLOCKS; ++m) {
    at.in.push_back(m * channels_in);
    at.out.push_back(m * PANEL);
  }
  at.measure();
  return at;
}

// V = B^T d B of one block and one vector of channels: `in` is the first of the 4x4 positions.
template <class Load, class Store>
inline void input_transform(const float* in, const View& from, float* to, int64_t apart, Load get, Store put) {
  Vector rows[4][4];  // B^T d
  for (int c = 0; c < 4; ++c) {
    Vector d[4];
    for (int r = 0; r < 4; ++r) d[r] = get(in + r * from.row + c * from.col);
    rows[0][c] = d[0] - d[2];
    rows[1][c] = d[1] + d[2];
    rows[2][c] = d[2] - d[1];
    rows[3][c] = d[1] - d[3];
  }
  for (int r = 0; r < 4; ++r) {
    const Vector* d = rows[r];
    float* row = to + 4 * r * apart;
    put(row, d[0] - d[2]);
    put(row + apart, d[1] + d[2]);
    put(row + 2 * apart, d[2] - d[1]);
    put(row + 3 * apart, d[1] - d[3]);
  }
}

// A^T M A of one block and one vector of channels.
inline void output_transform(const float* products, Vector y[2][2]) {
  Vector rows[2][4];  // A^T M
  for (int c = 0; c < 4; ++c) {
    Vector m[4];
    for (int r = 0; r < 4; ++r) m[r] = load(products + (4 * r + c) * PRODUCTS_APART);
    rows[0][c] = m[0] + m[1] + m[2];
    rows[1][c] = m[1] - m[2] - m[3];
  }
  for (int r = 0; r < 2; ++r) {
    y[r][0] = rows[r][0] + rows[r][1] + rows[r][2];
    y[r][1] = rows[r][1] - rows[r][2] - rows[r][3];
  }
}

// `packed`: for each panel of channels the kernels' frequencies, one after the other.
void winograd(const Operation& op, const Positions& at, const View& from, const View& to, const Slot& slot,
              const float* packed, Ends ends, float* scratch, Ahead& ahead) {
  const int64_t inputs = op.channels_in, apart = inputs_apart(inputs), across = slot.cols / 2;
  const size_t count = slot.rows / 2 * across;
  float* const products = scratch + FREQUENCIES * apart;
  const Ends none{nullptr, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
  for (size_t first = 0; first < count; first += BLOCKS) {
    const size_t blocks = std::min(BLOCKS, count - first);
    for (size_t m = 0; m < blocks; ++m) {
      const int64_t r = (first + m) / across * 2, c = (first + m) % across * 2;
      const float* in = from.data + r * from.row + c * from.col;
      float* v = scratch + m * inputs;
      int64_t i = 0;
      for (; i + LANES <= inputs; i += LANES) input_transform(in + i, from, v + i, apart, load<Vector>, store<Vector>);
      if (const int64_t rest = inputs - i)
        input_transform(in + i, from, v + i, apart, [rest](const float* x) { return load_part(x, rest); },
                        [rest](float* x, Vector value) { store_part(x, value, rest); });
    }
    const float* weights = packed;
    for (int64_t channel = 0; channel < slot.channels; channel += PANEL) {
      const int64_t used = std::min<int64_t>(PANEL, slot.channels - channel);
      const int64_t width = panel_of(used);
      for (int64_t f = 0; f < FREQUENCIES; ++f, weights += inputs * width)
        Products{at, scratch + f * apart, inputs, weights, products + f * PRODUCTS_APART, width, none}(blocks, ahead);
      for (size_t m = 0; m < blocks; ++m) {
        const int64_t r = (first + m) / across * 2, c = (first + m) % across * 2;
        for (int64_t k = 0; k < used; k += LANES) {
          Vector y[2][2];
          output_transform(products + m * PANEL + k, y);
          const Vector shift = ends.begin(channel + k);
          for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
              float* out = to.data + (r + i) * to.row + (c + j) * to.col + channel + k;
              const Vector found = ends.bound(y[i][j] + shift);
              if (used - k >= LANES) store(out, found);
              else store_part(out, found, used - k);
            }
        }
      }
    }
  }
}

}  // namespace
