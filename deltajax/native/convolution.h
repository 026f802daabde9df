// Convolutions: blocks of positions x channels in registers, tap by tap, input by input.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "ahead.h"
#include "pairs.h"
#include "segment.h"
#include "vector.h"

namespace {

// What becomes of a sum: it begins with a number for each channel, and ends within bounds. NaN stays NaN. It is handed over as
// it is: behind a reference every store might change it.
struct Ends {
  const float* shift;  // nullptr: 0
  float low, high;
  template <class V = Vector>
  V begin(int64_t channel) const {
    return shift ? load<V>(shift + channel) : V{};
  }
  Ends from(int64_t channel) const { return {shift ? shift + channel : nullptr, low, high}; }
  template <class V>
  V bound(V x) const {
    const V least = all<V>(low), most = all<V>(high);
    x = least > x ? least : x;
    return most < x ? most : x;
  }
  template <class V, int N>
  void bound(V (&x)[N]) const {
    const V least = all<V>(low), most = all<V>(high);
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) x[i] = least > x[i] ? least : x[i];
    if (high == std::numeric_limits<float>::infinity()) return;  // most often: relu
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) x[i] = most < x[i] ? most : x[i];
  }
};

// Which positions are read and written, from the first of a tile on; for one pair of phases.
struct Positions {
  std::vector<int64_t> in, out, added, offsets, kernels;  // added: of what is added to the results, if anything is
  std::vector<int64_t> together;  // taps from each of these on that lie side by side, in the input and in the kernel
  bool even = false;  // whether the first four of every whole block, and the next, are equally far apart in the input
  bool threes = false;  // whether taps are three by three side by side

  Positions() = default;
  Positions(const Operation& op, const View& from, const View& to, const View* add, int64_t rows, int64_t cols, size_t a,
            size_t b) {
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
        if (add) added.push_back(r * add->row + c * add->col);
      }
    const auto& across = op.col.phases[b];
    threes = across.size() == 3 && across[1].at == across[0].at + 1 && across[2].at == across[0].at + 2;
    measure();
  }

  void measure() {
    even = true;
    for (size_t p = 0; p + PIXELS <= in.size(); p += PIXELS)
      for (int m = 1; m < PIXELS; ++m) even &= m % 4 == 0 || in[p + m] - in[p + m - 1] == in[p + 1] - in[p];
  }
};

// How wide a panel of channels is: whole vectors and at most one of half the width, as few as hold those that are used.
inline int64_t panel_of(int64_t used) {
  return used > LANES + HALF ? PANEL : used > LANES ? LANES + HALF : used > HALF ? LANES : HALF;
}

// One panel of a convolution's channels: `channels` products for each tap, those of taps side by side as one.
template <class Factors>
struct Products {
  const Positions& at;
  const float* in;
  int64_t channels;
  const float* weights;
  float* out;
  int64_t used;        // channels of the result
  Ends ends;           // their numbers, from the first of them on
  const float* added;  // what is added to them, or nullptr

  // MR positions from `position` on, and NV vectors of channels and, if so, a half. EVEN: those of each four are as far from
  // each other as the first two, and few registers say where they are. Loops over registers are unrolled before anything
  // else is made of them, and others begin with work: left to itself GCC keeps sums or weights in memory.
  template <int MR, int NV, bool AND_HALF, bool EVEN>
  void block(size_t position) const {
    constexpr int64_t width = NV * LANES + AND_HALF * HALF;
    const auto [at, in, channels, weights, out, used, ends, added] = *this;  // which no store changes
    Vector sums[MR][NV ? NV : 1];
    Half halves[MR];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      const Vector begin = ends.template begin<Vector>(v * LANES);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) sums[m][v] = begin;
    }
    if constexpr (AND_HALF) {
      const Half begin = ends.template begin<Half>(NV * LANES);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) halves[m] = begin;
    }
    const int64_t *places = at.in.data() + position, *offsets = at.offsets.data();
    const int64_t *kernels = at.kernels.data(), *together = at.together.data();
    const int64_t step = EVEN ? places[1] - places[0] : 0;
    for (int64_t t = 0, taps = at.offsets.size(); t < taps; ++t) {
      const float* weight = weights + kernels[t] * channels * width;
      const float* const end = weight + together[t] * channels * width;
      const auto products = [&](const auto& input) {
        const Vector w0 = load(weight), w1 = load(weight + (NV > 1 ? LANES : 0));
        const Half half = load<Half>(weight + NV * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const Vector x = Factors::template all<Vector>(input(m));
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) sums[m][v] = Factors::multiply_add(x, v ? w1 : w0, sums[m][v]);
          if constexpr (AND_HALF)
            halves[m] = Factors::multiply_add(NV ? half_of(x) : Factors::template all<Half>(input(m)), half, halves[m]);
        }
      };
      if constexpr (EVEN) {
        const float *x = in + places[0] + offsets[t], *y = MR > 4 ? in + places[4] + offsets[t] : x;
        do {
          products([&](int m) { return m < 4 ? x[m * step] : y[(m - 4) * step]; });
          ++x, ++y;
        } while ((weight += width) != end);
      } else {
        const float* x[MR];
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) x[m] = in + places[m] + offsets[t];
        int64_t c = 0;
        do {
          products([&](int m) { return x[m][c]; });
          ++c;
        } while ((weight += width) != end);
      }
    }
    const int64_t* to = at.out.data() + position;
    constexpr int whole = AND_HALF ? NV : NV - 1;  // vectors of which all channels are used
    const int64_t last = used - whole * LANES;     // channels of the last one
    if (added) {
      const int64_t* from = at.added.data() + position;
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        const float* x = added + from[m];
#pragma GCC unroll 2
        for (int v = 0; v < whole; ++v) sums[m][v] += load(x + v * LANES);
        x += whole * LANES;
        if constexpr (AND_HALF) halves[m] += last == HALF ? load<Half>(x) : half_of(load_part(x, last));
        else sums[m][whole] += last == LANES ? load(x) : load_part(x, last);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sums[m][v] = ends.bound(sums[m][v]);
      if constexpr (AND_HALF) halves[m] = ends.bound(halves[m]);
#pragma GCC unroll 2
      for (int v = 0; v < whole; ++v) store(out + to[m] + v * LANES, sums[m][v]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const auto value = [&] { if constexpr (AND_HALF) return halves[m]; else return sums[m][whole]; }();
      if (last == (AND_HALF ? HALF : LANES)) store(out + to[m] + whole * LANES, value);
      else store_part(out + to[m] + whole * LANES, value, last);
    }
  }

  // On its own: within its caller it leaves all that is done there too few registers.
  template <int NV, bool AND_HALF, int... MR>
  __attribute__((noinline)) void blocks(size_t count, Ahead& ahead, std::integer_sequence<int, MR...>) const {
    using Block = void (Products::*)(size_t) const;
    constexpr Block some[] = {&Products::block<MR + 1, NV, AND_HALF, false>...};
    size_t p = 0;
    for (; at.even && p + PIXELS <= count; p += PIXELS, ahead.step()) block<PIXELS, NV, AND_HALF, true>(p);
    for (; p < count; p += PIXELS, ahead.step()) (this->*some[std::min<size_t>(PIXELS, count - p) - 1])(p);
  }

  // The first `count` positions.
  void operator()(size_t count, Ahead& ahead) const {
    constexpr auto sizes = std::make_integer_sequence<int, PIXELS>();
    if (used > LANES + HALF) blocks<2, false>(count, ahead, sizes);
    else if (used > LANES) blocks<1, true>(count, ahead, sizes);
    else if (used > HALF) blocks<1, false>(count, ahead, sizes);
    else blocks<0, true>(count, ahead, sizes);
  }
};

// How many blocks that many positions of a result are.
inline int64_t blocks_of(size_t positions, int64_t channels) {
  return (positions + PIXELS - 1) / PIXELS * ((channels + PANEL - 1) / PANEL);
}

void convolve(const Operation& op, const std::vector<Positions>& phases, const float* in, float* out, int64_t channels,
              const float* packed, Ends ends, const float* added, Ahead& ahead) {
  const int64_t groups = op.code, each = channels / groups;
  for (const Positions& at : phases) {
    const float* weights = packed;
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t first = group * each, end = first + each; first < end; first += PANEL) {
        const int64_t used = std::min<int64_t>(PANEL, end - first);
        with_held(op.pairs & OF_PAIRS, [&](auto factors) {
          Products<decltype(factors)>{at, in + group * op.channels_in, op.channels_in, weights, out + first, used,
                                      ends.from(first), added ? added + first : nullptr}(at.in.size(), ahead);
        });
        weights += op.count * op.channels_in * panel_of(used);  // of all taps, of whatever phase
      }
  }
}

}  // namespace
