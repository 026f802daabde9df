// Which positions of a row have changed.
#pragma once

#include <cmath>
#include <cstdint>

#include "vector.h"

namespace {

// Exactly: `found` says of each of `count` positions whether a channel differs; how many do. A position's channels lie side
// by side, positions `step` floats apart in `now` and without a gap in `before`.
int64_t differ(const float* now, int64_t step, const float* before, int64_t channels, int64_t count, uint8_t* found) {
  int64_t many = 0;
  if (step == channels && LANES % channels == 0) {  // a vector holds whole positions
    const int64_t held = LANES / channels, length = count * channels, shift = channels % LANES;
    const uint32_t own = shift ? (1u << shift) - 1 : ~0u;
    for (int64_t i = 0, c = 0; i < length; i += LANES) {
      const int64_t rest = length - i;
      uint32_t bits = rest < LANES ? unequal(load_part(now + i, rest), load_part(before + i, rest))
                                   : unequal(load(now + i), load(before + i));
      for (int64_t end = c + held < count ? c + held : count; c < end; ++c, bits >>= shift)
        many += found[c] = (bits & own) != 0;
    }
    return many;
  }
  const int64_t whole = channels - channels % LANES;
  for (int64_t c = 0; c < count; ++c, now += step, before += channels) {
    uint32_t bits = 0;
    for (int64_t k = 0; !bits && k < whole; k += LANES) bits = unequal(load(now + k), load(before + k));
    if (!bits && whole < channels)
      bits = unequal(load_part(now + whole, channels - whole), load_part(before + whole, channels - whole));
    many += found[c] = bits != 0;
  }
  return many;
}

// Norms of a position's differences, from what the lanes have gathered. NaN stays.
struct Largest {
  static Vector join(Vector size, Vector gap) { return (size >= gap) | (size != size) ? size : gap; }
  static float join(float size, float gap) { return (size >= gap) | (size != size) ? size : gap; }
  static float end(float size) { return size; }
};
struct Absolute {
  static Vector join(Vector size, Vector gap) { return size + gap; }
  static float join(float size, float gap) { return size + gap; }
  static float end(float size) { return size; }
};
struct Squares {
  static Vector join(Vector size, Vector gap) { return size + gap * gap; }
  static float join(float size, float gap) { return size + gap; }  // of lanes: squares
  static float end(float size) { return std::sqrt(size); }
};

// By more than `tau` in a norm; NaN always has.
template <class Norm>
int64_t exceed(const float* now, int64_t step, const float* before, int64_t channels, int64_t count, float tau,
               uint8_t* found) {
  int64_t many = 0;
  const int64_t whole = channels - channels % LANES;
  for (int64_t c = 0; c < count; ++c, now += step, before += channels) {
    Vector size{};
    for (int64_t k = 0; k < channels; k += LANES) {
      const Vector gap = k < whole ? load(now + k) - load(before + k)
                                   : load_part(now + k, channels - k) - load_part(before + k, channels - k);
      size = Norm::join(size, gap < 0 ? -gap : gap);
    }
    float all = 0;
    for (int lane = 0; lane < LANES; ++lane) all = Norm::join(all, size[lane]);
    many += found[c] = !(Norm::end(all) <= tau);
  }
  return many;
}

}  // namespace
