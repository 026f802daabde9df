// The frame against the held frame: where it differs, and what is held from now on. `_detect.py` by one pass over both.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "parallel.h"

namespace {

// What is gathered of each number's difference, and when it is a change. NaN always is.
template <class T>
struct Unequal {
  using Sum = uint8_t;
  explicit Unequal(float) {}
  static void add(Sum& sum, T now, T before) { sum |= now != before; }
  static void join(Sum& sum, Sum other) { sum |= other; }
  static bool end(Sum sum) { return sum; }
};

template <class T>
struct Farther {  // than `limit`, in some number
  using Sum = uint8_t;
  T limit;
  explicit Farther(float tau)
      : limit(std::is_integral_v<T> ? static_cast<T>(std::min(tau, 255.0f)) : static_cast<T>(tau)) {}
  void add(Sum& sum, T now, T before) const {
    const T apart = now > before ? now - before : before - now;
    sum |= !(apart <= limit);
  }
  static void join(Sum& sum, Sum other) { sum |= other; }
  static bool end(Sum sum) { return sum; }
};

// Bytes in whole numbers: there is room for the sum (`_frame.py`).
template <class T, bool SQUARES>
struct Norm {
  using Sum = std::conditional_t<std::is_integral_v<T>, int32_t, T>;
  float tau;
  explicit Norm(float least) : tau(least) {}
  static void add(Sum& sum, T now, T before) {
    const Sum gap = static_cast<Sum>(now) - static_cast<Sum>(before);
    sum += SQUARES ? gap * gap : gap < 0 ? -gap : gap;
  }
  static void join(Sum& sum, Sum other) { sum += other; }
  bool end(Sum sum) const {
    const float size = static_cast<float>(sum);
    return !((SQUARES ? std::sqrt(size) : size) <= tau);
  }
};

struct Detection {
  enum How : int64_t { EXACT, LARGEST, ABSOLUTE, SQUARES };  // what is compared with the threshold
  static constexpr int64_t ROWS = 16;                        // of a turn, at least

  int64_t bytes, how, trust, cell, height, width, channels, rows, cols, top, left;  // rows x cols: in storage
  int64_t streams = 0;
  const uint8_t *fresh = nullptr, *given = nullptr;
  const float* tau = nullptr;
  uint8_t *mask = nullptr, *flags = nullptr;

  explicit Detection(const int64_t* words) {
    for (int64_t* field :
         {&bytes, &how, &trust, &cell, &height, &width, &channels, &rows, &cols, &top, &left})
      *field = *words++;
  }

  template <class T>
  void run(Team& team, const T* frame, T* held) const {
    std::memset(flags, 0, streams);
    const int64_t turn = std::max(cell, ROWS / cell * cell), turns = (height + turn - 1) / turn;
    team.run(streams * turns, [&] {
      return [&](int64_t i) {
        const int64_t stream = i / turns, first = i % turns * turn, last = std::min(height, first + turn);
        if (some(stream, first, last, frame, held))
          __atomic_store_n(flags + stream, uint8_t{1}, __ATOMIC_RELAXED);
      };
    });
  }

 private:
  // Rows `first` to `last` of one picture; whether anything has changed there.
  template <class T>
  bool some(int64_t stream, int64_t first, int64_t last, const T* frame, T* held) const {
    const int64_t at = stream * height * width, length = width * channels;
    frame += at * channels;
    held += ((stream * rows + top) * cols + left) * channels;
    uint8_t* const marked = mask + at;
    if (fresh[stream]) {
      std::memset(marked + first * width, 1, (last - first) * width);
    } else {
      if (trust) std::memset(marked + first * width, 0, (last - first) * width);
      else if (how == EXACT) compare<Unequal<T>>(stream, first, last, frame, held, marked);
      else if (how == LARGEST) compare<Farther<T>>(stream, first, last, frame, held, marked);
      else if (how == ABSOLUTE) compare<Norm<T, false>>(stream, first, last, frame, held, marked);
      else compare<Norm<T, true>>(stream, first, last, frame, held, marked);
      if (given)
        for (int64_t i = first * width; i < last * width; ++i) marked[i] |= given[at + i];
    }
    bool any = false;
    for (int64_t r = first; r < last; ++r) {
      const uint8_t *row = marked + r * width, *const end = row + width;
      const T* from = frame + r * length;
      T* to = held + r * cols * channels;
      if (how == EXACT && !trust) {  // what is not marked is equal
        if (find(row, end, 1) != end) {
          std::memcpy(to, from, length * sizeof(T));
          any = true;
        }
        continue;
      }
      for (const uint8_t* begin = row; (begin = find(begin, end, 1)) != end; any = true) {
        const uint8_t* stop = find(begin, end, 0);
        std::memcpy(to + (begin - row) * channels, from + (begin - row) * channels,
                    (stop - begin) * channels * sizeof(T));
        begin = stop;
      }
    }
    return any;
  }

  static const uint8_t* find(const uint8_t* from, const uint8_t* end, int value) {
    const void* found = std::memchr(from, value, end - from);
    return found ? static_cast<const uint8_t*>(found) : end;
  }

  template <class Gap>
  void cells(const Gap& gap, const typename Gap::Sum* sums, uint8_t* row) const {
    for (int64_t c = 0; c < width; c += cell) {
      const int64_t wide = std::min(cell, width - c);
      typename Gap::Sum size = 0;
      for (int64_t i = c * channels; i < (c + wide) * channels; ++i) Gap::join(size, sums[i]);
      std::memset(row + c, gap.end(size), wide);
    }
  }

  // The same for cells of one position, with a number of channels that the compiler makes vectors for.
  template <int CHANNELS, class Gap>
  void positions(const Gap& gap, const typename Gap::Sum* __restrict sums, uint8_t* __restrict row) const {
    for (int64_t c = 0; c < width; ++c) {
      typename Gap::Sum size = sums[c * CHANNELS];
      for (int k = 1; k < CHANNELS; ++k) Gap::join(size, sums[c * CHANNELS + k]);
      row[c] = gap.end(size);
    }
  }

  // Row by row of cells: number by number over their rows, then over the numbers of each.
  template <class Gap, class T>
  void compare(int64_t stream, int64_t first, int64_t last, const T* frame, const T* held, uint8_t* marked) const {
    const Gap gap(tau[stream]);
    const int64_t length = width * channels;
    std::vector<typename Gap::Sum> gathered(length);
    auto* const __restrict sums = gathered.data();
    for (int64_t y = first; y < last; y += cell) {
      const int64_t count = std::min(cell, last - y);
      uint8_t* const row = marked + y * width;
      bool equal = std::is_integral_v<T>;
      for (int64_t r = y; r < y + count && equal; ++r)
        equal = !std::memcmp(frame + r * length, held + r * cols * channels, length * sizeof(T));
      if (equal) {
        std::memset(row, 0, count * width);
        continue;
      }
      std::memset(sums, 0, length * sizeof *sums);
      for (int64_t r = y; r < y + count; ++r) {
        const T *now = frame + r * length, *before = held + r * cols * channels;
        for (int64_t i = 0; i < length; ++i) gap.add(sums[i], now[i], before[i]);
      }
      if (cell == 1 && channels == 1) positions<1>(gap, sums, row);
      else if (cell == 1 && channels == 3) positions<3>(gap, sums, row);
      else if (cell == 1 && channels == 4) positions<4>(gap, sums, row);
      else cells(gap, sums, row);
      for (int64_t r = 1; r < count; ++r) std::memcpy(row + r * width, row, width);
    }
  }
};

}  // namespace
