// Work shared out among the calling thread and XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Waits a moment: at first without the system, whose call takes longer than most waits.
class Moment {
 public:
  void pass() {
    if (++passed_ > 64) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

 private:
  int passed_ = 0;
};

// Threads that have come stay for the jobs that follow: to wake one takes longer than many a job. Who came as the k-th
// begins each of them with its k-th part, so that what one job writes and the next one reads, neighbours of one another,
// stays in one core's cache; then it helps with the parts of the others.
class Team {
 public:
  explicit Team(ffi::ThreadPool& pool) : pool_(pool) {}
  Team(const Team&) = delete;
  ~Team() { shared_->over = true; }

  int64_t size() const { return pool_.num_threads(); }

  // work(i) for i in [0, count), by all who are free, most of them in order; `make` gives each of them its `work`.
  template <class Make>
  void run(int64_t count, const Make& make) {
    auto job = std::make_shared<Job>(count, size());
    job->turn = [&make, job = job.get()](int64_t who, int64_t i) {
      auto work = make();
      int64_t mine = 0;
      for (; i >= 0; i = job->claim(who), ++mine) work(i);
      job->done += mine;
    };
    if (count > 1) {
      std::atomic_store(&shared_->job, job);
      ++shared_->number;
      for (; called_ + 1 < std::min(count, size()); ++called_) pool_.Schedule([shared = shared_] { shared->help(); });
    }
    job->take(0);
    for (Moment moment; job->done < count;) moment.pass();
  }

 private:
  struct alignas(64) Part {  // of its own line of a cache: its owner alone is at it, most of the time
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Job {
    const int64_t count;
    std::vector<Part> parts;
    std::atomic<int64_t> done{0};
    std::function<void(int64_t, int64_t)> turn;
    Job(int64_t all, int64_t size) : count(all), parts(size) {
      for (int64_t k = 0; k < size; ++k) {
        parts[k].next = k * all / size;
        parts[k].end = (k + 1) * all / size;
      }
    }
    // The next one, of the part of `who` or else of another's; -1: none is left.
    int64_t claim(int64_t who) {
      for (size_t k = 0; k < parts.size(); ++k) {
        Part& part = parts[(who + k) % parts.size()];
        if (part.next >= part.end) continue;
        if (const int64_t i = part.next++; i < part.end) return i;
      }
      return -1;
    }
    // Who comes too late finds nothing left to do, and does not touch what `turn` refers to.
    void take(int64_t who) {
      if (const int64_t i = claim(who); i >= 0) turn(who, i);
    }
  };
  struct Shared {
    std::atomic<bool> over{false};
    std::atomic<int64_t> number{0};  // of jobs so far
    std::atomic<int64_t> came{1};    // with the calling thread
    std::shared_ptr<Job> job;        // the last of them
    void help() {
      const int64_t who = came++;
      Moment moment;
      for (int64_t seen = 0; !over;) {
        const int64_t last = number;
        if (last == seen) {
          moment.pass();
        } else {
          std::atomic_load(&job)->take(who);
          moment = {};
        }
        seen = last;
      }
    }
  };

  ffi::ThreadPool& pool_;
  int64_t called_ = 0;
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace
