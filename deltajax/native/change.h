// Which positions have changed.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace {

// Positions as they are now and as they were. Channels lie side by side, positions `step` floats apart in `now` and without
// a gap in `before`.
struct Pair {
  const float* now;
  int64_t step;
  float* before;
  int64_t channels, count;

  Pair part(int64_t c) const {  // from position c on, up to LANES of them
    return {now + c * step, step, before + c * channels, channels, count - c < LANES ? count - c : LANES};
  }
  uint32_t all() const { return (1u << count) - 1; }
  bool packed() const { return step == channels && LANES % channels == 0; }  // whether a vector holds whole positions
};

// Exactly: a bit for each position, of LANES at most, of which a channel differs.
uint32_t differ(const Pair& p) {
  uint32_t found = 0;
  if (p.packed()) {
    const auto vectors = [&](auto channels) {  // a number that is known: shifts and masks are, too
      constexpr int held = LANES / channels();
      for (int64_t c = 0; c < p.count; c += held) {
        const int64_t i = c * channels(), rest = p.count * channels() - i;
        const uint32_t bits = rest < LANES ? unequal(load_part(p.now + i, rest), load_part(p.before + i, rest))
                                           : unequal(load(p.now + i), load(p.before + i));
        for (int k = 0; k < held; ++k)
          found |= uint32_t{(bits >> k * channels() & ((1u << channels()) - 1)) != 0} << (c + k);
      }
    };
    if (p.channels == LANES) vectors(std::integral_constant<int, LANES>());
    else if (p.channels == LANES / 2) vectors(std::integral_constant<int, LANES / 2>());
    else if (p.channels == 4 && LANES > 4) vectors(std::integral_constant<int, 4>());
    else if (p.channels == 2) vectors(std::integral_constant<int, 2>());
    else vectors(std::integral_constant<int, 1>());
    return found;
  }
  const int64_t whole = p.channels - p.channels % LANES, rest = p.channels - whole;
  for (int64_t c = 0; c < p.count; ++c) {
    const float *now = p.now + c * p.step, *before = p.before + c * p.channels;
    uint32_t bits = 0;
    for (int64_t k = 0; !bits && k < whole; k += LANES) bits = unequal(load(now + k), load(before + k));
    if (!bits && rest) bits = unequal(load_part(now + whole, rest), load_part(before + whole, rest));
    found |= uint32_t{bits != 0} << c;
  }
  return found;
}

// Norms of a position's differences: each lane gathers some of them, then lanes are joined. NaN stays. What
// is gathered for l2 is its square, and is compared with `limit(tau)`.
struct Largest {
  static Vector add(Vector size, Vector gap) { return join(size, gap); }
  static Vector join(Vector size, Vector other) { return (size >= other) | (size != size) ? size : other; }
};
struct Absolute {
  static Vector add(Vector size, Vector gap) { return size + gap; }
  static Vector join(Vector size, Vector other) { return size + other; }
};
struct Squares {
  static Vector add(Vector size, Vector gap) { return size + gap * gap; }
  static Vector join(Vector size, Vector other) { return size + other; }
  // The largest number of which the root is at most tau: a root takes longer than all the rest. The square is three units
  // in the last place from it at most.
  static float limit(float tau) {
    const float square = tau * tau;
    if (square < FLT_MIN) return 0;
    if (square > FLT_MAX) return std::isinf(tau) ? tau : FLT_MAX;
    float most = square;
    while (std::sqrt(most) > tau) most = std::nextafter(most, 0.0f);
    const auto next = [&] { return std::nextafter(most, FLT_MAX); };
    while (most < FLT_MAX && std::sqrt(next()) <= tau) most = next();
    return most;
  }
};

// A bit for each position, of LANES at most, of which what a norm gathers is above `limit`; NaN always is.
template <class Norm>
uint32_t exceed(const Pair& p, float limit) {
  const bool packed = p.packed();
  const int64_t group = packed ? p.channels : LANES, held = LANES / group;  // lanes of a position; positions of a vector
  int64_t vectors = 1;                                                      // a power of two, `group` at most
  while (vectors * held < p.count) vectors *= 2;
  Vector sizes[LANES];
  for (int64_t v = 0; v < vectors; ++v) {
    const float* const now = p.now + v * (packed ? LANES : p.step);
    const float* const before = p.before + v * (packed ? LANES : p.channels);
    const int64_t length = packed ? (p.count - v * held) * group : v < p.count ? p.channels : 0;
    Vector size{};
    for (int64_t k = 0; k < length && (k == 0 || !packed); k += LANES) {
      const int64_t rest = length - k;
      const Vector apart = rest < LANES ? load_part(now + k, rest) - load_part(before + k, rest)
                                        : load(now + k) - load(before + k);
      size = Norm::add(size, apart < 0 ? -apart : apart);
    }
    sizes[v] = size;
  }
  // Two vectors become one, lanes with the bit `away` from the second one, until each has its own lanes in the only one.
  int64_t away = 1;
  for (; vectors > 1; vectors /= 2, away *= 2)
    for (int64_t v = 0; v < vectors / 2; ++v) {
      const Vector a = sizes[2 * v], b = sizes[2 * v + 1];
      sizes[v] = Norm::join(mixed(a, b, away), exchanged(mixed(b, a, away), away));
    }
  for (; away < group; away *= 2) sizes[0] = Norm::join(sizes[0], exchanged(sizes[0], away));
  const uint32_t bits = above(sizes[0], limit);
  if (held == 1) return bits & p.all();
  uint32_t found = 0;
  for (int64_t v = 0, c = 0; c < p.count; ++v)
    for (int64_t k = 0; k < held; ++k, ++c) found |= (bits >> (k * group + v) & 1) << c;
  return found & p.all();
}

}  // namespace
