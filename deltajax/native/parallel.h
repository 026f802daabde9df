// Work shared out among the calling thread and XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Threads that have come stay for the jobs that follow: to wake one takes longer than many a job.
class Team {
 public:
  explicit Team(ffi::ThreadPool& pool) : pool_(pool) {}
  Team(const Team&) = delete;
  ~Team() { shared_->over = true; }

  int64_t size() const { return pool_.num_threads(); }

  // work(i) for i in [0, count), by all who are free; `make` gives each of them its `work`.
  template <class Make>
  void run(int64_t count, const Make& make) {
    auto job = std::make_shared<Job>();
    job->count = count;
    job->turn = [&make, job = job.get()](int64_t i) {
      auto work = make();
      int64_t mine = 0;
      for (; i < job->count; i = job->next++, ++mine) work(i);
      job->done += mine;
    };
    if (count > 1) {
      std::atomic_store(&shared_->job, job);
      ++shared_->number;
      for (; called_ + 1 < std::min(count, size()); ++called_) pool_.Schedule([shared = shared_] { shared->help(); });
    }
    job->take();
    while (job->done < count) std::this_thread::yield();
  }

 private:
  struct Job {
    std::atomic<int64_t> next{0}, done{0};
    int64_t count = 0;
    std::function<void(int64_t)> turn;
    // Who comes too late finds nothing left to do, and does not touch what `turn` refers to.
    void take() {
      if (const int64_t i = next++; i < count) turn(i);
    }
  };
  struct Shared {
    std::atomic<bool> over{false};
    std::atomic<int64_t> number{0};  // of jobs so far
    std::shared_ptr<Job> job;        // the last of them
    void help() {
      for (int64_t seen = 0; !over;) {
        const int64_t last = number;
        if (last == seen) std::this_thread::yield();
        else std::atomic_load(&job)->take();
        seen = last;
      }
    }
  };

  ffi::ThreadPool& pool_;
  int64_t called_ = 0;
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace
