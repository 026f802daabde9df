// What the next run of tiles reads and overwrites, asked for while this one is computed: memory and arithmetic at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

class Ahead {
 public:
  void clear() {
    rows_.clear();
    at_ = 0;
    each_ = 0;
  }
  void add(const float* from, int64_t floats) {
    rows_.push_back({reinterpret_cast<const char*>(from), (floats * int64_t{sizeof(float)} + LINE - 1) / LINE});
  }
  // All that was added, in so many steps: at once, it would only wait.
  void spread(int64_t steps) {
    int64_t lines = 0;
    for (const Row& row : rows_) lines += row.lines;
    each_ = (lines + steps - 1) / steps;
  }
  void step() {
    for (int64_t rest = each_; rest > 0 && at_ < rows_.size();) {
      Row& row = rows_[at_];
      const int64_t count = std::min(rest, row.lines);
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(row.from + i * LINE, 0, 2);  // behind what is in use
      row.from += count * LINE;
      row.lines -= count;
      rest -= count;
      if (!row.lines) ++at_;
    }
  }

 private:
  static constexpr int64_t LINE = 64;  // bytes, of a cache
  struct Row {
    const char* from;
    int64_t lines;
  };
  std::vector<Row> rows_;
  size_t at_ = 0;
  int64_t each_ = 0;
};

}  // namespace
