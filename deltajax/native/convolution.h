// Convolutions: blocks of positions x channels in registers, tap by tap, input by input.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "ahead.h"
#include "segment.h"
#include "vector.h"

namespace {

// What becomes of a sum: it begins with a number for each channel, and ends within bounds. NaN stays NaN. It is handed over as
// it is: behind a reference every store might change it.
struct Ends {
  const float* shift;  // nullptr: 0
  float low, high;
  Vector begin(int64_t channel) const { return shift ? load(shift + channel) : Vector{}; }
  Vector bound(Vector x) const {
    const Vector least = all(low), most = all(high);
    x = least > x ? least : x;
    return most < x ? most : x;
  }
  template <int N>
  void bound(Vector (&x)[N]) const {
    const Vector least = all(low), most = all(high);
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) x[i] = least > x[i] ? least : x[i];
    if (high == std::numeric_limits<float>::infinity()) return;  // most often: relu
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) x[i] = most < x[i] ? most : x[i];
  }
};

// Which positions are read and written, from the first of a tile on; for one pair of phases.
struct Positions {
  std::vector<int64_t> in, out, offsets, kernels;
  std::vector<int64_t> together;  // taps from each of these on that lie side by side, in the input and in the kernel
  bool even = false;  // whether those of every whole block are equally far from each other in the input
  bool threes = false;  // whether taps are three by three side by side

  Positions() = default;
  Positions(const Operation& op, const View& from, const View& to, int64_t rows, int64_t cols, size_t a, size_t b) {
    for (const Tap& y : op.row.phases[a])
      for (const Tap& x : op.col.phases[b]) {
        const int64_t offset = y.at * from.row + x.at * from.col, kernel = y.kernel * op.columns + x.kernel;
        const int64_t before = together.empty() ? 0 : together.back();
        if (op.kind == CONVOLUTION && before && offset == offsets.back() + before * op.channels_in &&
            kernel == kernels.back() + before) {
          ++together.back();
          continue;
        }
        offsets.push_back(offset);
        kernels.push_back(kernel);
        together.push_back(1);
      }
    for (int64_t r = a, i = 0; r < rows; r += op.row.phases.size(), ++i)
      for (int64_t c = b, j = 0; c < cols; c += op.col.phases.size(), ++j) {
        in.push_back(i * op.row.step * from.row + j * op.col.step * from.col);
        out.push_back(r * to.row + c * to.col);
      }
    const auto& across = op.col.phases[b];
    threes = across.size() == 3 && across[1].at == across[0].at + 1 && across[2].at == across[0].at + 2;
    measure();
  }

  void measure() {
    even = true;
    for (size_t p = 0; p + PIXELS <= in.size(); p += PIXELS)
      for (int m = 1; m < PIXELS; ++m) even &= in[p + m] - in[p + m - 1] == in[p + 1] - in[p];
  }
};

// `channels` products for each tap, those side by side as one, for MR positions from `position` on and NV vectors of channels
// from `first` on. EVEN: the positions are as far from each other as the first two, and few registers say where they are.
// Loops over registers are unrolled before anything else is made of them: left to itself GCC keeps the sums in memory as well.
template <int MR, int NV, bool EVEN>
void block(const Positions& at, size_t position, const float* in, int64_t channels, const float* panel, float* out,
           int64_t first, int64_t used, Ends ends) {
  Vector sums[MR][NV];
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) {
    const Vector begin = ends.begin(first + v * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) sums[m][v] = begin;
  }
  const int64_t *places = at.in.data() + position, *offsets = at.offsets.data();
  const int64_t *kernels = at.kernels.data(), *together = at.together.data();
  const int64_t step = EVEN ? places[1] - places[0] : 0;
  for (int64_t t = 0, taps = at.offsets.size(); t < taps; ++t) {
    const float* weights = panel + kernels[t] * channels * NV * LANES;
    const float* const end = weights + together[t] * channels * NV * LANES;
    const auto products = [&](const auto& input) {
      Vector w[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) w[v] = load(weights + v * LANES);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        const Vector x = all(input(m));
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sums[m][v] = multiply_add(x, w[v], sums[m][v]);
      }
    };
    if constexpr (EVEN) {
      const float *x = in + places[0] + offsets[t], *y = x + 4 * step;
      for (; weights != end; weights += NV * LANES, ++x, ++y)
        products([&](int m) { return m < 4 ? x[m * step] : y[(m - 4) * step]; });
    } else {
      const float* x[MR];
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) x[m] = in + places[m] + offsets[t];
      for (int64_t c = 0; weights != end; weights += NV * LANES, ++c) products([&](int m) { return x[m][c]; });
    }
  }
  const int64_t last = used - (NV - 1) * LANES;  // channels of the last vector
  const int64_t* to = at.out.data() + position;
  out += first;
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) sums[m][v] = ends.bound(sums[m][v]);
    if (NV == 2) store(out + to[m], sums[m][0]);
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    float* const end = out + to[m] + (NV - 1) * LANES;
    if (last == LANES) store(end, sums[m][NV - 1]);
    else store_part(end, sums[m][NV - 1], last);
  }
}

using Block = void (*)(const Positions&, size_t, const float*, int64_t, const float*, float*, int64_t, int64_t, Ends);

template <int NV, int... MR>
constexpr Block block_of(int rows, bool even, std::integer_sequence<int, MR...>) {
  constexpr Block all[] = {block<MR + 1, NV, false>...};
  return even && rows == PIXELS ? block<PIXELS, NV, true> : all[rows - 1];
}

// How many blocks that many positions of a result are.
inline int64_t blocks_of(size_t positions, int64_t channels) {
  return (positions + PIXELS - 1) / PIXELS * ((channels + PANEL - 1) / PANEL);
}

void convolve(const Operation& op, const std::vector<Positions>& phases, const float* in, float* out, int64_t channels,
              const float* packed, Ends ends, Ahead& ahead) {
  const auto sizes = std::make_integer_sequence<int, PIXELS>();
  const int64_t taps = op.count;  // of the whole kernel
  for (const Positions& at : phases) {
    const float* panel = packed;
    for (int64_t first = 0; first < channels; first += PANEL) {
      const int64_t used = std::min<int64_t>(PANEL, channels - first);
      const bool wide = used > LANES;
      for (size_t p = 0; p < at.in.size(); p += PIXELS) {
        const int rows = std::min<size_t>(PIXELS, at.in.size() - p);
        const Block run = wide ? block_of<2>(rows, at.even, sizes) : block_of<1>(rows, at.even, sizes);
        run(at, p, in, op.channels_in, panel, out, first, used, ends);
        ahead.step();
      }
      panel += taps * op.channels_in * (wide ? PANEL : LANES);
    }
  }
}

}  // namespace
