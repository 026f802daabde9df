// Which positions have changed.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "pairs.h"
#include "vector.h"

namespace {

// Positions as they are now and as they were. Channels lie side by side, positions `step` floats apart in `now` and without
// a gap in `before`.
struct Compared {
  const float* now;
  int64_t step;
  float* before;
  int64_t channels, count;

  Compared part(int64_t c) const {  // from position c on, up to LANES of them
    return {now + c * step, step, before + c * channels, channels, count - c < LANES ? count - c : LANES};
  }
  uint32_t all() const { return (1u << count) - 1; }
  bool packed() const { return step == channels && LANES % channels == 0; }  // whether a vector holds whole positions
};

// `Held`: what is held, Floats or Pairs. Exactly: a bit for each position, of LANES at most, of which a channel differs.
template <class Held>
uint32_t differ(const Compared& p) {
  uint32_t found = 0;
  if (p.packed()) {
    const auto vectors = [&](auto channels) {  // a number that is known: shifts and masks are, too
      constexpr int held = LANES / channels();
      for (int64_t c = 0; c < p.count; c += held) {
        const int64_t i = c * channels(), rest = p.count * channels() - i;
        const uint32_t bits = rest < LANES ? Held::unequal(load_part(p.now + i, rest), load_part(p.before + i, rest))
                                           : Held::unequal(load(p.now + i), load(p.before + i));
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
    for (int64_t k = 0; !bits && k < whole; k += LANES) bits = Held::unequal(load(now + k), load(before + k));
    if (!bits && rest) bits = Held::unequal(load_part(now + whole, rest), load_part(before + whole, rest));
    found |= uint32_t{bits != 0} << c;
  }
  return found;
}

// Norms of a position's differences: what a lane gathers of one of them, and of two. NaN stays. What is gathered for l2 is its
// square, and is compared with `limit(tau)`.
struct Largest {
  static Vector of(Vector gap) { return gap < 0 ? -gap : gap; }
  static Vector join(Vector size, Vector other) { return (size >= other) | (size != size) ? size : other; }
};
struct Absolute {
  static Vector of(Vector gap) { return gap < 0 ? -gap : gap; }
  static Vector join(Vector size, Vector other) { return size + other; }
};
struct Squares {
  static Vector of(Vector gap) { return gap * gap; }
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

// A norm of LANES positions at most. Each has GROUP lanes of a vector, alone (GROUP = LANES) or packed with others.
template <class Held, class Norm, int GROUP>
class Sizes {
 public:
  explicit Sizes(const Compared& p) : p_(p) {
    int64_t v = 0;
    for (; v * HELD < p.count; ++v) gathered_[v] = GROUP < LANES ? packed(v) : alone(v);
    for (; v < used(); ++v) gathered_[v] = Vector{};
  }

  // A bit for each position that is above `limit`; COUNT vectors have all of them.
  template <int COUNT = GROUP>
  uint32_t above(float limit) const {
    if constexpr (COUNT > 1)
      if (used() < COUNT) return above<COUNT / 2>(limit);
    return ::above(in_turn<GROUP>(whole<COUNT>(mixture<COUNT>(0))), limit) & p_.all();
  }

 private:
  static constexpr int HELD = LANES / GROUP;  // positions of a vector

  const Compared& p_;
  Vector gathered_[GROUP];

  int64_t used() const {  // vectors: a power of two
    int64_t vectors = 1;
    while (vectors * HELD < p_.count) vectors *= 2;
    return vectors;
  }

  static Vector part(const float* now, const float* before, int64_t count) {
    return Held::template gap<Norm>(load_part(now, count), load_part(before, count));
  }
  static Vector vector(const float* now, const float* before) {
    return Held::template gap<Norm>(load(now), load(before));
  }

  Vector packed(int64_t v) const {
    const float *now = p_.now + v * LANES, *before = p_.before + v * LANES;
    const int64_t count = (p_.count - v * HELD) * GROUP;
    return count < LANES ? part(now, before, count) : vector(now, before);
  }
  Vector alone(int64_t v) const {
    const float *now = p_.now + v * p_.step, *before = p_.before + v * p_.channels;
    if (p_.channels < LANES) return part(now, before, p_.channels);
    Vector size = vector(now, before);
    int64_t k = LANES;
    for (; k + LANES <= p_.channels; k += LANES) size = Norm::join(size, vector(now + k, before + k));
    return k < p_.channels ? Norm::join(size, part(now + k, before + k, p_.channels - k)) : size;
  }

  // COUNT vectors as one, in which the v-th of them has every COUNT-th lane from the v-th on.
  template <int COUNT>
  Vector mixture(int first) const {
    if constexpr (COUNT == 1) {
      return gathered_[first];
    } else {
      constexpr int half = COUNT / 2;
      const Vector a = mixture<half>(first), b = mixture<half>(first + half);
      return Norm::join(mixed<half>(a, b), exchanged<half>(mixed<half>(b, a)));
    }
  }

  // What of a position is still in several lanes, AWAY from each other, is in each of them.
  template <int AWAY>
  static Vector whole(Vector sizes) {
    if constexpr (AWAY >= GROUP) return sizes;
    else return whole<2 * AWAY>(Norm::join(sizes, exchanged<AWAY>(sizes)));
  }
};

// A bit for each position, of LANES at most, of which what a norm gathers is above `limit`; NaN always is.
template <class Held, class Norm>
uint32_t exceed(const Compared& p, float limit) {
  if (!p.packed() || p.channels == LANES) return Sizes<Held, Norm, LANES>(p).above(limit);
  if (p.channels == LANES / 2) return Sizes<Held, Norm, LANES / 2>(p).above(limit);
  if (p.channels == LANES / 4) return Sizes<Held, Norm, LANES / 4>(p).above(limit);
  return p.channels == 2 ? Sizes<Held, Norm, 2>(p).above(limit) : Sizes<Held, Norm, 1>(p).above(limit);
}

}  // namespace
