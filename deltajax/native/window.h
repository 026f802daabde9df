// What is done channel by channel over a window: depthwise convolutions and pools.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "convolution.h"
#include "pairs.h"
#include "segment.h"
#include "vector.h"

namespace {

// What a result begins with, what becomes of what is read, and how that joins what there is.
struct AsStored {
  template <class V>
  static V taken(V x) { return x; }
};
struct MultiplyAdd : AsStored {
  template <class V>
  static V begin(V shift) { return shift; }
  template <class V>
  static V join(V sum, V x, V w) { return multiply_add(x, w, sum); }
};
struct MultiplyAddRectified : MultiplyAdd {
  template <class V>
  static V taken(V x) { return V{} > x ? V{} : x; }
};
struct Maximum : AsStored {
  template <class V>
  static V begin(V) { return V{} - std::numeric_limits<float>::infinity(); }
  template <class V>
  static V join(V best, V x, V) { return (best >= x) | (best != best) ? best : x; }
};
struct Minimum : AsStored {
  template <class V>
  static V begin(V) { return V{} + std::numeric_limits<float>::infinity(); }
  template <class V>
  static V join(V best, V x, V) { return (best <= x) | (best != best) ? best : x; }
};
struct Add : AsStored {
  template <class V>
  static V begin(V) { return V{}; }
  template <class V>
  static V join(V sum, V x, V) { return sum + x; }
};

// One row of results, and one vector of channels. Inputs and results are floats apart from one column to the next, weights
// from one tap to the next. Held: how inputs lie.
template <class Rule, class Held, class V>
struct Row {
  const Positions& places;
  int64_t in_apart, out_apart, weights_apart, step;  // step: of the window, in columns

  // NC results. SHARED: taps are three by three side by side, and results so many columns apart, or 0: what they have in
  // common is read once.
  template <int NC, int SHARED>
  __attribute__((noinline)) void some(const float* in, const float* weights, float* out, int64_t channel, Ends ends) const {
    const int64_t *offsets = places.offsets.data(), *kernels = places.kernels.data();
    const int64_t from_in = in_apart, from_out = out_apart, from_weight = weights_apart;  // no store changes these
    const auto weight = [&](int64_t t) { return weights ? load<V>(weights + kernels[t] * from_weight) : V{}; };
    V found[NC];
#pragma GCC unroll 16
    for (int j = 0; j < NC; ++j) found[j] = Rule::begin(ends.begin<V>(channel));
    for (int64_t t = 0, taps = places.offsets.size(); t < taps;) {
      const float* from = in + offsets[t];
      if constexpr (SHARED) {
        V x[(NC - 1) * SHARED + 3];
#pragma GCC unroll 32
        for (int i = 0; i < (NC - 1) * SHARED + 3; ++i) x[i] = Rule::taken(Held::template get<V>(from + i * from_in));
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k, ++t) {
          const V w = weight(t);
#pragma GCC unroll 16
          for (int j = 0; j < NC; ++j) found[j] = Rule::join(found[j], x[j * SHARED + k], w);
        }
      } else {
        const V w = weight(t++);
#pragma GCC unroll 16
        for (int j = 0; j < NC; ++j) found[j] = Rule::join(found[j], Rule::taken(Held::template get<V>(from + j * step * from_in)), w);
      }
    }
    ends.bound(found);
#pragma GCC unroll 16
    for (int j = 0; j < NC; ++j, out += from_out) store(out, found[j]);
  }

  template <int SHARED>
  void all(int64_t cols, const float* in, const float* weights, float* out, int64_t channel, Ends ends) const {
    int64_t c = 0;
    const auto next = [&](auto count) {
      some<count(), count() == 1 ? 0 : SHARED>(in + c * step * in_apart, weights, out + c * out_apart, channel, ends);
      c += count();
    };
    if (LANES == 16)  // that many registers
      while (c + 8 <= cols) next(std::integral_constant<int, 8>());
    while (c + 4 <= cols) next(std::integral_constant<int, 4>());
    while (c < cols) next(std::integral_constant<int, 1>());
  }

  void operator()(int64_t cols, const float* in, const float* weights, float* out, int64_t channel, Ends ends) const {
    if (places.threes && step == 1) all<1>(cols, in, weights, out, channel, ends);
    else if (places.threes && step == 2) all<2>(cols, in, weights, out, channel, ends);
    else all<0>(cols, in, weights, out, channel, ends);
  }

  // NC results that lie anywhere, all with the same weights.
  template <int NC>
  __attribute__((noinline)) void apart(const float* const* in, float* const* out, const float* weights, Ends ends) const {
    const int64_t *offsets = places.offsets.data(), *kernels = places.kernels.data();
    const float* from[NC];
    V found[NC];
#pragma GCC unroll 16
    for (int j = 0; j < NC; ++j) {
      from[j] = in[j];
      found[j] = Rule::begin(ends.begin<V>(0));
    }
    for (int64_t t = 0, taps = places.offsets.size(); t < taps; ++t) {
      const V w = weights ? load<V>(weights + kernels[t] * weights_apart) : V{};
#pragma GCC unroll 16
      for (int j = 0; j < NC; ++j) found[j] = Rule::join(found[j], Rule::taken(Held::template get<V>(from[j] + offsets[t])), w);
    }
    ends.bound(found);
#pragma GCC unroll 16
    for (int j = 0; j < NC; ++j) store(out[j], found[j]);
  }

  // Rows of so few results that they would wait for their own sums: those of several rows together.
  void rows(const Operation& op, const View& in, const View& out, int64_t count, int64_t across, const float* weights,
            Ends ends) const {
    constexpr int MOST = LANES == 16 ? 8 : 4;
    const float* from[MOST];
    float* to[MOST];
    int held = 0;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t v = 0; v < across; ++v) {
        from[held] = in.data + r * op.row.step * in.row + v * in_apart;
        to[held] = out.data + r * out.row + v * out_apart;
        if (++held == MOST) {
          apart<MOST>(from, to, weights, ends);
          held = 0;
        }
      }
    int done = 0;
    for (; done + 4 <= held; done += 4) apart<4>(from + done, to + done, weights, ends);
    for (; done < held; ++done) apart<1>(from + done, to + done, weights, ends);
  }

  // Results that fill no vector: `count` floats.
  void part(int64_t count, const float* in, const float* weights, float* out, int64_t channel, Ends ends) const {
    Vector found = Rule::begin(ends.shift ? load_part(ends.shift + channel, count) : Vector{});
    for (size_t t = 0; t < places.offsets.size(); ++t)
      found = Rule::join(found, Rule::taken(Held::get(in + places.offsets[t], count)),
                         weights ? load_part(weights + places.kernels[t] * weights_apart, count) : Vector{});
    store_part(out, ends.bound(found), count);
  }
};

// Weights `[taps, channels]` or, where channels would leave lanes empty and all lie side by side (`by_row`), `[taps, columns,
// channels]`: then a row of results is one long channel, and so is the shift.
template <class Rule, class Held>
void windows(const Operation& op, const Positions& places, const View& in, const View& out, const Slot& slot, bool by_row,
             const float* weights, Ends ends) {
  const int64_t channels = slot.channels, length = slot.cols * channels, lanes = Held::terms(LANES);
  const auto of = [&](int64_t at) { return weights ? weights + at : nullptr; };
  if (by_row && length < 4 * LANES && length % LANES == 0 && LANES % channels == 0)
    return Row<Rule, Held, Vector>{places, lanes, LANES, length, 1}.rows(op, in, out, slot.rows, length / LANES, weights, ends);
  for (int64_t r = 0; r < slot.rows; ++r) {
    const float* from = in.data + r * op.row.step * in.row;
    float* to = out.data + r * out.row;
    if (by_row) {
      const Row<Rule, Held, Vector> row{places, lanes, LANES, length, 1};
      int64_t done = 0;
      if (LANES % channels == 0) {  // all vectors have the same weights
        row.template all<0>(length / LANES, from, weights, to, 0, ends);
        done = length / LANES * LANES;
      }
      for (; done + LANES <= length; done += LANES)
        row.template some<1, 0>(from + Held::terms(done), of(done), to + done, done, ends);
      if (done < length) row.part(length - done, from + Held::terms(done), of(done), to + done, done, ends);
      continue;
    }
    const Row<Rule, Held, Vector> row{places, in.col, out.col, channels, op.col.step};
    const Row<Rule, Held, Half> half{places, in.col, out.col, channels, op.col.step};
    for (int64_t c = 0; channels < HALF && c < slot.cols; ++c)
      row.part(channels, from + c * op.col.step * in.col, weights, to + c * out.col, 0, ends);
    for (int64_t v = 0, width; channels >= HALF && v < channels; v += width) {
      width = channels < LANES || channels - v <= HALF ? HALF : LANES;
      const int64_t at = std::min(v, channels - width);  // the last vector overlaps: the same results once more
      if (width == HALF) half(slot.cols, from + Held::terms(at), of(at), to + at, at, ends);
      else row(slot.cols, from + Held::terms(at), of(at), to + at, at, ends);
    }
  }
}

}  // namespace
