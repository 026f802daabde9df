// Work shared out among the calling thread and XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

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

}  // namespace
