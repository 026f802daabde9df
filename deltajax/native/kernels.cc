// Segments of a plan on tiles, one after the other in one call: which tiles the masks reach, their operations, the
// comparison with what is stored, and the write. `_encode.py` says in whole numbers what a segment is; this file does what
// `_by_bucket.py` does with XLA's operations.
//
// Law: what is written is, position by position, what the segment's operations give; where a position is computed (in
// which tile, on which core, beside which others) makes no difference to a single bit of it.
//
// All pictures are rows x columns x channels of float32, channels last, or have two numbers in bfloat16 in the place of
// one (`pairs.h`). A *view* is part of one in memory.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "arguments.h"
#include "detect.h"
#include "parallel.h"
#include "segment.h"
#include "tile.h"
#include "xla/ffi/api/ffi.h"

namespace {

constexpr int64_t RUNS_A_THREAD = 4, BATCHES_A_THREAD = 2;  // at least: while the last one is done the others are idle

// The union of rows that lie one behind the other; whether anything is set there.
bool unite(const uint8_t* rows, int64_t width, int64_t count, uint8_t* __restrict result) {
  std::memcpy(result, rows, width);
  for (int64_t r = 1; r < count; ++r)
    for (int64_t c = 0; c < width; ++c) result[c] |= rows[r * width + c];
  return std::memchr(result, 1, width) != nullptr;
}

// Of `count` bytes each becomes the union of itself and those behind it, `length` in all. `other` is as long, and one of
// the two is what is returned.
uint8_t* unite_behind(uint8_t* bytes, uint8_t* other, int64_t count, int64_t length) {
  for (int64_t reached = 1, step; reached < length; reached += step) {
    step = std::min(reached, length - reached);
    const uint8_t* __restrict from = bytes;
    uint8_t* __restrict to = other;
    for (int64_t i = 0; i + step < count; ++i) to[i] = from[i] | from[i + step];
    std::memcpy(to + count - step, from + count - step, step);
    std::swap(bytes, other);
  }
  return bytes;
}

// A byte for each tile [streams, ny, nx], 1 where it has to be done; no byte where there can be none.
std::vector<uint8_t> candidates(const Segment& segment, const Arrays& arrays, const uint8_t* fresh, int64_t streams) {
  const int64_t per_stream = segment.ny * segment.nx;
  std::vector<uint8_t> wanted, any, more;
  std::vector<int64_t> lefts(segment.nx);  // of a source: where what a tile reads begins
  for (int64_t s = 0; s < streams; ++s) {
    bool all = fresh[s];
    for (int64_t flag : segment.gate_flags) all |= *arrays.data<uint8_t>(flag, s) != 0;
    const uint8_t* due = segment.due < 0 ? nullptr : arrays.data<uint8_t>(segment.due, s);
    bool moved = all || due;
    for (const Source& source : segment.sources)
      moved |= source.mask >= 0 && *arrays.data<uint8_t>(source.flag, s);
    if (!moved) continue;
    wanted.resize(streams * per_stream);
    uint8_t* const tiles = wanted.data() + s * per_stream;
    if (all) {
      std::memset(tiles, 1, per_stream);
      continue;
    }
    if (due) std::memcpy(tiles, due, per_stream);
    for (const Source& source : segment.sources) {
      if (source.mask < 0 || !*arrays.data<uint8_t>(source.flag, s)) continue;
      const Stored& p = source.stored;
      const uint8_t* mask = arrays.data<uint8_t>(source.mask, s);
      const int64_t length = source.col.length;
      for (int64_t j = 0; j < segment.nx; ++j) lefts[j] = source.col.start(j * segment.tile_cols);
      // With what lies outside the picture on either side, where nothing changes.
      const int64_t before = std::max<int64_t>(0, -lefts.front());
      const int64_t count = before + std::max(p.width, lefts.back() + length);
      any.assign(count, 0);
      more.resize(count);
      for (int64_t i = 0; i < segment.ny; ++i) {
        const int64_t top = source.row.start(i * segment.tile_rows);
        const int64_t first = std::max<int64_t>(0, top), last = std::min(p.height, top + source.row.length);
        if (first >= last || !unite(mask + first * p.width, p.width, last - first, any.data() + before)) continue;
        uint8_t* const reached = unite_behind(any.data(), more.data(), count, length);
        for (int64_t j = 0; j < segment.nx; ++j) tiles[i * segment.nx + j] |= reached[before + lefts[j]];
        std::fill_n(any.begin(), before, 0);
        std::fill(any.begin() + before + p.width, any.end(), 0);
      }
    }
  }
  return wanted;
}

// Tiles side by side, from one of a row on, that are done as one by `Widths::tiles[width]`.
struct Run {
  int64_t stream, row, column;
  size_t width;
};

// All tiles in runs as wide as there is a width for, but of enough runs to go round. A run has one turn (`turns`, of each
// stream a byte for each tile, or none), so that one threshold holds for all of it. `apart`: the last column of tiles
// begins elsewhere than in wider runs' blocks.
std::vector<Run> runs_of(const Segment& segment, const std::vector<uint8_t>& wanted, int64_t count,
                         const std::vector<const uint8_t*>& turns, const std::vector<int64_t>& widths, bool apart,
                         int64_t threads) {
  const int64_t nx = segment.nx, per_stream = segment.ny * nx;
  const int64_t most = std::max<int64_t>(1, count / (RUNS_A_THREAD * threads));
  std::vector<Run> runs;
  for (int64_t first = 0; first < static_cast<int64_t>(wanted.size()); first += nx) {
    const uint8_t* const row = wanted.data() + first;
    if (!std::memchr(row, 1, nx)) continue;
    const int64_t stream = first / per_stream, begin = first - stream * per_stream;
    const uint8_t* const turn = turns.empty() ? nullptr : turns[stream] + begin;
    // Behind the last of those that go on from the j-th.
    const auto end_of = [&](int64_t j) {
      const int64_t last = std::min({j + most, j + widths.back(), apart && j + 1 < nx ? nx - 1 : nx});
      if (turn) {
        int64_t k = j + 1;
        while (k < last && row[k] && turn[k] == turn[j]) ++k;
        return k;
      }
      const void* const found = std::memchr(row + j, 0, last - j);
      return found ? static_cast<const uint8_t*>(found) - row : last;
    };
    for (const uint8_t* at = row; (at = static_cast<const uint8_t*>(std::memchr(at, 1, row + nx - at)));) {
      const int64_t j = at - row, length = end_of(j) - j;
      size_t width = 0;
      while (width + 1 < widths.size() && widths[width + 1] <= length) ++width;
      runs.push_back({stream, begin / nx, j, width});
      at += widths[width];
    }
  }
  return runs;
}

// Runs of one width, near each other, that are done together: where they are narrow, each would read all kernels of a
// convolution for a few blocks.
struct Batches {
  struct Range {
    size_t first, count;
  };
  std::vector<Run> runs;  // batch by batch
  std::vector<Range> all;

  Batches(const std::vector<Run>& given, const std::vector<Tile>& tiles, int64_t threads) : runs(given) {
    if (!tiles[0].blocks) {
      for (size_t i = 0; i < given.size(); ++i) all.push_back({i, 1});
      return;
    }
    const size_t most = std::max<size_t>(1, given.size() / (BATCHES_A_THREAD * threads));
    std::vector<size_t> batch(given.size()), open(tiles.size(), given.size());  // of each run; of each width, not full
    for (size_t i = 0; i < given.size(); ++i) {
      const size_t width = given[i].width;
      if (open[width] == given.size()) {
        open[width] = all.size();
        all.push_back({0, 0});
      }
      batch[i] = open[width];
      if (++all[batch[i]].count == std::min<size_t>(most, tiles[width].together)) open[width] = given.size();
    }
    for (size_t k = 1; k < all.size(); ++k) all[k].first = all[k - 1].first + all[k - 1].count;
    std::vector<size_t> next;
    for (const Range& range : all) next.push_back(range.first);
    for (size_t i = 0; i < given.size(); ++i) runs[next[batch[i]]++] = given[i];
  }
};

// A segment by how many tiles side by side are done as one.
struct Widths {
  std::vector<int64_t> begins;  // of the fixed parts, in what is packed
  std::vector<Array> arrays;
  std::vector<int64_t> counts;
  std::vector<Tile> tiles;
};

// What is done in one call, read once for each place where it is called.
struct Segments {
  static ffi::TypeId id;
  std::vector<Widths> all;
  size_t scratch = 0;  // vectors, of the largest
};
ffi::TypeId Segments::id = {};
constexpr ffi::TypeInfo SEGMENTS = ffi::MakeTypeInfo<Segments>();

ffi::ErrorOr<std::unique_ptr<Segments>> read(ffi::Span<const int64_t> words) {
  Reader reader(words);
  auto found = std::make_unique<Segments>();
  found->all.resize(reader.next());
  for (Widths& one : found->all) {
    for (int64_t k = reader.next(); k > 0; --k) one.begins.push_back(reader.next());
    for (int64_t k = reader.next(); k > 0; --k) {
      const int64_t argument = reader.next(), begin = reader.next();
      one.arrays.push_back({argument, begin, reader.next()});
    }
    for (int64_t k = reader.next(); k > 0; --k) {
      one.counts.push_back(reader.next());
      one.tiles.emplace_back(reader.segment());
      found->scratch = std::max<size_t>(found->scratch, one.tiles.back().scratch / LANES + 2);
    }
  }
  return found;
}

// What all segments of a call share.
struct Call {
  Team& team;
  int64_t streams;
  const uint8_t* fresh;
  const float* packed;
  size_t scratch;
};

// How many tiles are done of each stream: `issued` and from there on every `count`-th.
void one_segment(const Call& call, const Widths& widths, const Arrays& arrays, const float* tau, int32_t* issued,
                 int64_t count) {
  const Segment& segment = widths.tiles[0].segment;
  const int64_t threads = call.team.size(), per_stream = segment.ny * segment.nx;
  for (const Write& write : segment.writes)
    for (int64_t s = 0; s < call.streams; ++s) *arrays.data<uint8_t>(write.flag, s) = 0;
  for (int64_t s = 0; s < call.streams; ++s) issued[s * count] = 0;
  const std::vector<uint8_t> wanted = candidates(segment, arrays, call.fresh, call.streams);
  int64_t tiles = 0;
  for (int64_t s = 0; s < call.streams && !wanted.empty(); ++s) {
    issued[s * count] = std::accumulate(&wanted[s * per_stream], &wanted[s * per_stream] + per_stream, 0);
    tiles += issued[s * count];
  }
  if (!tiles) return;
  for (const Write& write : segment.writes)
    for (int64_t s = 0; s < call.streams; ++s)
      std::memset(arrays.data<uint8_t>(write.mask, s), 0, segment.height * segment.width);

  std::vector<const float*> parts;
  for (int64_t begin : widths.begins) parts.push_back(call.packed + begin);
  std::vector<const uint8_t*> turns;
  for (int64_t s = 0; s < call.streams && segment.due >= 0; ++s) turns.push_back(arrays.data<uint8_t>(segment.due, s));
  const auto due = [&](const Run& run) { return !turns.empty() && turns[run.stream][run.row * segment.nx + run.column]; };
  const bool apart = widths.tiles[0].blocks && segment.width % segment.tile_cols;
  const std::vector<Run> runs = runs_of(segment, wanted, tiles, turns, widths.counts, apart, threads);
  const auto top = [&](const Run& run) { return run.row * segment.tile_rows; };
  const auto left = [&](const Run& run) { return run.column * segment.tile_cols; };
  const auto place = [&](const Run& run) -> Place {
    return {run.stream, std::min(top(run), segment.height - segment.tile_rows),
            std::min(left(run), segment.width - widths.tiles[run.width].segment.tile_cols)};
  };
  const Batches batches(runs, widths.tiles, threads);
  call.team.run(batches.all.size(), [&] {
    thread_local std::vector<Vector> scratch;  // grows, and stays: new memory from the system costs more than most tiles
    if (scratch.size() < call.scratch) scratch.resize(call.scratch);
    float* const floats = reinterpret_cast<float*>(scratch.data());  // where a line of a cache begins, and so does each slot
    auto workers = std::make_shared<std::vector<std::unique_ptr<Worker>>>(widths.tiles.size());
    return [&, workers, floats](int64_t i) {
      const Batches::Range batch = batches.all[i];
      const Run* const here = &batches.runs[batch.first];
      auto& worker = (*workers)[here->width];
      if (!worker) worker = std::make_unique<Worker>(widths.tiles[here->width], arrays, parts, floats);
      for (size_t k = 0; k < batch.count; ++k) worker->locate(k, place(here[k]));
      if (const size_t next = i + 1; next < batches.all.size()) {  // most likely its next one
        const Batches::Range then = batches.all[next];
        const Run* const there = &batches.runs[then.first];
        worker->look_ahead(widths.tiles[there->width], then.count, batch.count, [&](size_t k) { return place(there[k]); });
      } else {
        worker->ahead.clear();
      }
      worker->compute(batch.count);
      for (size_t k = 0; k < batch.count; ++k) {
        const int64_t stream = here[k].stream;
        for (const Write& write : worker->segment.writes)
          if (worker->write(k, write, call.fresh[stream], due(here[k]) ? 0.0f : tau[stream], top(here[k]), left(here[k])))
            __atomic_store_n(arrays.data<uint8_t>(write.flag, stream), uint8_t{1}, __ATOMIC_RELAXED);
      }
    };
  });
}

// Arguments: fresh [S], tau [segments, S], the fixed parts of all segments, then those in which the segments' arrays lie.
// Results: of these, in place, the ones that are written to; flags [S, maps written]; issued [S, segments].
ffi::Error run(const Segments* segments, ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
               ffi::Span<const int64_t>) {
  const Arguments given(args);
  const auto result = [&](size_t index) { return rets.get<ffi::AnyBuffer>(index).value()->untyped_data(); };
  char* const flags = static_cast<char*>(result(rets.size() - 2));
  int32_t* const issued = static_cast<int32_t*>(result(rets.size() - 1));
  const int64_t streams = given.streams(0), count = segments->all.size();
  Team team(pool);
  const Call call{team, streams, given.data<uint8_t>(0), given.data<float>(2), segments->scratch};
  for (int64_t k = 0; k < count; ++k) {
    const Widths& one = segments->all[k];
    one_segment(call, one, Arrays(given, flags, streams, one.arrays), given.data<float>(1) + k * streams, issued + k, count);
  }
  return ffi::Error::Success();
}

// Arguments: frame [S, height, width, channels], held frame in its storage, fresh [S], tau [S], mask [S, height, width] of
// what is known to have changed (or [0]). Results: the held frame in place, its mask, a flag [S].
ffi::Error detect(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Span<const int64_t> words) {
  const Arguments given(args);
  const auto result = [&](size_t index) { return rets.get<ffi::AnyBuffer>(index).value()->untyped_data(); };
  Detection detection(words.begin());
  detection.streams = given.streams(2);
  detection.fresh = given.data<uint8_t>(2);
  detection.tau = given.data<float>(3);
  detection.given = given.streams(4) ? given.data<uint8_t>(4) : nullptr;
  detection.mask = static_cast<uint8_t*>(result(1));
  detection.flags = static_cast<uint8_t*>(result(2));
  Team team(pool);
  if (detection.bytes) detection.run(team, given.data<uint8_t>(0), static_cast<uint8_t*>(result(0)));
  else detection.run(team, given.data<float>(0), static_cast<float*>(result(0)));
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(deltajax_detect, detect,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("detection"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(deltajax_read, read,
                              ffi::Ffi::BindInstantiate().Attr<ffi::Span<const int64_t>>("segments"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(deltajax_segments, run,
                              ffi::Ffi::Bind().Ctx<ffi::State<Segments>>().Ctx<ffi::ThreadPool>().RemainingArgs()
                                  .RemainingRets().Attr<ffi::Span<const int64_t>>("segments"));

extern "C" int deltajax_lanes() { return LANES; }
extern "C" int deltajax_pairs() { return DELTAJAX_PAIRS; }
extern "C" const void* deltajax_type() { return &Segments::id; }
extern "C" const void* deltajax_type_info() { return &SEGMENTS; }
