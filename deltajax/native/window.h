// What is done channel by channel over a window: depthwise convolutions and pools.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "convolution.h"
#include "segment.h"
#include "vector.h"

namespace {

struct MultiplyAdd {
  static Vector begin(Vector shift) { return shift; }
  static Vector join(Vector sum, Vector x, Vector w) { return multiply_add(x, w, sum); }
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

// All results of a row whose channels lie side by side, as do the inputs': one long channel after the other. Weights and
// shift are rows as long, for each tap.
template <class Rule>
inline void windows_of_row(const float* in, const int64_t* offsets, int64_t taps, const float* weights, int64_t length,
                           float* out, const Ends& ends) {
  int64_t i = 0;
  for (; i + LANES <= length; i += LANES) {
    Vector found = Rule::begin(ends.begin(i));
    for (int64_t t = 0; t < taps; ++t)
      found = Rule::join(found, load(in + offsets[t] + i), weights ? load(weights + t * length + i) : Vector{});
    store(out + i, ends.bound(found));
  }
  if (const int64_t rest = length - i) {
    Vector found = Rule::begin(ends.shift ? load_part(ends.shift + i, rest) : Vector{});
    for (int64_t t = 0; t < taps; ++t)
      found = Rule::join(found, load_part(in + offsets[t] + i, rest),
                         weights ? load_part(weights + t * length + i, rest) : Vector{});
    store_part(out + i, ends.bound(found), rest);
  }
}

// Weights `[taps, channels]` or, `by_row`, of each tap of `places` for a row of results.
template <class Rule>
void windows(const Operation& op, const Positions& places, const View& in, const View& out, const Slot& slot, bool by_row,
             const float* weights, const Ends& ends) {
  constexpr int NC = 4;
  const int64_t channels = slot.channels, step = op.col.step * in.col, taps = places.offsets.size();
  const int64_t *offsets = places.offsets.data(), *kernels = places.kernels.data();
  for (int64_t r = 0; r < slot.rows; ++r) {
    const float* row = in.data + r * op.row.step * in.row;
    if (by_row) {
      windows_of_row<Rule>(row, offsets, taps, weights, slot.cols * channels, out.data + r * out.row, ends);
      continue;
    }
    for (int64_t c = 0; c < slot.cols; c += NC) {
      const int64_t count = std::min<int64_t>(NC, slot.cols - c);
      const float* from = row + c * step;
      float* to = out.data + r * out.row + c * out.col;
      if (channels < LANES) {
        for (int64_t j = 0; j < count; ++j) {
          Vector found = Rule::begin(ends.shift ? load_part(ends.shift, channels) : Vector{});
          for (int64_t t = 0; t < taps; ++t)
            found = Rule::join(found, load_part(from + j * step + offsets[t], channels),
                               weights ? load_part(weights + kernels[t] * channels, channels) : Vector{});
          store_part(to + j * out.col, ends.bound(found), channels);
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
}

}  // namespace
