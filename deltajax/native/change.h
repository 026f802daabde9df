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

// Norms of a position's differences: each lane gathers some of them, then lanes are joined. NaN stays.
struct Largest {
  static Vector add(Vector size, Vector gap) { return join(size, gap); }
  static Vector join(Vector size, Vector other) { return (size >= other) | (size != size) ? size : other; }
  static Vector end(Vector size) { return size; }
};
struct Absolute {
  static Vector add(Vector size, Vector gap) { return size + gap; }
  static Vector join(Vector size, Vector other) { return size + other; }
  static Vector end(Vector size) { return size; }
};
struct Squares {
  static Vector add(Vector size, Vector gap) { return size + gap * gap; }
  static Vector join(Vector size, Vector other) { return size + other; }
  static Vector end(Vector size) { return root(size); }
};

// In every lane the norm of all of its group of so many lanes, a power of two.
template <class Norm>
Vector over_groups(Vector size, int64_t lanes) {
  for (int away = 1; away < lanes; away *= 2) size = Norm::join(size, exchanged(size, away));
  return Norm::end(size);
}

// By more than `tau` in a norm; NaN always has.
template <class Norm>
int64_t exceed(const float* now, int64_t step, const float* before, int64_t channels, int64_t count, float tau,
               uint8_t* found) {
  int64_t many = 0;
  const auto gap = [&](int64_t at, int64_t rest) {
    const Vector apart = rest < LANES ? load_part(now + at, rest) - load_part(before + at, rest)
                                      : load(now + at) - load(before + at);
    return apart < 0 ? -apart : apart;
  };
  if (step == channels && LANES % channels == 0) {  // a vector holds whole positions
    const int64_t held = LANES / channels, length = count * channels;
    for (int64_t i = 0, c = 0; i < length; i += LANES) {
      uint32_t bits = above(over_groups<Norm>(Norm::add(Vector{}, gap(i, length - i)), channels), tau);
      for (int64_t end = c + held < count ? c + held : count; c < end; ++c, bits >>= channels)
        many += found[c] = bits & 1;
    }
    return many;
  }
  for (int64_t c = 0; c < count; ++c, now += step, before += channels) {
    Vector size{};
    for (int64_t k = 0; k < channels; k += LANES) size = Norm::add(size, gap(k, channels - k));
    many += found[c] = above(over_groups<Norm>(size, LANES), tau) & 1;
  }
  return many;
}

}  // namespace
