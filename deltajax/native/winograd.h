// Convolutions by kernels of 3x3 between many channels by fewer products, in blocks: Winograd's F(2x2, 3x3) (Lavin and Gray,
// arXiv 1509.09308, section 4.1; in its terms: U are the packed kernels, V the inputs, M the products), and the same for
// strides of 2 and for inputs spread by 2 (transposed convolutions). There every second tap meets every second input:
// two taps by F(2, 2), with three products for two results, and one by itself. And F(4x4, 3x3), where rounding in a larger
// block does no harm.
//
// What is rounded how depends on where in its block a position is: blocks must begin at the same positions in whatever
// tile they are computed. `_encode.py` and `runs_of` see to it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "ahead.h"
#include "convolution.h"
#include "pairs.h"
#include "segment.h"
#include "vector.h"

namespace {

// Along one axis of a block: of inputs, each frequency is a sum; its product is by one of KERNELS that `_packing.py` makes
// of the three taps; and results are sums of those. From one block to the next it is STEP inputs. Sums by sign alone are
// INPUT and OUTPUT.
struct Plain {
  static constexpr int STEP = 2, KERNELS = 4, INPUTS = 4, RESULTS = 2;
  static constexpr int8_t INPUT[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr int8_t KERNEL[4] = {0, 1, 2, 3};
  static constexpr int8_t OUTPUT[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};
struct Strided {
  static constexpr int STEP = 4, KERNELS = 4, INPUTS = 5, RESULTS = 2;
  static constexpr int8_t INPUT[5][5] = {
      {1, 0, -1, 0, 0}, {0, 0, 1, 0, 0}, {0, 0, -1, 0, 1}, {0, 1, 0, 0, 0}, {0, 0, 0, 1, 0}};
  static constexpr int8_t KERNEL[5] = {0, 1, 2, 3, 3};
  static constexpr int8_t OUTPUT[2][5] = {{1, 1, 0, 1, 0}, {0, 1, 1, 0, 1}};
};
struct Spread {  // the first result has two taps
  static constexpr int STEP = 2, KERNELS = 4, INPUTS = 3, RESULTS = 4;
  static constexpr int8_t INPUT[5][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}, {0, 1, 0}, {0, 0, 1}};
  static constexpr int8_t KERNEL[5] = {0, 1, 2, 3, 3};
  static constexpr int8_t OUTPUT[4][5] = {{1, 1, 0, 0, 0}, {0, 0, 0, 1, 0}, {0, 1, 1, 0, 0}, {0, 0, 0, 0, 1}};
};
struct SpreadFromOne {  // the first result has one
  static constexpr int STEP = 2, KERNELS = 4, INPUTS = 3, RESULTS = 4;
  static constexpr int8_t INPUT[5][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}, {1, 0, 0}, {0, 1, 0}};
  static constexpr int8_t KERNEL[5] = {0, 1, 2, 3, 3};
  static constexpr int8_t OUTPUT[4][5] = {{0, 0, 0, 1, 0}, {1, 1, 0, 0, 0}, {0, 0, 0, 0, 1}, {0, 1, 1, 0, 0}};
};

// F(4, 3). Where its polynomials are taken decides how it rounds: of 30 pairs of points least at +-5/8 and +-3/2, twice as
// much as a direct sum; at the usual +-1 and +-2 it is four times as much.
struct Large {
  static constexpr int STEP = 4, KERNELS = 6, INPUTS = 6, RESULTS = 4;
  static constexpr int8_t KERNEL[6] = {0, 1, 2, 3, 4, 5};
  static constexpr float A = 0.625f, B = 1.5f;
};

// The sum of those that have a sign.
template <int N>
Vector sum(const int8_t (&signs)[N], const Vector (&x)[N]) {
  Vector found{};
  bool begun = false;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
    if (signs[i]) {
      found = begun ? signs[i] > 0 ? found + x[i] : found - x[i] : signs[i] > 0 ? x[i] : -x[i];
      begun = true;
    }
  return found;
}

// `to` are the frequencies of `x`, and results of these.
template <class Axis, int N, int M>
void frequencies(Axis, const Vector (&x)[N], Vector (&to)[M]) {
#pragma GCC unroll 8
  for (int f = 0; f < M; ++f) to[f] = sum(Axis::INPUT[f], x);
}
template <class Axis, int N, int M>
void results(Axis, const Vector (&x)[N], Vector (&to)[M]) {
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) to[r] = sum(Axis::OUTPUT[r], x);
}
void frequencies(Large, const Vector (&x)[6], Vector (&to)[6]) {
  constexpr float A = Large::A, B = Large::B, both = A * A * B * B, either = A * A + B * B;
  to[0] = multiply_add(all(both), x[0], multiply_add(all(-either), x[2], x[4]));
  const Vector even_a = multiply_add(all(-B * B), x[2], x[4]), odd_a = multiply_add(all(-B * B), x[1], x[3]);
  to[1] = multiply_add(all(A), odd_a, even_a);
  to[2] = multiply_add(all(-A), odd_a, even_a);
  const Vector even_b = multiply_add(all(-A * A), x[2], x[4]), odd_b = multiply_add(all(-A * A), x[1], x[3]);
  to[3] = multiply_add(all(B), odd_b, even_b);
  to[4] = multiply_add(all(-B), odd_b, even_b);
  to[5] = multiply_add(all(both), x[1], multiply_add(all(-either), x[3], x[5]));
}
void results(Large, const Vector (&x)[6], Vector (&to)[4]) {
  constexpr float A = Large::A, B = Large::B;
  const Vector even_a = x[1] + x[2], odd_a = x[1] - x[2], even_b = x[3] + x[4], odd_b = x[3] - x[4];
  to[0] = x[0] + (even_a + even_b);
  to[1] = multiply_add(all(A), odd_a, all(B) * odd_b);
  to[2] = multiply_add(all(A * A), even_a, all(B * B) * even_b);
  to[3] = multiply_add(all(A * A * A), odd_a, multiply_add(all(B * B * B), odd_b, x[5]));
}

// `work` with that of the number `code`, as `_packing.py` counts them.
template <class Work>
auto with_blocks(int64_t code, const Work& work) {
  switch (code) {
    case 0: return work(Plain());
    case 1: return work(Strided());
    case 2: return work(Spread());
    case 3: return work(SpreadFromOne());
    default: return work(Large());
  }
}

constexpr size_t BLOCKS = 2 * PIXELS;  // done together: as many as find the kernels in the nearest cache

// From one frequency to the next, in floats; a power of two would put all of them into one place of the cache.
inline int64_t inputs_apart(int64_t channels) { return BLOCKS * channels + LANES; }
constexpr int64_t PRODUCTS_APART = BLOCKS * PANEL + LANES;

// Of one frequency: the blocks' inputs, and their products by a panel.
Positions block_positions(int64_t channels_in, bool pairs) {
  const int64_t terms = with_held(pairs, [&](auto factors) { return factors.terms(channels_in); });
  Positions at;
  at.offsets = at.kernels = {0};
  at.together = {1};
  for (size_t m = 0; m < BLOCKS; ++m) {
    at.in.push_back(m * terms);
    at.out.push_back(m * PANEL);
  }
  at.measure();
  return at;
}

// What a tile's blocks read, where their results are put, and what is added to these, or of nothing.
struct BlockViews {
  View from, to, added;
};

template <class Axis>
class Winograd {
 public:
  static constexpr int FREQUENCIES = sizeof Axis::KERNEL, INPUTS = Axis::INPUTS, RESULTS = Axis::RESULTS;  // of one axis

  static int64_t blocks(const Slot& out) { return out.rows / RESULTS * (out.cols / RESULTS); }
  static int64_t scratch(int64_t channels_in) { return ALL * (inputs_apart(channels_in) + PRODUCTS_APART); }
  static int64_t steps(const Slot& out, int64_t tiles) { return ALL * blocks_of(tiles * blocks(out), out.channels); }

  // The blocks of `count` tiles one after the other. `packed`: for each panel of channels all kernels.
  // `Held`: how they lie where they are read.
  template <class Factors, class Held>
  static void run(Factors, Held, const Operation& op, const Positions& at, const BlockViews* tiles, size_t count,
                  const Slot& slot, const float* packed, Ends ends, float* scratch, Ahead& ahead) {
    const int64_t inputs = op.channels_in, terms = Factors::terms(inputs), apart = inputs_apart(terms);
    const int64_t across = slot.cols / RESULTS;
    const size_t of_each = blocks(slot), all = count * of_each;
    float* const products = scratch + ALL * apart;
    const Ends none{nullptr, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
    struct {
      const BlockViews* tile;
      int64_t row, col;
    } place[BLOCKS];
    for (size_t first = 0; first < all; first += BLOCKS) {
      const size_t blocks = std::min(BLOCKS, all - first);
      for (size_t m = 0; m < blocks; ++m) {
        const int64_t tile = (first + m) / of_each, block = (first + m) % of_each;
        place[m] = {tiles + tile, block / across, block % across};
        const View from = place[m].tile->from.at(place[m].row * Axis::STEP, place[m].col * Axis::STEP, 0);
        const float* in = from.data;
        float* v = scratch + m * terms;
        int64_t i = 0;
        for (; i + LANES <= inputs; i += LANES, v += Factors::terms(LANES))
          transform(in + Held::terms(i), from, v, apart, [](const float* x) { return Held::get(x); },
                    [](float* x, Vector value) { Factors::put(x, value); });
        if (const int64_t rest = inputs - i)
          transform(in + Held::terms(i), from, v, apart, [rest](const float* x) { return Held::get(x, rest); },
                    [rest](float* x, Vector value) { Factors::put(x, value, rest); });
      }
      const float* weights = packed;
      for (int64_t channel = 0; channel < slot.channels; channel += PANEL) {
        const int64_t used = std::min<int64_t>(PANEL, slot.channels - channel);
        const int64_t width = panel_of(used);
        for (int f = 0; f < ALL; ++f) {
          const int kernel = Axis::KERNELS * Axis::KERNEL[f / FREQUENCIES] + Axis::KERNEL[f % FREQUENCIES];
          Products<Factors>{at, scratch + f * apart, terms, weights + kernel * terms * width,
                            products + f * PRODUCTS_APART, width, none, nullptr}(blocks, ahead);
        }
        weights += Axis::KERNELS * Axis::KERNELS * terms * width;
        for (size_t m = 0; m < blocks; ++m) {
          const auto [tile, row, col] = place[m];
          const View to = tile->to.at(row * RESULTS, col * RESULTS, channel);
          const View added = tile->added.at(row * RESULTS, col * RESULTS, channel);
          for (int64_t k = 0; k < used; k += LANES)
            write(products + m * PANEL + k, to.at(0, 0, k), added.at(0, 0, k), ends.from(channel + k), used - k);
        }
      }
    }
  }

 private:
  static constexpr int ALL = FREQUENCIES * FREQUENCIES;

  // V = B^T d B of one block and one vector of channels: `in` is the first of its positions.
  template <class Load, class Store>
  static void transform(const float* in, const View& from, float* to, int64_t apart, Load get, Store put) {
    Vector rows[FREQUENCIES][INPUTS];  // B^T d
#pragma GCC unroll 8
    for (int c = 0; c < INPUTS; ++c) {
      Vector d[INPUTS], found[FREQUENCIES];
#pragma GCC unroll 8
      for (int r = 0; r < INPUTS; ++r) d[r] = get(in + r * from.row + c * from.col);
      frequencies(Axis(), d, found);
#pragma GCC unroll 8
      for (int f = 0; f < FREQUENCIES; ++f) rows[f][c] = found[f];
    }
#pragma GCC unroll 8
    for (int f = 0; f < FREQUENCIES; ++f) {
      Vector found[FREQUENCIES];
      frequencies(Axis(), rows[f], found);
#pragma GCC unroll 8
      for (int g = 0; g < FREQUENCIES; ++g) put(to + (FREQUENCIES * f + g) * apart, found[g]);
    }
  }

  // A^T M A of one block and one vector of channels, `used` of which are written.
  static void write(const float* products, const View& to, const View& added, Ends ends, int64_t used) {
    Vector rows[RESULTS][FREQUENCIES];  // A^T M
#pragma GCC unroll 8
    for (int g = 0; g < FREQUENCIES; ++g) {
      Vector m[FREQUENCIES], found[RESULTS];
#pragma GCC unroll 8
      for (int f = 0; f < FREQUENCIES; ++f) m[f] = load(products + (FREQUENCIES * f + g) * PRODUCTS_APART);
      results(Axis(), m, found);
#pragma GCC unroll 8
      for (int r = 0; r < RESULTS; ++r) rows[r][g] = found[r];
    }
    const Vector shift = ends.begin(0);
#pragma GCC unroll 8
    for (int r = 0; r < RESULTS; ++r) {
      Vector found[RESULTS];
      results(Axis(), rows[r], found);
#pragma GCC unroll 8
      for (int c = 0; c < RESULTS; ++c) {
        Vector x = found[c] + shift;
        if (added.data) {
          const float* from = added.at(r, c, 0).data;
          x += used >= LANES ? load(from) : load_part(from, used);
        }
        x = ends.bound(x);
        if (used >= LANES) store(to.at(r, c, 0).data, x);
        else store_part(to.at(r, c, 0).data, x, used);
      }
    }
  }
};

}  // namespace
