// One tile: the operations of its segment one after the other, and what of the results is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "convolution.h"
#include "elementwise.h"
#include "segment.h"
#include "vector.h"
#include "window.h"

namespace {

struct Arguments {
  const ffi::RemainingArgs& args;
  template <class T>
  T* data(int64_t index) const { return static_cast<T*>(args.get<ffi::AnyBuffer>(index).value().untyped_data()); }
  int64_t streams(int64_t index) const { return args.get<ffi::AnyBuffer>(index).value().dimensions()[0]; }
};

// Floats. What is one number for each channel lies in rows that are not longer; nor are the channels of a position.
constexpr int64_t SPREAD = 4096;

struct Worker {
  const Segment& segment;
  const std::vector<float*>& pointers;         // of all arguments
  const std::vector<int64_t>& source_streams;  // a fixed map may have fewer: they repeat
  std::vector<float> scratch, spread, wide[3];
  std::vector<std::vector<int64_t>> spread_at;  // of each operation's operands: from where in `spread`, or -1
  std::vector<std::vector<Positions>> positions;  // of each window operation, by phases
  std::vector<std::vector<float>> rows;  // of each that is done by rows: weights of each tap, then the shift; or empty
  int64_t stream = 0, y = 0, x = 0;

  Worker(const Segment& s, const std::vector<float*>& p, const std::vector<int64_t>& streams)
      : segment(s), pointers(p), source_streams(streams), scratch(s.scratch + LANES) {
    for (const Operation& op : segment.operations) {
      std::vector<int64_t> at;
      for (const Operand& o : op.operands) {
        at.push_back(-1);
        const Slot& out = segment.slots[op.out];
        const int64_t length = out.cols * out.channels;
        if (o.from == NUMBER || (o.from == CHANNELS && length <= SPREAD)) {
          at.back() = spread.size();
          const float* given = o.from == CHANNELS ? pointers[o.index] : nullptr;
          for (int64_t i = 0; i < (o.from == NUMBER ? std::min(length, SPREAD) : length); ++i)
            spread.push_back(given ? given[i % out.channels] : o.number);
        }
      }
      spread_at.push_back(std::move(at));
      positions.emplace_back();
      rows.emplace_back();
      if (op.kind == CONVOLUTION || op.kind == DEPTHWISE || op.kind == POOL) {
        const View in = strides(op.in.slot), out = strides(op.out);
        const Slot& slot = segment.slots[op.out];
        for (size_t a = 0; a < op.row.phases.size(); ++a)
          for (size_t b = 0; b < op.col.phases.size(); ++b)
            positions.back().emplace_back(op, in, out, slot.rows, slot.cols, a, b);
        if (by_row(op)) spread_row(op, slot);
      }
    }
  }

  // Whether windows are done by whole rows: where channels would leave lanes empty, and all lie side by side.
  bool by_row(const Operation& op) const {
    const int64_t channels = segment.slots[op.out].channels;
    return op.kind != CONVOLUTION && channels % LANES && channels <= 4 * LANES && op.col.step == 1 &&
           op.row.phases.size() == 1 && op.col.phases.size() == 1;
  }

  void spread_row(const Operation& op, const Slot& slot) {
    if (op.kind == POOL) return;
    for (const int64_t kernel : positions.back()[0].kernels)
      for (int64_t c = 0; c < slot.cols; ++c)
        for (int64_t k = 0; k < slot.channels; ++k) rows.back().push_back(pointers[op.argument][kernel * slot.channels + k]);
    for (int64_t c = 0; op.first && c < slot.cols; ++c)
      for (int64_t k = 0; k < slot.channels; ++k) rows.back().push_back(pointers[op.first][k]);
  }

  // A view without data.
  View strides(int64_t index) const {
    const Slot& slot = segment.slots[index];
    if (slot.source < 0) return {nullptr, slot.cols * slot.channels, slot.channels};
    const Stored& s = segment.sources[slot.source].stored;
    return {nullptr, s.cols * s.channels, s.channels};
  }

  View view(int64_t index, int64_t top, int64_t left) {
    const Slot& slot = segment.slots[index];
    View found = strides(index);
    if (slot.source >= 0) {
      const Stored& s = segment.sources[slot.source].stored;
      const int64_t first = stream % source_streams[slot.source];
      found.data = pointers[s.argument] + (first * s.rows + slot.row.start(y) + s.top + top) * found.row +
                   (slot.col.start(x) + s.left + left) * found.col;
    } else {
      found.data = scratch.data() + slot.scratch + top * found.row + left * found.col;
    }
    return found;
  }
  View view(const Part& part) { return view(part.slot, part.top, part.left); }

  const uint8_t* bytes(int64_t index, int64_t top, int64_t left, int64_t* row, int64_t* channels) {
    const Slot& slot = segment.slots[index];
    const Stored& s = segment.sources[slot.source].stored;
    *row = s.cols * s.channels;
    *channels = s.channels;
    return reinterpret_cast<const uint8_t*>(pointers[s.argument]) +
           ((stream % source_streams[slot.source]) * s.rows + slot.row.start(y) + s.top + top) * *row +
           (slot.col.start(x) + s.left + left) * *channels;
  }

  void compute() {
    const auto& ops = segment.operations;
    for (size_t i = 0; i < ops.size();) {
      const Operation& op = ops[i];
      const Slot& slot = segment.slots[op.out];
      if (op.kind == ELEMENTWISE) {  // `count` of them in a row, row by row: what they make stays in the nearest cache
        for (int64_t r = 0; r < slot.rows; ++r)
          for (int64_t k = 0; k < op.count; ++k) row(i + k, r);
        i += op.count;
        continue;
      }
      const View out = view(op.out, 0, 0);
      const bool whole_rows = (op.kind == DEPTHWISE || op.kind == POOL) && by_row(op);
      Ends ends{nullptr, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
      if (op.kind == CONVOLUTION || op.kind == DEPTHWISE)
        ends = {op.first ? pointers[op.first] : nullptr, op.operands[0].number, op.operands[1].number};
      switch (op.kind) {
        case CONVOLUTION:
          convolve(op, positions[i], view(op.in).data, out.data, slot.channels, pointers[op.argument], ends);
          break;
        case DEPTHWISE: {
          const float* weights = whole_rows ? rows[i].data() : pointers[op.argument];
          if (whole_rows && op.first) ends.shift = weights + positions[i][0].kernels.size() * slot.cols * slot.channels;
          windows<MultiplyAdd>(op, positions[i][0], view(op.in), out, slot, whole_rows, weights, ends);
          break;
        }
        case POOL:
          (op.code == MAXIMUM ? windows<Maximum> : op.code == MINIMUM ? windows<Minimum> : windows<Add>)(
              op, positions[i][0], view(op.in), out, slot, whole_rows, nullptr, ends);
          break;
        case JOIN: {  // the input's channels are those of the result from `first` on
          const View in = view(op.in);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c)
              copy(out.data + r * out.row + c * out.col + op.first, in.data + r * in.row + c * in.col, op.count);
          break;
        }
        case PART: {  // every `columns`-th of the input's channels from `first` on, of every so many positions
          const View in = view(op.in);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c) {
              const float* from = in.data + r * op.row.step * in.row + c * op.col.step * in.col + op.first;
              float* to = out.data + r * out.row + c * out.col;
              if (op.columns == 1) copy(to, from, op.count);
              else
                for (int64_t k = 0; k < op.count; ++k) to[k] = from[k * op.columns];
            }
          break;
        }
        case TAKE: {  // each result has a phase of its own, that says which position it is
          const View in = view(op.in);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c)
              copy(out.data + r * out.row + c * out.col,
                   in.data + op.row.phases[r][0].at * in.row + op.col.phases[c][0].at * in.col, op.count);
          break;
        }
        case CONVERT: {
          int64_t row, channels;
          const uint8_t* from = bytes(op.in.slot, op.in.top, op.in.left, &row, &channels);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c)
              for (int64_t k = 0; k < channels; ++k)
                out.data[r * out.row + c * channels + k] = from[r * row + c * channels + op.first + k * op.columns];
          break;
        }
        case OUTSIDE: outside(op, out, slot); break;
      }
      ++i;
    }
  }

  // What lies outside the picture is what a window finds there.
  void outside(const Operation& op, const View& out, const Slot& slot) {
    const int64_t top = slot.row.start(y), left = slot.col.start(x);
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
        from[k] = pointers[o.index] + stream * slot.channels;
        split = true;
      } else if (spread_at[index][k] >= 0) {
        from[k] = spread.data() + spread_at[index][k];
        step[k] = o.from == NUMBER ? 0 : slot.channels;
      } else {
        from[k] = pointers[o.index];
        split = true;
      }
    }
    if (!split) return elementwise(op.code, to, from[0], from[1], from[2], length);
    for (int64_t c = 0; c < slot.cols; ++c)
      elementwise(op.code, to + c * out.col, from[0] + c * step[0], from[1] ? from[1] + c * step[1] : nullptr,
                  from[2] ? from[2] + c * step[2] : nullptr, slot.channels);
  }

  // Whether a position has changed: exactly, or by more than `tau` in the segment's norm. NaN always has.
  bool differs(const float* now, const float* before, int64_t channels, float tau) const {
    if (!segment.threshold) {
      int64_t c = 0;
      for (; c + LANES <= channels; c += LANES)
        if (unequal(load(now + c), load(before + c))) return true;
      return c < channels && unequal(load_part(now + c, channels - c), load_part(before + c, channels - c));
    }
    float size = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const float gap = std::fabs(now[c] - before[c]);
      size = segment.norm == 0 ? ((size >= gap) | (size != size) ? size : gap) : size + (segment.norm == 1 ? gap : gap * gap);
    }
    if (segment.norm == 2) size = std::sqrt(size);
    return !(size <= tau);
  }

  // Writes what has changed; whether anything has.
  bool write(const Write& w, uint8_t* mask, float* stored, bool fresh, float tau, int64_t top, int64_t left) {
    const View now = view(w.part);
    const Stored& s = w.stored;
    bool any = false;
    // The last tile of an axis is moved inwards where it would leave the picture: what it overlaps is its neighbour's.
    for (int64_t r = top - y; r < segment.tile_rows; ++r)
      for (int64_t c = left - x; c < segment.tile_cols; ++c) {
        const float* from = now.data + r * now.row + c * now.col;
        float* to = stored + ((stream * s.rows + y + r + s.top) * s.cols + x + c + s.left) * s.channels;
        if (!fresh && !differs(from, to, s.channels, tau)) continue;
        copy(to, from, s.channels);
        mask[(stream * segment.height + y + r) * segment.width + x + c] = 1;
        any = true;
      }
    return any;
  }
};

}  // namespace
