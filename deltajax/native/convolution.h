// Convolutions: blocks of positions x channels in registers, tap by tap, input by input.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

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

// `taps` x `channels` products for MR positions and NV vectors of channels, of which the first is `first`.
template <int MR, int NV>
void block(const float* const* positions, const int64_t* offsets, const int64_t* kernels, int64_t taps, int64_t channels,
           const float* panel, float* const* results, int64_t first, int64_t used, const Ends& ends) {
  Vector sums[MR][NV];
  for (int v = 0; v < NV; ++v) {
    const Vector begin = ends.begin(first + v * LANES);
    for (int m = 0; m < MR; ++m) sums[m][v] = begin;
  }
  for (int64_t t = 0; t < taps; ++t) {
    const float* weights = panel + kernels[t] * channels * NV * LANES;
    const float* x[MR];
    for (int m = 0; m < MR; ++m) x[m] = positions[m] + offsets[t];
    for (int64_t c = 0; c < channels; ++c, weights += NV * LANES) {
      Vector w[NV];
      for (int v = 0; v < NV; ++v) w[v] = load(weights + v * LANES);
      for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sums[m][v] += x[m][c] * w[v];
    }
  }
  for (int m = 0; m < MR; ++m) {
    float* to = results[m] + first;
    if (used == NV * LANES) {
      for (int v = 0; v < NV; ++v) store(to + v * LANES, ends.bound(sums[m][v]));
    } else {
      float last[NV * LANES];
      for (int v = 0; v < NV; ++v) store(last + v * LANES, ends.bound(sums[m][v]));
      std::memcpy(to, last, used * sizeof(float));
    }
  }
}

using Block = void (*)(const float* const*, const int64_t*, const int64_t*, int64_t, int64_t, const float*, float* const*,
                       int64_t, int64_t, const Ends&);

template <int NV, int... MR>
constexpr Block block_of(int rows, std::integer_sequence<int, MR...>) {
  constexpr Block all[] = {block<MR + 1, NV>...};
  return all[rows - 1];
}

struct Positions {  // of one pair of phases
  std::vector<const float*> in;
  std::vector<float*> out;
  std::vector<int64_t> offsets, kernels;

  void find(const Operation& op, const View& in_view, const View& out_view, int64_t rows, int64_t cols, size_t a, size_t b) {
    in.clear(), out.clear(), offsets.clear(), kernels.clear();
    for (const Tap& y : op.row.phases[a])
      for (const Tap& x : op.col.phases[b]) {
        offsets.push_back(y.at * in_view.row + x.at * in_view.col);
        kernels.push_back(y.kernel * op.columns + x.kernel);
      }
    for (int64_t r = a, i = 0; r < rows; r += op.row.phases.size(), ++i)
      for (int64_t c = b, j = 0; c < cols; c += op.col.phases.size(), ++j) {
        in.push_back(in_view.data + i * op.row.step * in_view.row + j * op.col.step * in_view.col);
        out.push_back(out_view.data + r * out_view.row + c * out_view.col);
      }
  }
};

void convolve(const Operation& op, const View& in, const View& out, const Slot& slot, const float* packed,
              const Ends& ends) {
  static thread_local Positions at;
  const auto sizes = std::make_integer_sequence<int, PIXELS>();
  const int64_t taps = op.count;  // of the whole kernel
  for (size_t a = 0; a < op.row.phases.size(); ++a)
    for (size_t b = 0; b < op.col.phases.size(); ++b) {
      at.find(op, in, out, slot.rows, slot.cols, a, b);
      const float* panel = packed;
      for (int64_t first = 0; first < slot.channels; first += PANEL) {
        const int64_t used = std::min<int64_t>(PANEL, slot.channels - first);
        const bool wide = used > LANES;
        for (size_t p = 0; p < at.in.size(); p += PIXELS) {
          const int rows = std::min<size_t>(PIXELS, at.in.size() - p);
          const Block run = wide ? block_of<2>(rows, sizes) : block_of<1>(rows, sizes);
          run(&at.in[p], at.offsets.data(), at.kernels.data(), at.offsets.size(), op.channels_in, panel, &at.out[p], first,
              used, ends);
        }
        panel += taps * op.channels_in * (wide ? PANEL : LANES);
      }
    }
}

}  // namespace
