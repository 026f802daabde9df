// What a segment is, and how it is read from the whole numbers that `_encode.py` writes.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

enum Kind : int64_t { CONVOLUTION, DEPTHWISE, POOL, ELEMENTWISE, JOIN, PART, OUTSIDE, CONVERT, TAKE, WINOGRAD, REDUCE, CHOOSE, PAIR, UNPAIR, BAND, EXCHANGE };
constexpr int64_t OF_PAIRS = 1, FROM_PAIRS = 2;  // whether products are, and whether what is read lies so
constexpr int64_t RECTIFIED = 1;  // code of a depthwise convolution that reads relu of what is there
enum PoolKind : int64_t { MAXIMUM, MINIMUM, SUM };
enum From : int64_t { TILE, CHANNELS, NUMBER, GATE };  // where an operand of an elementwise operation is

enum Type : int64_t { FLOATS, BYTES, WORDS, PAIRED };

// A tile's interval on one axis: [origin * num / den + offset, ... + length).
struct Span {
  int64_t num, den, offset, length;
  int64_t start(int64_t origin) const {  // to divide takes longer than to see that one need not
    return (den == 1 ? origin * num : origin * num / den) + offset;
  }
};

// A picture in storage: margins are zero.
struct Stored {
  int64_t array, type, rows, cols, top, left, channels, height, width;
  // rows x cols with margins; of PAIRED, two numbers in bfloat16 in the place of one: half as many channels
  bool floats() const { return type == FLOATS || type == PAIRED; }
};

struct Source {
  Stored stored;
  Span row, col;
  int64_t mask, flag;  // arrays; -1: fixed
};

// A tile of a value: the source's own memory, or a part of the scratch.
struct Slot {
  int64_t source, scratch;  // one of them is -1
  int64_t rows, cols, channels;
  Span row, col;
  int64_t height, width;  // of the whole picture
};

struct Part {
  int64_t slot, top, left;  // first row and column of the slot that is meant
};

struct Tap {
  int64_t kernel, at;  // number of the tap in the kernel; position read by the first result of the phase
};

// One axis of a window operation. Results r, r + phases, ... read the same taps, `step` positions further each time.
struct Axis {
  int64_t step;
  std::vector<std::vector<Tap>> phases;
};

struct Operand {
  int64_t from, index, top, left;
  float number;
};

struct Operation {
  int64_t kind, code, out, part, columns, channels_in, first, count, pairs;
  // Of a convolution: code: groups of channels; channels_in: of one; first: the part to add, or -1.
  Part in;
  Axis row, col;
  std::vector<Operand> operands;
  float fill;
};

struct Write {
  Part part;
  Stored stored;
  int64_t mask, flag;  // arrays
};

struct Segment {
  int64_t ny, nx, tile_rows, tile_cols, height, width, scratch, threshold, norm, far, due;
  // far: in memory, not in a cache; due: array [ny, nx] of the tiles whose turn it is, or -1
  std::vector<Source> sources;
  std::vector<int64_t> gate_flags;
  std::vector<Slot> slots;
  std::vector<Operation> operations;
  std::vector<Write> writes;
};

class Reader {
 public:
  explicit Reader(ffi::Span<const int64_t> words) : at_(words.begin()) {}
  int64_t next() { return *at_++; }
  float number() {
    int32_t bits = static_cast<int32_t>(next());
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  Span span() { int64_t a = next(), b = next(), c = next(); return {a, b, c, next()}; }
  Part part() { int64_t a = next(), b = next(); return {a, b, next()}; }
  Stored stored() {
    Stored s;
    for (int64_t* field : {&s.array, &s.type, &s.rows, &s.cols, &s.top, &s.left, &s.channels, &s.height, &s.width})
      *field = next();
    return s;
  }
  Axis axis() {
    Axis axis;
    axis.step = next();
    axis.phases.resize(next());
    for (auto& taps : axis.phases) {
      taps.resize(next());
      for (auto& tap : taps) { tap.kernel = next(); tap.at = next(); }
    }
    return axis;
  }
  Operation operation() {
    Operation op{};
    for (int64_t* field : {&op.kind, &op.code, &op.out, &op.part, &op.columns, &op.channels_in, &op.first, &op.count,
                           &op.pairs})
      *field = next();
    op.fill = number();
    op.in = part();
    op.row = axis();
    op.col = axis();
    op.operands.resize(next());
    for (auto& o : op.operands) { o.from = next(); o.index = next(); o.top = next(); o.left = next(); o.number = number(); }
    return op;
  }
  Segment segment() {
    Segment s;
    for (int64_t* field : {&s.ny, &s.nx, &s.tile_rows, &s.tile_cols, &s.height, &s.width, &s.scratch, &s.threshold,
                           &s.norm, &s.far, &s.due})
      *field = next();
    s.sources.resize(next());
    for (auto& source : s.sources) {
      source.stored = stored();
      source.row = span();
      source.col = span();
      source.mask = next();
      source.flag = next();
    }
    s.gate_flags.resize(next());
    for (auto& flag : s.gate_flags) flag = next();
    s.slots.resize(next());
    for (auto& slot : s.slots) {
      for (int64_t* field : {&slot.source, &slot.scratch, &slot.rows, &slot.cols, &slot.channels}) *field = next();
      slot.row = span();
      slot.col = span();
      slot.height = next();
      slot.width = next();
    }
    s.operations.resize(next());
    for (auto& op : s.operations) op = operation();
    s.writes.resize(next());
    for (auto& write : s.writes) { write.part = part(); write.stored = stored(); write.mask = next(); write.flag = next(); }
    return s;
  }

 private:
  const int64_t* at_;
};

}  // namespace
