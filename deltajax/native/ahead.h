// What the next run of tiles reads and overwrites, asked for while this one is computed: memory and arithmetic at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Lines of a cache behind each other, `offset` floats from the beginning of the `map`-th picture that a tile reads or writes.
struct Lines {
  static constexpr int64_t SIZE = 64;  // bytes
  int64_t map, offset, count;

  Lines(int64_t of, int64_t from, int64_t floats)
      : map(of), offset(from), count((floats * int64_t{sizeof(float)} + SIZE - 1) / SIZE) {}
};

class Ahead {
 public:
  void clear() { rows_ = end_ = nullptr; }
  // All `rows` in so many steps: at once, it would only wait. Where each map begins is put behind each other in what is returned.
  std::vector<const float*>& begin(const std::vector<Lines>& rows, int64_t lines, int64_t steps) {
    rows_ = rows.data();
    end_ = rows_ + rows.size();
    done_ = 0;
    each_ = (lines + steps - 1) / steps;
    maps_.clear();
    return maps_;
  }
  void step() {
    for (int64_t rest = each_; rest > 0 && rows_ != end_;) {
      const int64_t count = std::min(rest, rows_->count - done_);
      const char* from = reinterpret_cast<const char*>(maps_[rows_->map] + rows_->offset) + done_ * Lines::SIZE;
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(from + i * Lines::SIZE, 0, 2);  // behind what is in use
      done_ += count;
      rest -= count;
      if (done_ == rows_->count) {
        ++rows_;
        done_ = 0;
      }
    }
  }

 private:
  const Lines *rows_ = nullptr, *end_ = nullptr;
  std::vector<const float*> maps_;
  int64_t done_ = 0, each_ = 0;  // lines: of the first of the rows, and of a step
};

}  // namespace
