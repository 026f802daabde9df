// Convolutions by kernels of 3x3 between many channels by fewer products, in blocks: Winograd's F(2x2, 3x3) (Lavin and Gray,
// arXiv 1509.09308, section 4.1; in its terms: U are the packed kernels, V the inputs, M the products), and the same for
// strides of 2 and for inputs spread by 2 (transposed convolutions). There every second tap meets every second input:
// two taps by F(2, 2), with three products for two results, and one by itself.
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
#include "segment.h"
#include "vector.h"

namespace {

// Along one axis of a block: of inputs, each frequency is a sum with signs; its product is by one of four kernels that
// `_packing.py` makes of the three taps; and results are sums of those. From one block to the next it is STEP inputs.
struct Plain {
  static constexpr int STEP = 2;
  static constexpr int8_t INPUT[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr int8_t KERNEL[4] = {0, 1, 2, 3};
  static constexpr int8_t OUTPUT[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};
struct Strided {
  static constexpr int STEP = 4;
  static constexpr int8_t INPUT[5][5] = {
      {1, 0, -1, 0, 0}, {0, 0, 1, 0, 0}, {0, 0, -1, 0, 1}, {0, 1, 0, 0, 0}, {0, 0, 0, 1, 0}};
  static constexpr int8_t KERNEL[5] = {0, 1, 2, 3, 3};
  static constexpr int8_t OUTPUT[2][5] = {{1, 1, 0, 1, 0}, {0, 1, 1, 0, 1}};
};
struct Spread {  // the first result has two taps
  static constexpr int STEP = 2;
  static constexpr int8_t INPUT[5][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}, {0, 1, 0}, {0, 0, 1}};
  static constexpr int8_t KERNEL[5] = {0, 1, 2, 3, 3};
  static constexpr int8_t OUTPUT[4][5] = {{1, 1, 0, 0, 0}, {0, 0, 0, 1, 0}, {0, 1, 1, 0, 0}, {0, 0, 0, 0, 1}};
};
struct SpreadFromOne {  // the first result has one
  static constexpr int STEP = 2;
  static constexpr int8_t INPUT[5][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}, {1, 0, 0}, {0, 1, 0}};
  static constexpr int8_t KERNEL[5] = {0, 1, 2, 3, 3};
  static constexpr int8_t OUTPUT[4][5] = {{0, 0, 0, 1, 0}, {1, 1, 0, 0, 0}, {0, 0, 0, 0, 1}, {0, 1, 1, 0, 0}};
};

// `work` with that of the number `code`, as `_packing.py` counts them.
template <class Work>
auto with_blocks(int64_t code, const Work& work) {
  switch (code) {
    case 0: return work(Plain());
    case 1: return work(Strided());
    case 2: return work(Spread());
    default: return work(SpreadFromOne());
  }
}

constexpr size_t BLOCKS = 2 * PIXELS;  // done together: as many as find the kernels in the nearest cache

// From one frequency to the next, in floats; a power of two would put all of them into one place of the cache.
inline int64_t inputs_apart(int64_t channels) { return BLOCKS * channels + LANES; }
constexpr int64_t PRODUCTS_APART = BLOCKS * PANEL + LANES;

// Of one frequency: the blocks' inputs, and their products by a panel.
Positions block_positions(int64_t channels_in) {
  Positions at;
  at.offsets = at.kernels = {0};
  at.together = {1};
  for (size_t m = 0; m < BLOCKS; ++m) {
    at.in.push_back(m * channels_in);
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
  static constexpr int FREQUENCIES = sizeof Axis::KERNEL, INPUTS = sizeof Axis::INPUT / FREQUENCIES,
                       RESULTS = sizeof Axis::OUTPUT / FREQUENCIES;  // of one axis

  static int64_t blocks(const Slot& out) { return out.rows / RESULTS * (out.cols / RESULTS); }
  static int64_t scratch(int64_t channels_in) { return ALL * (inputs_apart(channels_in) + PRODUCTS_APART); }
  static int64_t steps(const Slot& out, int64_t tiles) { return ALL * blocks_of(tiles * blocks(out), out.channels); }

  // The blocks of `count` tiles one after the other. `packed`: for each panel of channels the 4x4 kernels.
  static void run(const Operation& op, const Positions& at, const BlockViews* tiles, size_t count, const Slot& slot,
                  const float* packed, Ends ends, float* scratch, Ahead& ahead) {
    const int64_t inputs = op.channels_in, apart = inputs_apart(inputs), across = slot.cols / RESULTS;
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
        float* v = scratch + m * inputs;
        int64_t i = 0;
        for (; i + LANES <= inputs; i += LANES)
          transform(in + i, from, v + i, apart, [](const float* x) { return load(x); },
                    [](float* x, Vector value) { store(x, value); });
        if (const int64_t rest = inputs - i)
          transform(in + i, from, v + i, apart, [rest](const float* x) { return load_part(x, rest); },
                    [rest](float* x, Vector value) { store_part(x, value, rest); });
      }
      const float* weights = packed;
      for (int64_t channel = 0; channel < slot.channels; channel += PANEL) {
        const int64_t used = std::min<int64_t>(PANEL, slot.channels - channel);
        const int64_t width = panel_of(used);
        for (int f = 0; f < ALL; ++f) {
          const int kernel = 4 * Axis::KERNEL[f / FREQUENCIES] + Axis::KERNEL[f % FREQUENCIES];
          Products{at, scratch + f * apart, inputs, weights + kernel * inputs * width, products + f * PRODUCTS_APART,
                   width, none, nullptr}(blocks, ahead);
        }
        weights += 4 * 4 * inputs * width;
        for (size_t m = 0; m < blocks; ++m) {
          const auto [tile, row, col] = place[m];
          const View to = tile->to.at(row * RESULTS, col * RESULTS, channel);
          const View added = tile->added.at(row * RESULTS, col * RESULTS, channel);
          for (int64_t k = 0; k < used; k += LANES)
            results(products + m * PANEL + k, to.at(0, 0, k), added.at(0, 0, k), ends.from(channel + k), used - k);
        }
      }
    }
  }

 private:
  static constexpr int ALL = FREQUENCIES * FREQUENCIES;

  template <int N>
  static Vector sum(const int8_t (&signs)[N], const Vector (&x)[N]) {
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

  // V = B^T d B of one block and one vector of channels: `in` is the first of its positions.
  template <class Load, class Store>
  static void transform(const float* in, const View& from, float* to, int64_t apart, Load get, Store put) {
    Vector rows[FREQUENCIES][INPUTS];  // B^T d
#pragma GCC unroll 8
    for (int c = 0; c < INPUTS; ++c) {
      Vector d[INPUTS];
#pragma GCC unroll 8
      for (int r = 0; r < INPUTS; ++r) d[r] = get(in + r * from.row + c * from.col);
#pragma GCC unroll 8
      for (int f = 0; f < FREQUENCIES; ++f) rows[f][c] = sum(Axis::INPUT[f], d);
    }
#pragma GCC unroll 8
    for (int f = 0; f < FREQUENCIES; ++f)
#pragma GCC unroll 8
      for (int g = 0; g < FREQUENCIES; ++g) put(to + (FREQUENCIES * f + g) * apart, sum(Axis::INPUT[g], rows[f]));
  }

  // A^T M A of one block and one vector of channels, `used` of which are written.
  static void results(const float* products, const View& to, const View& added, Ends ends, int64_t used) {
    Vector rows[RESULTS][FREQUENCIES];  // A^T M
#pragma GCC unroll 8
    for (int g = 0; g < FREQUENCIES; ++g) {
      Vector m[FREQUENCIES];
#pragma GCC unroll 8
      for (int f = 0; f < FREQUENCIES; ++f) m[f] = load(products + (FREQUENCIES * f + g) * PRODUCTS_APART);
#pragma GCC unroll 8
      for (int r = 0; r < RESULTS; ++r) rows[r][g] = sum(Axis::OUTPUT[r], m);
    }
    const Vector shift = ends.begin(0);
#pragma GCC unroll 8
    for (int r = 0; r < RESULTS; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < RESULTS; ++c) {
        Vector found = sum(Axis::OUTPUT[c], rows[r]) + shift;
        if (added.data) {
          const float* from = added.at(r, c, 0).data;
          found += used >= LANES ? load(from) : load_part(from, used);
        }
        found = ends.bound(found);
        if (used >= LANES) store(to.at(r, c, 0).data, found);
        else store_part(to.at(r, c, 0).data, found, used);
      }
  }
};

}  // namespace
