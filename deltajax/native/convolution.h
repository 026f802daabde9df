// Convolutions: blocks of positions x channels in registers, tap by tap, input by input.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "ahead.h"
#include "segment.h"
#include "vector.h"

namespace {

// What becomes of a sum: it begins with a number for each channel, and ends within bounds. NaN stays NaN.
struct Ends {
  const float* shift;  // nullptr: 0
  float low, high;
  Vector begin(int64_t channel) const { return shift ? load(shift + channel) : Vector{}; }
  Vector bound(Vector x) const {
    const Vector least = Vector{} + low, most = Vector{} + high;
    x = least > x ? least : x;
    return most < x ? most : x;
  }
};

// Which positions are read and written, from the first of a tile on; for one pair of phases.
struct Positions {
  std::vector<int64_t> in, out, offsets, kernels;

  Positions() = default;
  Positions(const Operation& op, const View& from, const View& to, int64_t rows, int64_t cols, size_t a, size_t b) {
    for (const Tap& y : op.row.phases[a])
      for (const Tap& x : op.col.phases[b]) {
        offsets.push_back(y.at * from.row + x.at * from.col);
        kernels.push_back(y.kernel * op.columns + x.kernel);
      }
    for (int64_t r = a, i = 0; r < rows; r += op.row.phases.size(), ++i)
      for (int64_t c = b, j = 0; c < cols; c += op.col.phases.size(), ++j) {
        in.push_back(i * op.row.step * from.row + j * op.col.step * from.col);
        out.push_back(r * to.row + c * to.col);
      }
  }
};

// `channels` products for each tap, for MR positions from `position` on and NV vectors of channels from `first` on.
template <int MR, int NV>
void block(const Positions& at, size_t position, const float* in, int64_t channels, const float* panel, float* out,
           int64_t first, int64_t used, const Ends& ends) {
  Vector sums[MR][NV];
  for (int v = 0; v < NV; ++v) {
    const Vector begin = ends.begin(first + v * LANES);
    for (int m = 0; m < MR; ++m) sums[m][v] = begin;
  }
  for (size_t t = 0; t < at.offsets.size(); ++t) {
    const float* weights = panel + at.kernels[t] * channels * NV * LANES;
    const float* x[MR];
    for (int m = 0; m < MR; ++m) x[m] = in + at.in[position + m] + at.offsets[t];
    for (int64_t c = 0; c < channels; ++c, weights += NV * LANES) {
      Vector w[NV];
      for (int v = 0; v < NV; ++v) w[v] = load(weights + v * LANES);
      for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sums[m][v] = multiply_add(all(x[m][c]), w[v], sums[m][v]);
    }
  }
  const int64_t last = used - (NV - 1) * LANES;  // channels of the last vector
  for (int m = 0; m < MR; ++m) {
    float* to = out + at.out[position + m] + first;
    for (int v = 0; v < NV - 1; ++v) store(to + v * LANES, ends.bound(sums[m][v]));
    const Vector sum = ends.bound(sums[m][NV - 1]);
    if (last == LANES) store(to + (NV - 1) * LANES, sum);
    else store_part(to + (NV - 1) * LANES, sum, last);
  }
}

using Block = void (*)(const Positions&, size_t, const float*, int64_t, const float*, float*, int64_t, int64_t, const Ends&);

template <int NV, int... MR>
constexpr Block block_of(int rows, std::integer_sequence<int, MR...>) {
  constexpr Block all[] = {block<MR + 1, NV>...};
  return all[rows - 1];
}

// How many blocks that many positions of a result are.
inline int64_t blocks_of(size_t positions, int64_t channels) {
  return (positions + PIXELS - 1) / PIXELS * ((channels + PANEL - 1) / PANEL);
}

void convolve(const Operation& op, const std::vector<Positions>& phases, const float* in, float* out, int64_t channels,
              const float* packed, const Ends& ends, Ahead& ahead) {
  const auto sizes = std::make_integer_sequence<int, PIXELS>();
  const int64_t taps = op.count;  // of the whole kernel
  for (const Positions& at : phases) {
    const float* panel = packed;
    for (int64_t first = 0; first < channels; first += PANEL) {
      const int64_t used = std::min<int64_t>(PANEL, channels - first);
      const bool wide = used > LANES;
      for (size_t p = 0; p < at.in.size(); p += PIXELS) {
        const int rows = std::min<size_t>(PIXELS, at.in.size() - p);
        const Block run = wide ? block_of<2>(rows, sizes) : block_of<1>(rows, sizes);
        run(at, p, in, op.channels_in, panel, out, first, used, ends);
        ahead.step();
      }
      panel += taps * op.channels_in * (wide ? PANEL : LANES);
    }
  }
}

}  // namespace
