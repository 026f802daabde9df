// One segment of a plan on tiles, in one call: which tiles the masks reach, their operations, the comparison with what
// is stored, and the write. `_encode.py` says in whole numbers what a segment is; this file does it, as `_run.py` does
// with XLA's operations.
//
// Law: what is written is, position by position, what the segment's operations give; where a position is computed (in
// which tile, on which core, beside which others) makes no difference to a single bit of it.
//
// All pictures are rows x columns x channels of float32, channels last. A *view* is part of one in memory.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Lanes of a vector, and the block of results that one pass of the convolution keeps in registers: `PIXELS` positions x
// up to two vectors of channels.
#if defined(__AVX512F__)
constexpr int LANES = 16, PIXELS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, PIXELS = 4;
#else
constexpr int LANES = 4, PIXELS = 8;
#endif
constexpr int PANEL = 2 * LANES;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float Loose __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Loose*>(to) = value; }

// ------------------------------------------------------------------------------------------ what a segment is

enum Kind : int64_t { CONVOLUTION, DEPTHWISE, POOL, ELEMENTWISE, JOIN, PART, OUTSIDE, CONVERT, TAKE };
enum PoolKind : int64_t { MAXIMUM, MINIMUM, SUM };
enum From : int64_t { TILE, CHANNELS, NUMBER, GATE };  // where an operand of an elementwise operation is

// A tile's interval on one axis: [origin * num / den + offset, ... + length).
struct Span {
  int64_t num, den, offset, length;
  int64_t start(int64_t origin) const { return origin * num / den + offset; }
};

// A picture in storage: margins are zero.
struct Stored {
  int64_t argument, type, rows, cols, top, left, channels, height, width;  // rows x cols with margins; type: 0 f32, 1 u8
};

struct Source {
  Stored stored;
  Span row, col;
  int64_t mask, flag;  // arguments; -1: fixed
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
  int64_t kind, code, out, argument, columns, channels_in, first, count;
  Part in;
  Axis row, col;
  std::vector<Operand> operands;
  float fill;
};

struct Write {
  Part part;
  Stored stored;
};

struct Segment {
  int64_t ny, nx, tile_rows, tile_cols, height, width, scratch, threshold, norm;
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
    for (int64_t* field : {&s.argument, &s.type, &s.rows, &s.cols, &s.top, &s.left, &s.channels, &s.height, &s.width})
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
    for (int64_t* field : {&op.kind, &op.code, &op.out, &op.argument, &op.columns, &op.channels_in, &op.first, &op.count})
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
                           &s.norm})
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
    for (auto& write : s.writes) { write.part = part(); write.stored = stored(); }
    return s;
  }

 private:
  const int64_t* at_;
};

// ------------------------------------------------------------------------------------------ convolutions

// What becomes of a sum: it begins with a number for each channel, and ends within bounds. NaN stays NaN.
struct Ends {
  const float* shift;  // nullptr: 0
  float low, high;
  Vector begin(int64_t channel) const { return shift ? load(shift + channel) : Vector{}; }
  Vector bound(Vector x) const {
    const Vector least = Vector{} + low, most = Vector{} + high;
    x = least > x ? least : x;
    return most < x ? most : x;
  }
};

// `taps` x `channels` products for MR positions and NV vectors of channels, of which the first is `first`.
template <int MR, int NV>
void block(const float* const* positions, const int64_t* offsets, const int64_t* kernels, int64_t taps, int64_t channels,
           const float* panel, float* const* results, int64_t first, int64_t used, const Ends& ends) {
  Vector sums[MR][NV];
  for (int v = 0; v < NV; ++v) {
    const Vector begin = ends.begin(first + v * LANES);
    for (int m = 0; m < MR; ++m) sums[m][v] = begin;
  }
  for (int64_t t = 0; t < taps; ++t) {
    const float* weights = panel + kernels[t] * channels * NV * LANES;
    const float* x[MR];
    for (int m = 0; m < MR; ++m) x[m] = positions[m] + offsets[t];
    for (int64_t c = 0; c < channels; ++c, weights += NV * LANES) {
      Vector w[NV];
      for (int v = 0; v < NV; ++v) w[v] = load(weights + v * LANES);
      for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sums[m][v] += x[m][c] * w[v];
    }
  }
  for (int m = 0; m < MR; ++m) {
    float* to = results[m] + first;
    if (used == NV * LANES) {
      for (int v = 0; v < NV; ++v) store(to + v * LANES, ends.bound(sums[m][v]));
    } else {
      float last[NV * LANES];
      for (int v = 0; v < NV; ++v) store(last + v * LANES, ends.bound(sums[m][v]));
      std::memcpy(to, last, used * sizeof(float));
    }
  }
}

using Block = void (*)(const float* const*, const int64_t*, const int64_t*, int64_t, int64_t, const float*, float* const*,
                       int64_t, int64_t, const Ends&);

template <int NV, int... MR>
constexpr Block block_of(int rows, std::integer_sequence<int, MR...>) {
  constexpr Block all[] = {block<MR + 1, NV>...};
  return all[rows - 1];
}

// A tile in memory.
struct View {
  float* data;
  int64_t row, col;  // floats from one row or column to the next
};

struct Positions {  // of one pair of phases
  std::vector<const float*> in;
  std::vector<float*> out;
  std::vector<int64_t> offsets, kernels;

  void find(const Operation& op, const View& in_view, const View& out_view, int64_t rows, int64_t cols, size_t a, size_t b) {
    in.clear(), out.clear(), offsets.clear(), kernels.clear();
    for (const Tap& y : op.row.phases[a])
      for (const Tap& x : op.col.phases[b]) {
        offsets.push_back(y.at * in_view.row + x.at * in_view.col);
        kernels.push_back(y.kernel * op.columns + x.kernel);
      }
    for (int64_t r = a, i = 0; r < rows; r += op.row.phases.size(), ++i)
      for (int64_t c = b, j = 0; c < cols; c += op.col.phases.size(), ++j) {
        in.push_back(in_view.data + i * op.row.step * in_view.row + j * op.col.step * in_view.col);
        out.push_back(out_view.data + r * out_view.row + c * out_view.col);
      }
  }
};

void convolve(const Operation& op, const View& in, const View& out, const Slot& slot, const float* packed,
              const Ends& ends) {
  static thread_local Positions at;
  const auto sizes = std::make_integer_sequence<int, PIXELS>();
  const int64_t taps = op.count;  // of the whole kernel
  for (size_t a = 0; a < op.row.phases.size(); ++a)
    for (size_t b = 0; b < op.col.phases.size(); ++b) {
      at.find(op, in, out, slot.rows, slot.cols, a, b);
      const float* panel = packed;
      for (int64_t first = 0; first < slot.channels; first += PANEL) {
        const int64_t used = std::min<int64_t>(PANEL, slot.channels - first);
        const bool wide = used > LANES;
        for (size_t p = 0; p < at.in.size(); p += PIXELS) {
          const int rows = std::min<size_t>(PIXELS, at.in.size() - p);
          const Block run = wide ? block_of<2>(rows, sizes) : block_of<1>(rows, sizes);
          run(&at.in[p], at.offsets.data(), at.kernels.data(), at.offsets.size(), op.channels_in, panel, &at.out[p], first,
              used, ends);
        }
        panel += taps * op.channels_in * (wide ? PANEL : LANES);
      }
    }
}

// ------------------------------------------------------------------------------------------ channel by channel

struct MultiplyAdd {
  static Vector begin(Vector shift) { return shift; }
  static Vector join(Vector sum, Vector x, Vector w) { return sum + x * w; }
};
struct Maximum {
  static Vector begin(Vector) { return Vector{} - std::numeric_limits<float>::infinity(); }
  static Vector join(Vector best, Vector x, Vector) { return (best >= x) | (best != best) ? best : x; }
};
struct Minimum {
  static Vector begin(Vector) { return Vector{} + std::numeric_limits<float>::infinity(); }
  static Vector join(Vector best, Vector x, Vector) { return (best <= x) | (best != best) ? best : x; }
};
struct Add {
  static Vector begin(Vector) { return Vector{}; }
  static Vector join(Vector sum, Vector x, Vector) { return sum + x; }
};

// NC results of one row, and one vector of channels.
template <class Rule, int NC>
inline void window(const float* in, int64_t step, const int64_t* offsets, const int64_t* kernels, int64_t taps,
                   const float* weights, int64_t channels, float* out, int64_t out_step, int64_t channel,
                   const Ends& ends) {
  Vector found[NC];
  for (int j = 0; j < NC; ++j) found[j] = Rule::begin(ends.begin(channel));
  for (int64_t t = 0; t < taps; ++t) {
    const Vector w = weights ? load(weights + kernels[t] * channels) : Vector{};
    for (int j = 0; j < NC; ++j) found[j] = Rule::join(found[j], load(in + j * step + offsets[t]), w);
  }
  for (int j = 0; j < NC; ++j) store(out + j * out_step, ends.bound(found[j]));
}

template <class Rule>
void windows(const Operation& op, const View& in, const View& out, const Slot& slot, const float* weights,
             const Ends& ends) {
  constexpr int NC = 4;
  const int64_t channels = slot.channels, step = op.col.step * in.col;
  int64_t offsets[512], kernels[512], taps = 0;
  for (const Tap& y : op.row.phases[0])
    for (const Tap& x : op.col.phases[0]) {
      offsets[taps] = y.at * in.row + x.at * in.col;
      kernels[taps++] = y.kernel * op.columns + x.kernel;
    }
  for (int64_t r = 0; r < slot.rows; ++r)
    for (int64_t c = 0; c < slot.cols; c += NC) {
      const int64_t count = std::min<int64_t>(NC, slot.cols - c);
      const float* from = in.data + r * op.row.step * in.row + c * step;
      float* to = out.data + r * out.row + c * out.col;
      if (channels < LANES) {  // through vectors of which only the first lanes are real
        for (int64_t j = 0; j < count; ++j) {
          float x[LANES] = {}, w[LANES] = {};
          Vector found = Rule::begin(ends.begin(0));
          for (int64_t t = 0; t < taps; ++t) {
            std::memcpy(x, from + j * step + offsets[t], channels * sizeof(float));
            if (weights) std::memcpy(w, weights + kernels[t] * channels, channels * sizeof(float));
            found = Rule::join(found, load(x), load(w));
          }
          store(x, ends.bound(found));
          std::memcpy(to + j * out.col, x, channels * sizeof(float));
        }
        continue;
      }
      for (int64_t v = 0; v < channels; v += LANES) {
        const int64_t at = std::min(v, channels - LANES);  // the last vector overlaps: the same results once more
        const float* w = weights ? weights + at : nullptr;
        if (count == NC) {
          window<Rule, NC>(from + at, step, offsets, kernels, taps, w, channels, to + at, out.col, at, ends);
        } else {
          for (int64_t j = 0; j < count; ++j)
            window<Rule, 1>(from + j * step + at, step, offsets, kernels, taps, w, channels, to + j * out.col + at, out.col,
                            at, ends);
        }
      }
    }
}

// ------------------------------------------------------------------------------------------ elementwise

inline float exponential(float x) {  // Cephes' expf: two units in the last place
  const float top = 88.72283f, low = -87.33655f;
  const float y = x > top ? top : x < low ? low : x;
  const float n = std::floor(y * 1.44269504088896341f + 0.5f);
  const float r = y - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t half = static_cast<int32_t>(n) / 2, rest = static_cast<int32_t>(n) - half;  // 2^n may leave the exponent
  int32_t a = (half + 127) << 23, b = (rest + 127) << 23;
  float two_a, two_b;
  std::memcpy(&two_a, &a, 4);
  std::memcpy(&two_b, &b, 4);
  const float found = p * two_a * two_b;
  return x > top ? std::numeric_limits<float>::infinity() : x < low ? 0.0f : x == x ? found : x;
}

inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

enum Code : int64_t {
  ADD, SUBTRACT, MULTIPLY, DIVIDE, GREATER, SMALLER, NEGATE, ABSOLUTE, SQUARE, ROOT, INVERSE_ROOT, EXPONENTIAL, LOGISTIC,
  HYPERBOLIC, GT, GE, LT, LE, EQ, NE, SELECT, CLAMP, COPY
};

using Row = void (*)(float*, const float*, const float*, const float*, int64_t);

template <class F>
void row1(float* o, const float* a, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) o[i] = f(a[i]);
}
template <class F>
void row2(float* o, const float* a, const float* b, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) o[i] = f(a[i], b[i]);
}

void elementwise(int64_t code, float* o, const float* a, const float* b, const float* c, int64_t n) {
  switch (code) {
    case ADD: return row2(o, a, b, n, [](float x, float y) { return x + y; });
    case SUBTRACT: return row2(o, a, b, n, [](float x, float y) { return x - y; });
    case MULTIPLY: return row2(o, a, b, n, [](float x, float y) { return x * y; });
    case DIVIDE: return row2(o, a, b, n, [](float x, float y) { return x / y; });
    case GREATER: return row2(o, a, b, n, [](float x, float y) { return (x >= y) | (x != x) ? x : y; });
    case SMALLER: return row2(o, a, b, n, [](float x, float y) { return (x <= y) | (x != x) ? x : y; });
    case NEGATE: return row1(o, a, n, [](float x) { return -x; });
    case ABSOLUTE: return row1(o, a, n, [](float x) { return std::fabs(x); });
    case SQUARE: return row1(o, a, n, [](float x) { return x * x; });
    case ROOT: return row1(o, a, n, [](float x) { return std::sqrt(x); });
    case INVERSE_ROOT: return row1(o, a, n, [](float x) { return 1.0f / std::sqrt(x); });
    case EXPONENTIAL: return row1(o, a, n, exponential);
    case LOGISTIC: return row1(o, a, n, logistic);
    case HYPERBOLIC: return row1(o, a, n, [](float x) {
      const float t = std::fabs(x), s = x * x;
      const float small = x + x * s * (-0.333332819422f + s * (0.133314422036f + s * (-0.0537397155531f + s * (0.0206390887954f + s * -0.00570498872745f))));
      const float large = 1.0f - 2.0f / (1.0f + exponential(2.0f * t));
      return t < 0.625f ? small : x < 0 ? -large : large;
    });
    case GT: return row2(o, a, b, n, [](float x, float y) { return x > y ? 1.0f : 0.0f; });
    case GE: return row2(o, a, b, n, [](float x, float y) { return x >= y ? 1.0f : 0.0f; });
    case LT: return row2(o, a, b, n, [](float x, float y) { return x < y ? 1.0f : 0.0f; });
    case LE: return row2(o, a, b, n, [](float x, float y) { return x <= y ? 1.0f : 0.0f; });
    case EQ: return row2(o, a, b, n, [](float x, float y) { return x == y ? 1.0f : 0.0f; });
    case NE: return row2(o, a, b, n, [](float x, float y) { return x != y ? 1.0f : 0.0f; });
    case SELECT:
      for (int64_t i = 0; i < n; ++i) o[i] = a[i] != 0.0f ? c[i] : b[i];
      return;
    case CLAMP:  // least, value, most
      for (int64_t i = 0; i < n; ++i) {
        const float low = (a[i] >= b[i]) | (a[i] != a[i]) ? a[i] : b[i];
        o[i] = (low <= c[i]) | (low != low) ? low : c[i];
      }
      return;
    default:
      std::memmove(o, a, n * sizeof(float));
  }
}

// ------------------------------------------------------------------------------------------ one tile

struct Arguments {
  const ffi::RemainingArgs& args;
  template <class T>
  T* data(int64_t index) const { return static_cast<T*>(args.get<ffi::AnyBuffer>(index).value().untyped_data()); }
  int64_t streams(int64_t index) const { return args.get<ffi::AnyBuffer>(index).value().dimensions()[0]; }
};

constexpr int64_t SPREAD = 4096;  // floats: what is one number for each channel lies in rows, where that is not too long

struct Worker {
  const Segment& segment;
  const std::vector<float*>& pointers;         // of all arguments
  const std::vector<int64_t>& source_streams;  // a fixed map may have fewer: they repeat
  std::vector<float> scratch, spread, wide[3];
  std::vector<std::vector<int64_t>> spread_at;  // of each operation's operands: where in `spread`, or -1
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
    }
  }

  View view(int64_t index, int64_t top, int64_t left) {
    const Slot& slot = segment.slots[index];
    if (slot.source >= 0) {
      const Source& source = segment.sources[slot.source];
      const Stored& s = source.stored;
      const int64_t row = s.cols * s.channels, first = stream % source_streams[slot.source];
      float* data = pointers[s.argument] + (first * s.rows + slot.row.start(y) + s.top + top) * row +
                    (slot.col.start(x) + s.left + left) * s.channels;
      return {data, row, s.channels};
    }
    const int64_t row = slot.cols * slot.channels;
    return {scratch.data() + slot.scratch + top * row + left * slot.channels, row, slot.channels};
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
      Ends ends{nullptr, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
      if (op.kind == CONVOLUTION || op.kind == DEPTHWISE)
        ends = {op.first ? pointers[op.first] : nullptr, op.operands[0].number, op.operands[1].number};
      switch (op.kind) {
        case CONVOLUTION: convolve(op, view(op.in), out, slot, pointers[op.argument], ends); break;
        case DEPTHWISE: windows<MultiplyAdd>(op, view(op.in), out, slot, pointers[op.argument], ends); break;
        case POOL:
          if (op.code == MAXIMUM) windows<Maximum>(op, view(op.in), out, slot, nullptr, ends);
          else if (op.code == MINIMUM) windows<Minimum>(op, view(op.in), out, slot, nullptr, ends);
          else windows<Add>(op, view(op.in), out, slot, nullptr, ends);
          break;
        case JOIN: {  // the input's channels are those of the result from `first` on
          const View in = view(op.in);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c)
              std::memcpy(out.data + r * out.row + c * out.col + op.first, in.data + r * in.row + c * in.col,
                          op.count * sizeof(float));
          break;
        }
        case PART: {  // every `columns`-th of the input's channels from `first` on, of every so many positions
          const View in = view(op.in);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c) {
              const float* from = in.data + r * op.row.step * in.row + c * op.col.step * in.col + op.first;
              float* to = out.data + r * out.row + c * out.col;
              if (op.columns == 1) std::memcpy(to, from, op.count * sizeof(float));
              else
                for (int64_t k = 0; k < op.count; ++k) to[k] = from[k * op.columns];
            }
          break;
        }
        case TAKE: {  // each result has a phase of its own, that says which position it is
          const View in = view(op.in);
          for (int64_t r = 0; r < slot.rows; ++r)
            for (int64_t c = 0; c < slot.cols; ++c)
              std::memcpy(out.data + r * out.row + c * out.col,
                          in.data + op.row.phases[r][0].at * in.row + op.col.phases[c][0].at * in.col,
                          op.count * sizeof(float));
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
      for (; c + LANES <= channels; c += LANES) {
        const auto unequal = load(now + c) != load(before + c);
        int32_t any = 0;
        for (int lane = 0; lane < LANES; ++lane) any |= unequal[lane];
        if (any) return true;
      }
      for (; c < channels; ++c)
        if (now[c] != before[c]) return true;
      return false;
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
        std::memcpy(to, from, s.channels * sizeof(float));
        mask[(stream * segment.height + y + r) * segment.width + x + c] = 1;
        any = true;
      }
    return any;
  }
};

// ------------------------------------------------------------------------------------------ all tiles

// work(i) for i in [0, count) on the calling thread and those of the pool that are free.
template <class Make>
void in_parallel(ffi::ThreadPool& pool, int64_t count, const Make& make) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  // Who comes too late finds nothing left to do, and touches only `state`.
  auto turn = [state, count, &make] {
    int64_t i = state->next++;
    if (i >= count) return;
    auto work = make();
    int64_t mine = 0;
    for (; i < count; i = state->next++, ++mine) work(i);
    state->done += mine;
  };
  const int64_t helpers = std::min<int64_t>(count, pool.num_threads()) - 1;
  for (int64_t k = 0; k < helpers; ++k) {
    auto another = turn;
    pool.Schedule(std::move(another));
  }
  turn();
  while (state->done < count) std::this_thread::yield();
}

void candidates(const Segment& segment, const Arguments& given, const uint8_t* fresh, const uint8_t* due, int64_t streams,
                std::vector<int64_t>& tiles, int32_t* issued) {
  const int64_t per_stream = segment.ny * segment.nx;
  std::vector<uint8_t> wanted(per_stream), any;
  for (int64_t s = 0; s < streams; ++s) {
    bool all = fresh[s];
    for (int64_t flag : segment.gate_flags) all |= given.data<uint8_t>(flag)[s] != 0;
    std::fill(wanted.begin(), wanted.end(), all);
    if (due)
      for (int64_t t = 0; t < per_stream; ++t) wanted[t] |= due[s * per_stream + t];
    for (const Source& source : segment.sources) {
      if (all || source.mask < 0 || !given.data<uint8_t>(source.flag)[s]) continue;
      const Stored& p = source.stored;
      const uint8_t* mask = given.data<uint8_t>(source.mask) + s * p.height * p.width;
      any.assign(p.width, 0);
      for (int64_t i = 0; i < segment.ny; ++i) {
        const int64_t top = source.row.start(i * segment.tile_rows);
        const int64_t first = std::max<int64_t>(0, top), last = std::min(p.height, top + source.row.length);
        if (first >= last) continue;
        std::memcpy(any.data(), mask + first * p.width, p.width);
        for (int64_t r = first + 1; r < last; ++r)
          for (int64_t c = 0; c < p.width; ++c) any[c] |= mask[r * p.width + c];
        for (int64_t j = 0; j < segment.nx; ++j) {
          const int64_t left = source.col.start(j * segment.tile_cols);
          const int64_t from = std::max<int64_t>(0, left), to = std::min(p.width, left + source.col.length);
          uint8_t found = 0;
          for (int64_t c = from; c < to; ++c) found |= any[c];
          wanted[i * segment.nx + j] |= found;
        }
      }
    }
    issued[s] = 0;
    for (int64_t t = 0; t < per_stream; ++t)
      if (wanted[t]) {
        tiles.push_back(s * per_stream + t);
        ++issued[s];
      }
  }
}

// Arguments: fresh [S], tau [S], due [S, ny, nx] (or [0]), then those that the segment numbers; the last of them are, for
// each map that is written, the stored map and its mask. Results: these again in place, a flag [S] for each, issued [S].
ffi::Error run(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Span<const int64_t> words) {
  const Segment segment = Reader(words).segment();
  const Arguments given{args};
  const int64_t streams = given.streams(0);
  const uint8_t* fresh = given.data<uint8_t>(0);
  const float* tau = given.data<float>(1);
  const uint8_t* due = given.streams(2) ? given.data<uint8_t>(2) : nullptr;
  const size_t writes = segment.writes.size();
  auto result = [&](size_t index) { return rets.get<ffi::AnyBuffer>(index).value()->untyped_data(); };

  std::vector<int64_t> tiles;
  candidates(segment, given, fresh, due, streams, tiles, static_cast<int32_t*>(result(3 * writes)));
  std::vector<uint8_t*> flags, masks;
  std::vector<float*> stored;
  for (size_t w = 0; w < writes; ++w) {
    stored.push_back(static_cast<float*>(result(2 * w)));
    masks.push_back(static_cast<uint8_t*>(result(2 * w + 1)));
    flags.push_back(static_cast<uint8_t*>(result(2 * writes + w)));
    std::memset(flags[w], 0, streams);
  }
  if (tiles.empty()) return ffi::Error::Success();
  for (uint8_t* mask : masks) std::memset(mask, 0, streams * segment.height * segment.width);

  std::vector<float*> pointers;
  for (size_t i = 0; i < args.size(); ++i) pointers.push_back(given.data<float>(i));
  std::vector<int64_t> source_streams;
  for (const Source& source : segment.sources) source_streams.push_back(given.streams(source.stored.argument));

  in_parallel(pool, tiles.size(), [&] {
    auto worker = std::make_shared<Worker>(segment, pointers, source_streams);
    return [&, worker](int64_t i) {
      const int64_t per_stream = segment.ny * segment.nx, within = tiles[i] % per_stream;
      const int64_t top = within / segment.nx * segment.tile_rows, left = within % segment.nx * segment.tile_cols;
      worker->stream = tiles[i] / per_stream;
      worker->y = std::min(top, segment.height - segment.tile_rows);
      worker->x = std::min(left, segment.width - segment.tile_cols);
      worker->compute();
      const float least = due && due[tiles[i]] ? 0.0f : tau[worker->stream];
      for (size_t w = 0; w < writes; ++w)
        if (worker->write(segment.writes[w], masks[w], stored[w], fresh[worker->stream], least, top, left))
          __atomic_store_n(flags[w] + worker->stream, uint8_t{1}, __ATOMIC_RELAXED);
    };
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(deltajax_segment, run,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("segment"));

extern "C" int deltajax_lanes() { return LANES; }
