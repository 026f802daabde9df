// One tile, or several side by side as one: the operations of the segment one after the other, and what is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "ahead.h"
#include "arguments.h"
#include "change.h"
#include "convolution.h"
#include "elementwise.h"
#include "pairs.h"
#include "segment.h"
#include "vector.h"
#include "window.h"
#include "winograd.h"

namespace {

// Floats. What is one number for each channel lies in rows that are not longer; nor are the channels of a position.
constexpr int64_t SPREAD = 4096;
constexpr int64_t MOST_SCRATCH = 1 << 16;  // floats of the slots of tiles that are done together: what is near by
constexpr int64_t MANY = 256;  // floats that `memcpy` copies in less time than our own loop

// What is known of a segment before anything runs.
struct Tile {
  Segment segment;
  std::vector<View> views;  // of each slot, without data
  std::vector<std::vector<Positions>> positions;  // of each window operation, by phases
  std::vector<std::vector<int64_t>> spread_at;  // of each operation's operands: from where in `spread`, or -1
  std::vector<float> spread;  // numbers; of channels, what is to be filled in
  int64_t scratch = 0;          // floats, of a worker: the slots of all tiles, and behind them an operation's own
  std::vector<int64_t> steps;   // blocks of convolutions, of so many tiles that are done at the same time
  std::vector<Lines> reached;   // what a tile reads and overwrites: slots in place, then what is written
  int64_t lines = 0, maps = 0;  // of these
  bool blocks = false;          // whether what is computed depends on where a tile begins, within bits
  int64_t together = 1;         // tiles that are done at the same time, at most: each of few blocks would read all kernels

  explicit Tile(Segment read) : segment(std::move(read)) {
    for (const Slot& slot : segment.slots) views.push_back(strides(slot));
    for (const Operation& op : segment.operations) {
      const Slot& out = segment.slots[op.out];
      const int64_t length = out.cols * out.channels;
      spread_at.emplace_back();
      for (const Operand& o : op.operands) {
        const bool held = o.from == NUMBER || (o.from == CHANNELS && length <= SPREAD);
        spread_at.back().push_back(held ? spread.size() : -1);
        if (held) spread.insert(spread.end(), o.from == NUMBER ? std::min(length, SPREAD) : length, o.number);
      }
      positions.emplace_back();
      if (op.kind == WINOGRAD) {
        positions.back().push_back(block_positions(op.channels_in, op.pairs & OF_PAIRS));
        with_blocks(op.code, [&](auto axis) {
          using Of = Winograd<decltype(axis)>;
          scratch = std::max(scratch, Of::scratch(op.channels_in));
          together = std::max<int64_t>(together, BLOCKS / Of::blocks(out));
        });
        blocks = true;
      }
      if (op.kind == CONVOLUTION || op.kind == DEPTHWISE || op.kind == POOL)
        for (size_t a = 0; a < op.row.phases.size(); ++a)
          for (size_t b = 0; b < op.col.phases.size(); ++b)
            positions.back().emplace_back(op, views[op.in.slot], views[op.out],
                                          adds(op) ? &views[op.operands.back().index] : nullptr, out.rows, out.cols, a, b);
    }
    together = std::max<int64_t>(1, std::min(together, MOST_SCRATCH / std::max<int64_t>(1, segment.scratch)));
    scratch += together * segment.scratch;
    for (int64_t tiles = 0; tiles <= together; ++tiles) steps.push_back(steps_of(tiles));
    for (size_t i = 0; i < views.size(); ++i)
      if (in_place(i)) reach(maps++, segment.slots[i].rows, views[i].row, segment.slots[i].cols * views[i].col);
    for (const Write& write : segment.writes) {
      const Stored& s = write.stored;
      if (s.floats()) reach(maps++, segment.tile_rows, s.cols * s.channels, segment.tile_cols * s.channels);
    }
  }

  int64_t steps_of(int64_t tiles) const {
    int64_t found = 0;
    for (size_t i = 0; i < segment.operations.size(); ++i) {
      const Operation& op = segment.operations[i];
      const Slot& out = segment.slots[op.out];
      if (op.kind == WINOGRAD)
        with_blocks(op.code, [&](auto axis) { found += Winograd<decltype(axis)>::steps(out, tiles); });
      if (op.kind == CONVOLUTION)
        for (const Positions& phase : positions[i])
          found += tiles * op.code * blocks_of(phase.in.size(), out.channels / op.code);
    }
    return found;
  }

  void reach(int64_t map, int64_t rows, int64_t apart, int64_t length) {
    for (int64_t r = 0; r < rows; ++r) {
      reached.emplace_back(map, r * apart, length);
      lines += reached.back().count;
    }
  }

  // Whether a slot is read where it is stored; bytes are converted.
  bool in_place(size_t slot) const {
    const int64_t source = segment.slots[slot].source;
    return source >= 0 && segment.sources[source].stored.floats();
  }

  // Whether something is added to the results of a convolution: its last operand, behind the bounds.
  static bool adds(const Operation& op) { return op.operands.size() > 2; }

  View strides(const Slot& slot) const {
    if (slot.source < 0) return {nullptr, slot.cols * slot.channels, slot.channels};
    const Stored& s = segment.sources[slot.source].stored;
    return {nullptr, s.cols * s.channels, s.channels};
  }

  // Whether windows are done by whole rows: where channels would leave lanes empty, and all lie side by side.
  bool by_row(const Operation& op) const {
    const int64_t channels = segment.slots[op.out].channels;
    return op.kind != CONVOLUTION && channels < LANES && op.col.step == 1 &&
           op.row.phases.size() == 1 && op.col.phases.size() == 1;
  }
};

// Where a tile is computed: of which stream, from which row and column on.
struct Place {
  int64_t stream, y, x;
};

// Tiles one after the other, or some at a time, in one thread.
struct Worker {
  struct Member {
    Place here;
    std::vector<View> views;
  };

  const Tile& tile;
  const Segment& segment;
  const Arrays& arrays;                    // of the segment
  const std::vector<const float*>& parts;  // of what is fixed
  float* const slots;                      // scratch: the slots of all tiles that are done together
  float* const own;                        // of whatever operation is being done
  std::vector<Member> members;             // those tiles
  Member* at = nullptr;                    // the one that is being done
  std::vector<float> spread, wide[3], numbers;
  std::vector<std::vector<float>> rows;  // of each that is done by rows: weights of each tap, then the shift; or empty
  std::vector<uint32_t> changed;         // of a row of results, a bit for each
  std::vector<BlockViews> blocks;        // of all members
  Ahead ahead;

  // `scratch`: as many floats as the tile says, and a vector.
  Worker(const Tile& t, const Arrays& given, const std::vector<const float*>& fixed, float* scratch)
      : tile(t), segment(t.segment), arrays(given), parts(fixed), slots(scratch),
        own(scratch + t.together * t.segment.scratch), spread(t.spread), rows(t.segment.operations.size()),
        changed(t.segment.tile_cols / LANES + 1) {
    for (size_t i = 0; i < segment.operations.size(); ++i) {
      const Operation& op = segment.operations[i];
      const Slot& out = segment.slots[op.out];
      for (size_t k = 0; k < op.operands.size(); ++k)
        if (const Operand& o = op.operands[k]; o.from == CHANNELS && tile.spread_at[i][k] >= 0)
          for (int64_t c = 0; c < out.cols; ++c)
            std::copy_n(parts[o.index], out.channels, spread.data() + tile.spread_at[i][k] + c * out.channels);
      if (op.kind == DEPTHWISE && tile.by_row(op)) spread_row(op, out, tile.positions[i][0], rows[i]);
    }
  }

  void spread_row(const Operation& op, const Slot& slot, const Positions& at, std::vector<float>& row) const {
    for (const int64_t kernel : at.kernels)
      for (int64_t c = 0; c < slot.cols; ++c)
        row.insert(row.end(), parts[op.part] + kernel * slot.channels, parts[op.part] + (kernel + 1) * slot.channels);
    for (int64_t c = 0; op.first >= 0 && c < slot.cols; ++c)
      row.insert(row.end(), parts[op.first], parts[op.first] + slot.channels);
  }

  // Where the tile of a source begins.
  template <class T>
  T* begin(const Tile& of, size_t index, const Place& at) const {
    const Slot& slot = of.segment.slots[index];
    const Stored& s = of.segment.sources[slot.source].stored;
    const int64_t streams = arrays.streams(s.array);  // a fixed map may have fewer: they repeat
    const int64_t stream = at.stream < streams ? at.stream : at.stream % streams;
    return position<T>(s, stream, slot.row.start(at.y), slot.col.start(at.x));
  }
  template <class T>
  T* position(const Stored& s, int64_t stream, int64_t row, int64_t col) const {
    return arrays.data<T>(s.array, stream) + ((row + s.top) * s.cols + col + s.left) * s.channels;
  }

  // The `number`-th member is the tile there: where every slot of it is, divisions, once for all operations.
  void locate(size_t number, const Place& there) {
    while (members.size() <= number) {
      members.push_back({there, tile.views});
      for (size_t i = 0; i < tile.views.size(); ++i)
        if (segment.slots[i].source < 0)
          members.back().views[i].data = slots + (members.size() - 1) * segment.scratch + segment.slots[i].scratch;
    }
    Member& member = members[number];
    member.here = there;
    for (size_t i = 0; i < tile.views.size(); ++i)
      if (tile.in_place(i)) member.views[i].data = begin<float>(tile, i, there);
  }

  // `there(k)`: of `count` tiles of `next`, while `done` members are done.
  template <class There>
  void look_ahead(const Tile& next, size_t count, size_t done, const There& there) {
    if (!segment.far || !tile.steps[done]) return;
    auto& maps = ahead.begin(next.reached, next.lines, next.maps, count, tile.steps[done]);
    for (size_t k = 0; k < count; ++k) {
      const Place place = there(k);
      for (size_t i = 0; i < next.views.size(); ++i)
        if (next.in_place(i)) maps.push_back(begin<float>(next, i, place));
      for (const Write& write : next.segment.writes)
        if (write.stored.floats()) maps.push_back(position<float>(write.stored, place.stream, place.y, place.x));
    }
  }

  View view(int64_t index, int64_t top, int64_t left) const {
    View found = at->views[index];
    found.data += top * found.row + left * found.col;
    return found;
  }
  View view(const Part& part) const { return view(part.slot, part.top, part.left); }
  View view(const Operand& tile) const { return view(tile.index, tile.top, tile.left); }

  const uint8_t* bytes(const Part& part) const {
    const View& v = at->views[part.slot];
    return begin<uint8_t>(tile, part.slot, at->here) + part.top * v.row + part.left * v.col;
  }

  // The first `count` members.
  void compute(size_t count) {
    const auto& ops = segment.operations;
    for (size_t i = 0; i < ops.size(); i += ops[i].kind == ELEMENTWISE ? ops[i].count : 1) {
      if (ops[i].kind == WINOGRAD) {
        in_blocks(i, count);
        continue;
      }
      for (size_t k = 0; k < count; ++k) {
        at = &members[k];
        operation(i);
      }
    }
  }

  Ends ends(const Operation& op) const {
    return {op.first < 0 ? nullptr : parts[op.first], op.operands[0].number, op.operands[1].number};
  }
  View added(const Operation& op) const { return Tile::adds(op) ? view(op.operands.back()) : View{}; }

  void in_blocks(size_t index, size_t count) {
    const Operation& op = segment.operations[index];
    blocks.clear();
    for (size_t k = 0; k < count; ++k) {
      at = &members[k];
      blocks.push_back({view(op.in), view(op.out, 0, 0), added(op)});
    }
    with_blocks(op.code, [&](auto axis) {
      const auto run = [&](auto factors, auto held) {
        Winograd<decltype(axis)>::run(factors, held, op, tile.positions[index][0], blocks.data(), count,
                                      segment.slots[op.out], parts[op.part], ends(op), own, ahead);
      };
      if (op.pairs & FROM_PAIRS) run(Pairs(), Pairs());
      else with_held(op.pairs, [&](auto factors) { run(factors, Floats()); });
    });
  }

  // The one from `index` on: of elementwise ones, all of them in a row.
  void operation(size_t index) {
    const Operation& op = segment.operations[index];
    const Slot& slot = segment.slots[op.out];
    const View out = view(op.out, 0, 0);
    const bool whole_rows = (op.kind == DEPTHWISE || op.kind == POOL) && tile.by_row(op);
    const auto& positions = tile.positions[index];
    switch (op.kind) {
      case ELEMENTWISE:  // row by row: what they make stays in the nearest cache
        for (int64_t r = 0; r < slot.rows; ++r)
          for (int64_t k = 0; k < op.count; ++k) row(index + k, r);
        break;
      case CONVOLUTION:
        convolve(op, positions, view(op.in).data, out.data, slot.channels, parts[op.part], ends(op), added(op).data, ahead);
        break;
      case DEPTHWISE: {
        const float* weights = whole_rows ? rows[index].data() : parts[op.part];
        Ends how = ends(op);
        if (whole_rows && op.first >= 0) how.shift = weights + positions[0].kernels.size() * slot.cols * slot.channels;
        with_held(op.pairs, [&](auto held) {
          using Held = decltype(held);
          (op.code == RECTIFIED ? windows<MultiplyAddRectified, Held> : windows<MultiplyAdd, Held>)(
              op, positions[0], view(op.in), out, slot, whole_rows, weights, how);
        });
        break;
      }
      case POOL: {
        const float infinity = std::numeric_limits<float>::infinity();
        (op.code == MAXIMUM   ? windows<Maximum, Floats>
         : op.code == MINIMUM ? windows<Minimum, Floats>
                              : windows<Add, Floats>)(
            op, positions[0], view(op.in), out, slot, whole_rows, nullptr, {nullptr, -infinity, infinity});
        break;
      }
      case REDUCE:
        (op.code == MAXIMUM ? reduce<Maximum> : op.code == MINIMUM ? reduce<Minimum> : reduce<Add>)(
            op, view(op.in), out, slot);
        break;
      case CHOOSE: choose(op, view(op.in), out, slot); break;
      case JOIN: join(op, out, slot); break;
      case PART: part(op, out, slot); break;
      case TAKE: take(op, out, slot); break;
      case CONVERT: convert(op, out, slot); break;
      case OUTSIDE: outside(op, out, slot); break;
      case PAIR: pair(op, out, slot); break;
      case UNPAIR: unpair(op, out, slot); break;
      case BAND: band(op, out, slot); break;
      case EXCHANGE: exchange(op, out, slot); break;
    }
  }

  // Of all channels of a position one number: NaN if any of them is.
  template <class Rule>
  static void reduce(const Operation& op, const View& in, const View& out, const Slot& slot) {
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c) {
        const float* from = in.data + r * in.row + c * in.col;
        Vector lanes = Rule::begin(Vector{});
        int64_t i = 0;
        for (; i + LANES <= op.count; i += LANES) lanes = Rule::join(lanes, load(from + i), Vector{});
        float found = Rule::begin(0.0f);
        for (int lane = 0; lane < LANES; ++lane) found = Rule::join(found, lanes[lane], 0.0f);
        for (; i < op.count; ++i) found = Rule::join(found, from[i], 0.0f);
        out.data[r * out.row + c * out.col] = found;
      }
  }

  // Of all channels of a position the first that has the largest or smallest number, or NaN.
  static void choose(const Operation& op, const View& in, const View& out, const Slot& slot) {
    const float sign = op.code == MAXIMUM ? 1.0f : -1.0f;
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c) {
        const float* from = in.data + r * in.row + c * in.col;
        int64_t best = 0;
        for (int64_t i = 1; i < op.count && from[best] == from[best]; ++i)
          if (!(sign * from[i] <= sign * from[best])) best = i;
        out.data[r * out.row + c * out.col] = best;
      }
  }

  // The input's channels are those of the result from `first` on.
  void join(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c)
        copy(out.data + r * out.row + c * out.col + op.first, in.data + r * in.row + c * in.col, op.count);
  }

  // Every `columns`-th of the input's channels from `first` on, of every so many positions.
  void part(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c) {
        const float* from = in.data + r * op.row.step * in.row + c * op.col.step * in.col + op.first;
        float* to = out.data + r * out.row + c * out.col;
        if (op.columns == 1)
          copy(to, from, op.count);
        else if (op.columns == 2)  // compilers make vectors of it
          for (int64_t k = 0; k < op.count; ++k) to[k] = from[k * 2];
        else
          for (int64_t k = 0; k < op.count; ++k) to[k] = from[k * op.columns];
      }
  }

  // So many numbers in bfloat16, two in the place of one; and in float32 again.
  static void pair(float* to, const float* from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES, to += Pairs::terms(LANES)) Pairs::put(to, load(from + i));
    if (i < count) Pairs::put(to, load_part(from + i, count - i), count - i);
  }
  static void unpair(float* to, const float* from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES, from += Pairs::terms(LANES)) store(to + i, Pairs::get(from));
    if (i < count) store_part(to + i, Pairs::get(from, count - i), count - i);
  }

  // All channels of a tile.
  void pair(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    const bool whole = in.col == op.count && op.count % 2 == 0;  // a row is as one position
    const int64_t cols = whole ? 1 : slot.cols, count = whole ? slot.cols * op.count : op.count;
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        pair(out.data + r * out.row + c * out.col, in.data + r * in.row + c * in.col, count);
  }
  void unpair(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    for (int64_t r = 0; r < slot.rows; ++r)
      unpair(out.data + r * out.row, in.data + r * in.row, slot.cols * slot.channels);
  }

  // Each result has a phase of its own, that says which position it is.
  void take(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c)
        copy(out.data + r * out.row + c * out.col,
             in.data + op.row.phases[r][0].at * in.row + op.col.phases[c][0].at * in.col, op.count);
  }

  // Along one axis each result is a sum of `count` positions from its own first one on, times its own numbers; what
  // lies outside the picture, nobody uses.
  void band(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    const Slot& from = segment.slots[op.in.slot];
    const bool along = op.code == 1;  // columns
    const int64_t result = along ? slot.col.start(at->here.x) : slot.row.start(at->here.y);
    const int64_t source = along ? from.col.start(at->here.x) + op.in.left : from.row.start(at->here.y) + op.in.top;
    const int64_t last = along ? from.cols - op.in.left - 1 : from.rows - op.in.top - 1;
    const int64_t end = (along ? slot.width : slot.height) - 1, step = along ? in.col : in.row;
    const int64_t count = along ? slot.channels : slot.cols * slot.channels;  // floats that are done alike
    for (int64_t k = 0; k < (along ? slot.cols : slot.rows); ++k) {
      const float* own = parts[op.part] + std::clamp<int64_t>(result + k, 0, end) * (1 + op.count);
      const int64_t first = static_cast<int64_t>(own[0]) - source;
      for (int64_t r = 0; r < (along ? slot.rows : 1); ++r) {
        const float* there = in.data + r * in.row;
        float* to = out.data + (along ? r * out.row + k * out.col : k * out.row);
        const auto term = [&](int64_t t) { return there + std::clamp<int64_t>(first + t, 0, last) * step; };
        if (op.count == 1 && own[1] == 1.0f) {
          copy(to, term(0), count);
          continue;
        }
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) {
          Vector sum = load(term(0) + i) * own[1];
          for (int64_t t = 1; t < op.count; ++t) sum += load(term(t) + i) * own[1 + t];
          store(to + i, sum);
        }
        if (i == count) continue;
        Vector sum = load_part(term(0) + i, count - i) * own[1];
        for (int64_t t = 1; t < op.count; ++t) sum += load_part(term(t) + i, count - i) * own[1 + t];
        store_part(to + i, sum, count - i);
      }
    }
  }

  // Of channels [.., first, columns, count] the two in the middle change places.
  void exchange(const Operation& op, const View& out, const Slot& slot) const {
    const View in = view(op.in);
    const int64_t a = op.first, b = op.columns, n = op.count;
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c) {
        const float* from = in.data + r * in.row + c * in.col;
        float* to = out.data + r * out.row + c * out.col;
        for (const float* end = from + slot.channels; from < end; from += a * b * n, to += a * b * n) {
          if (n > 1) {
            for (int64_t i = 0; i < a; ++i)
              for (int64_t j = 0; j < b; ++j) copy(to + (j * a + i) * n, from + (i * b + j) * n, n);
          } else if (a == 2) {  // compilers make vectors of it
            for (int64_t j = 0; j < b; ++j) {
              to[2 * j] = from[j];
              to[2 * j + 1] = from[b + j];
            }
          } else {
            for (int64_t i = 0; i < a; ++i)
              for (int64_t j = 0; j < b; ++j) to[j * a + i] = from[i * b + j];
          }
        }
      }
  }

  void convert(const Operation& op, const View& out, const Slot& slot) const {
    const int64_t row = at->views[op.in.slot].row, channels = at->views[op.in.slot].col;
    const uint8_t* __restrict from = bytes(op.in);
    for (int64_t r = 0; r < slot.rows; ++r, from += row) {
      float* const __restrict to = out.data + r * out.row;
      if (op.columns == 1)
        for (int64_t i = 0; i < slot.cols * channels; ++i) to[i] = from[i];
      else if (op.columns == -1 && channels == 3)  // blue, green, red: compilers make vectors of it
        for (int64_t i = 0; i < slot.cols * 3; i += 3) {
          to[i] = from[i + 2];
          to[i + 1] = from[i + 1];
          to[i + 2] = from[i];
        }
      else
        for (int64_t c = 0; c < slot.cols; ++c)
          for (int64_t k = 0; k < channels; ++k) to[c * channels + k] = from[c * channels + op.first + k * op.columns];
    }
  }

  // What lies outside the picture is what a window finds there.
  void outside(const Operation& op, const View& out, const Slot& slot) const {
    const int64_t top = slot.row.start(at->here.y), left = slot.col.start(at->here.x);
    if (top >= 0 && top + slot.rows <= slot.height && left >= 0 && left + slot.cols <= slot.width) return;
    for (int64_t r = 0; r < slot.rows; ++r)
      for (int64_t c = 0; c < slot.cols; ++c)
        if (top + r < 0 || top + r >= slot.height || left + c < 0 || left + c >= slot.width)
          std::fill_n(out.data + r * out.row + c * out.col, slot.channels, op.fill);
  }

  void row(size_t index, int64_t r) {
    const Operation& op = segment.operations[index];
    const Slot& slot = segment.slots[op.out];
    const View out = view(op.out, 0, 0);
    float* to = out.data + r * out.row;
    const float* from[3] = {nullptr, nullptr, nullptr};
    int64_t step[3] = {0, 0, 0}, length = slot.cols * slot.channels;  // floats from one call to the next
    bool split = length > SPREAD;
    for (size_t k = 0; k < op.operands.size(); ++k) {
      const Operand& o = op.operands[k];
      if (o.from == TILE) {
        const View in = view(o.index, o.top, o.left);
        from[k] = in.data + r * in.row;
        step[k] = in.col;
        if (in.col < slot.channels) {  // one channel for all of them
          wide[k].resize(length);
          for (int64_t c = 0; c < slot.cols; ++c) std::fill_n(wide[k].begin() + c * slot.channels, slot.channels, from[k][c]);
          from[k] = wide[k].data();
          step[k] = slot.channels;
        }
      } else if (o.from == GATE) {
        from[k] = arrays.data<float>(o.index, at->here.stream);
        split = true;
      } else if (tile.spread_at[index][k] >= 0) {
        from[k] = spread.data() + tile.spread_at[index][k];
        step[k] = o.from == NUMBER ? 0 : slot.channels;
      } else {
        from[k] = parts[o.index];
        split = true;
      }
    }
    if (!split) return elementwise(op.code, to, from[0], from[1], from[2], length);
    for (int64_t c = 0; c < slot.cols; ++c)
      elementwise(op.code, to + c * out.col, from[0] + c * step[0], from[1] ? from[1] + c * step[1] : nullptr,
                  from[2] ? from[2] + c * step[2] : nullptr, slot.channels);
  }

  // Writes what of a member has changed, from that row and column on; whether anything has.
  bool write(size_t member, const Write& w, bool fresh, float tau, int64_t top, int64_t left) {
    at = &members[member];
    const Place& here = at->here;
    const Stored& s = w.stored;
    // The last tile of an axis is moved inwards where it would leave the picture: what it overlaps is its neighbour's.
    const int64_t first = left - here.x, count = segment.tile_cols - first;
    const View now = view(w.part);
    uint8_t* const mask = arrays.data<uint8_t>(w.mask, here.stream);
    const float limit = segment.norm == 2 ? Squares::limit(tau) : tau;
    bool any = false;
    for (int64_t r = top - here.y; r < segment.tile_rows; ++r) {
      const float* const row = now.data + r * now.row + first * now.col;
      uint8_t* const marks = mask + (here.y + r) * segment.width + left;
      const auto whole = [&](auto* before) { return write_whole(row, now.col, before, s.channels, count, marks, fresh); };
      if (s.type == BYTES) {
        any |= whole(position<uint8_t>(s, here.stream, here.y + r, left));
      } else if (s.type == WORDS) {
        any |= whole(position<int32_t>(s, here.stream, here.y + r, left));
      } else {
        const Compared given{row, now.col, position<float>(s, here.stream, here.y + r, left), s.channels, count};
        any |= s.type == PAIRED ? write_paired(given, marks, fresh, limit)
                                : write_row<Floats>(given, marks, fresh, limit);
      }
    }
    return any;
  }

  // Whole numbers, which no threshold holds back.
  template <class T>
  static bool write_whole(const float* now, int64_t step, T* before, int64_t channels, int64_t count, uint8_t* marks,
                          bool fresh) {
    bool any = false;
    for (int64_t c = 0; c < count; ++c) {
      bool changed = fresh;
      for (int64_t k = 0; k < channels; ++k) {
        const T found = static_cast<T>(static_cast<int32_t>(now[c * step + k]));
        T& held = before[c * channels + k];
        changed |= found != held;
        held = found;
      }
      marks[c] = changed;
      any |= changed;
    }
    return any;
  }

  // What is compared with pairs is what would be stored.
  bool write_paired(Compared row, uint8_t* marks, bool fresh, float limit) {
    const int64_t channels = 2 * row.channels, count = row.step == channels ? row.count : 1;  // positions at a time
    numbers.resize(row.count * row.channels);
    for (int64_t c = 0; c < row.count; c += count)
      pair(numbers.data() + c * row.channels, row.now + c * row.step, count * channels);
    row.now = numbers.data();
    row.step = row.channels;
    return write_row<Pairs>(row, marks, fresh, limit);
  }

  template <class Held>
  bool write_row(const Compared& row, uint8_t* marks, bool fresh, float limit) {
    bool any = fresh, every = true;
    for (int64_t c = 0; !fresh && c < row.count; c += LANES) {
      const Compared p = row.part(c);
      const uint32_t bits = !segment.threshold  ? differ<Held>(p)
                            : segment.norm == 0 ? exceed<Held, Largest>(p, limit)
                            : segment.norm == 1 ? exceed<Held, Absolute>(p, limit)
                                                : exceed<Held, Squares>(p, limit);
      changed[c / LANES] = bits;
      any |= bits != 0;
      every &= bits == p.all();
    }
    if (every && row.step == row.channels) {
      const int64_t floats = row.count * row.channels;
      if (floats <= MANY) copy(row.before, row.now, floats);
      else std::memcpy(row.before, row.now, floats * sizeof(float));
      std::memset(marks, 1, row.count);
    } else if (any) {
      for (int64_t c = 0; c < row.count; c += LANES) {
        const Compared p = row.part(c);
        write_some(p, every ? p.all() : changed[c / LANES], marks + c);
      }
    }
    return any;
  }

  // The positions whose bits are set; those side by side at a time.
  static void write_some(const Compared& p, uint32_t bits, uint8_t* marks) {
    for (int64_t c = 0; c < p.count; ++c) marks[c] = bits >> c & 1;
    while (bits) {
      const int first = __builtin_ctz(bits), count = __builtin_ctz(~(bits >> first));
      const float* now = p.now + first * p.step;
      float* before = p.before + first * p.channels;
      if (p.step == p.channels) copy(before, now, count * p.channels);
      else for (int i = 0; i < count; ++i) copy(before + i * p.channels, now + i * p.step, p.channels);
      bits &= bits + (1u << first);  // without the first row of ones
    }
  }
};

}  // namespace
