// What the next run of tiles reads and overwrites, asked for while this one is computed: memory and arithmetic at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Lines of a cache behind each other, `offset` floats from where the `map`-th picture that a tile reads or writes begins.
struct Lines {
  static constexpr int64_t SIZE = 64;  // bytes
  int64_t map, offset, count;

  Lines(int64_t of, int64_t from, int64_t floats)
      : map(of), offset(from), count((floats * int64_t{sizeof(float)} + SIZE - 1) / SIZE) {}
};

class Ahead {
 public:
  void clear() { tiles_ = 0; }
  // The `rows` of so many tiles that have `maps` each, in so many steps: at once, it would only wait. Where each map
  // begins goes, one behind the other, into what is returned.
  std::vector<const float*>& begin(const std::vector<Lines>& rows, int64_t lines, int64_t maps, int64_t tiles,
                                   int64_t steps) {
    rows_ = &rows;
    map_ = row_ = done_ = 0;
    each_ = (lines * tiles + steps - 1) / steps;
    of_each_ = maps;
    tiles_ = tiles;
    maps_.clear();
    return maps_;
  }
  void step() {
    for (int64_t rest = each_; rest > 0 && tiles_ > 0;) {
      const Lines& row = (*rows_)[row_];
      const int64_t count = std::min(rest, row.count - done_);
      const char* from = reinterpret_cast<const char*>(maps_[map_ + row.map] + row.offset) + done_ * Lines::SIZE;
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(from + i * Lines::SIZE, 0, 2);  // behind what is in use
      done_ += count;
      rest -= count;
      if (done_ < row.count) continue;
      done_ = 0;
      if (++row_ < static_cast<int64_t>(rows_->size())) continue;
      row_ = 0;
      map_ += of_each_;
      --tiles_;
    }
  }

 private:
  const std::vector<Lines>* rows_ = nullptr;
  std::vector<const float*> maps_;
  int64_t tiles_ = 0;                      // that are left
  int64_t map_ = 0, row_ = 0, done_ = 0;   // of the first of them: its maps, the first row, lines of that which are done
  int64_t of_each_ = 0, each_ = 0;         // maps of a tile, lines of a step
};

}  // namespace
