// What is done channel by channel over a window: depthwise convolutions and pools.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "convolution.h"
#include "segment.h"
#include "vector.h"

namespace {

struct MultiplyAdd {
  static Vector begin(Vector shift) { return shift; }
  static Vector join(Vector sum, Vector x, Vector w) { return sum + x * w; }
};
struct Maximum {
  static Vector begin(Vector) { return Vector{} - std::numeric_limits<float>::infinity(); }
  static Vector join(Vector best, Vector x, Vector) { return (best >= x) | (best != best) ? best : x; }
};
struct Minimum {
  static Vector begin(Vector) { return Vector{} + std::numeric_limits<float>::infinity(); }
  static Vector join(Vector best, Vector x, Vector) { return (best <= x) | (best != best) ? best : x; }
};
struct Add {
  static Vector begin(Vector) { return Vector{}; }
  static Vector join(Vector sum, Vector x, Vector) { return sum + x; }
};

// NC results of one row, and one vector of channels.
template <class Rule, int NC>
inline void window(const float* in, int64_t step, const int64_t* offsets, const int64_t* kernels, int64_t taps,
                   const float* weights, int64_t channels, float* out, int64_t out_step, int64_t channel,
                   const Ends& ends) {
  Vector found[NC];
  for (int j = 0; j < NC; ++j) found[j] = Rule::begin(ends.begin(channel));
  for (int64_t t = 0; t < taps; ++t) {
    const Vector w = weights ? load(weights + kernels[t] * channels) : Vector{};
    for (int j = 0; j < NC; ++j) found[j] = Rule::join(found[j], load(in + j * step + offsets[t]), w);
  }
  for (int j = 0; j < NC; ++j) store(out + j * out_step, ends.bound(found[j]));
}

template <class Rule>
void windows(const Operation& op, const View& in, const View& out, const Slot& slot, const float* weights,
             const Ends& ends) {
  constexpr int NC = 4;
  const int64_t channels = slot.channels, step = op.col.step * in.col;
  int64_t offsets[512], kernels[512], taps = 0;
  for (const Tap& y : op.row.phases[0])
    for (const Tap& x : op.col.phases[0]) {
      offsets[taps] = y.at * in.row + x.at * in.col;
      kernels[taps++] = y.kernel * op.columns + x.kernel;
    }
  for (int64_t r = 0; r < slot.rows; ++r)
    for (int64_t c = 0; c < slot.cols; c += NC) {
      const int64_t count = std::min<int64_t>(NC, slot.cols - c);
      const float* from = in.data + r * op.row.step * in.row + c * step;
      float* to = out.data + r * out.row + c * out.col;
      if (channels < LANES) {  // through vectors of which only the first lanes are real
        for (int64_t j = 0; j < count; ++j) {
          float x[LANES] = {}, w[LANES] = {};
          Vector found = Rule::begin(ends.begin(0));
          for (int64_t t = 0; t < taps; ++t) {
            std::memcpy(x, from + j * step + offsets[t], channels * sizeof(float));
            if (weights) std::memcpy(w, weights + kernels[t] * channels, channels * sizeof(float));
            found = Rule::join(found, load(x), load(w));
          }
          store(x, ends.bound(found));
          std::memcpy(to + j * out.col, x, channels * sizeof(float));
        }
        continue;
      }
      for (int64_t v = 0; v < channels; v += LANES) {
        const int64_t at = std::min(v, channels - LANES);  // the last vector overlaps: the same results once more
        const float* w = weights ? weights + at : nullptr;
        if (count == NC) {
          window<Rule, NC>(from + at, step, offsets, kernels, taps, w, channels, to + at, out.col, at, ends);
        } else {
          for (int64_t j = 0; j < count; ++j)
            window<Rule, 1>(from + j * step + at, step, offsets, kernels, taps, w, channels, to + j * out.col + at, out.col,
                            at, ends);
        }
      }
    }
}

}  // namespace
