#include "core/base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <new>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

TEST(ParallelForTest, RunsEveryIndexOnce) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool("pool", threads);
    for (const int64_t count : {0, 1, 2, 3, 100}) {
      std::vector<std::atomic<int>> runs(count);
      EXPECT_THAT(ParallelFor(pool, count, Cancellation(),
                              [&](int64_t i) {
                                ++runs[i];
                                return absl::OkStatus();
                              }),
                  IsOk());
      for (const auto& run : runs) EXPECT_EQ(run, 1);
    }
  }
}

TEST(ParallelForTest, WhatACallThrowsReachesTheCallerWhenNoneRunsAnyMore) {
  ThreadPool pool("pool", 3);
  const std::thread::id caller = std::this_thread::get_id();
  for (const bool from_caller : {true, false}) {
    for (int round = 0; round < 100; ++round) {
      std::atomic<int> running = 0;
      std::atomic<bool> thrown = false;
      const auto body = [&](int64_t) -> absl::Status {
        ++running;
        const bool throws = (std::this_thread::get_id() == caller) == from_caller;
        if (throws) thrown = true;
        while (!thrown) std::this_thread::yield();  // until one of the others has come here
        --running;
        if (throws) throw std::bad_alloc();
        return absl::OkStatus();
      };
      EXPECT_THROW(ParallelFor(pool, 1000, Cancellation(), body).IgnoreError(), std::bad_alloc);
      EXPECT_EQ(running, 0);
    }
  }
  EXPECT_THAT(ParallelFor(pool, 10, Cancellation(), [](int64_t) { return absl::OkStatus(); }),
              IsOk());
}

TEST(ParallelForTest, UsesNoMoreThreadsThanThePoolHas) {
  ThreadPool pool("pool", 3);
  std::atomic<int> running = 0;
  std::atomic<int> most = 0;
  EXPECT_THAT(ParallelFor(pool, 200, Cancellation(),
                          [&](int64_t) {
                            const int now = ++running;
                            for (int seen = most; seen < now;) {
                              if (most.compare_exchange_weak(seen, now)) break;
                            }
                            std::this_thread::yield();
                            --running;
                            return absl::OkStatus();
                          }),
              IsOk());
  EXPECT_LE(most, 3);
}

TEST(ParallelForTest, DoesNotWaitForHelpersThatHaveNotStarted) {
  ThreadPool pool("pool", 2);
  absl::Notification release;
  std::latch busy(2);
  for (int i = 0; i < 2; ++i) {
    pool.Submit([&] {
      busy.count_down();
      release.WaitForNotification();
    });
  }
  busy.wait();
  int sum = 0;
  {
    const auto body = [&sum](int64_t i) {
      sum += static_cast<int>(i);
      return absl::OkStatus();
    };
    EXPECT_THAT(ParallelFor(pool, 10, Cancellation(), body), IsOk());
  }
  EXPECT_EQ(sum, 45);
  release.Notify();  // the late helper must not touch `body`, which is gone
}

TEST(ParallelForTest, AllThreadsOfThePoolMayCallItAtOnce) {
  constexpr int kThreads = 4;
  ThreadPool pool("pool", kThreads);
  std::atomic<int> runs = 0;
  std::latch started(kThreads);
  std::latch done(kThreads);
  for (int caller = 0; caller < kThreads; ++caller) {
    pool.Submit([&] {
      started.arrive_and_wait();  // now no thread is left to help
      EXPECT_THAT(ParallelFor(pool, 50, Cancellation(),
                              [&](int64_t) {
                                ++runs;
                                return absl::OkStatus();
                              }),
                  IsOk());
      done.count_down();
    });
  }
  done.wait();
  EXPECT_EQ(runs, kThreads * 50);
}

TEST(ParallelForTest, JobsDoNotWaitForTheEndOfALoop) {
  ThreadPool pool("pool", 2);
  absl::Notification block;
  pool.Submit([&block] { block.WaitForNotification(); });  // leaves one thread
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> jobs{0};
  std::atomic<bool> helped{false};
  Cancellation cancellation;
  const auto body = [&](int64_t) {
    if (std::this_thread::get_id() != caller) {
      helped = true;
      return absl::OkStatus();
    }
    while (!helped) std::this_thread::yield();
    for (int job = 1; job <= 3; ++job) {
      pool.Submit([&jobs] { ++jobs; });
      while (jobs < job) std::this_thread::yield();  // the loop goes on meanwhile
    }
    cancellation.Cancel();
    return absl::OkStatus();
  };
  EXPECT_THAT(ParallelFor(pool, int64_t{1} << 60, cancellation, body),
              HasReason(Reason::kCancelled));
  EXPECT_EQ(jobs, 3);
  block.Notify();
}

TEST(ParallelForTest, StopsAtTheFirstError) {
  for (const int threads : {1, 4}) {
    ThreadPool pool("pool", threads);
    std::atomic<int> runs = 0;
    EXPECT_THAT(ParallelFor(pool, 1'000'000, Cancellation(),
                            [&](int64_t) {
                              ++runs;
                              return absl::InternalError("broken");
                            }),
                StatusIs(absl::StatusCode::kInternal));
    EXPECT_LE(runs, threads);
  }
}

TEST(ParallelForTest, StopsWhenCancelled) {
  for (const int threads : {1, 4}) {
    ThreadPool pool("pool", threads);
    Cancellation cancellation;
    std::atomic<int> runs = 0;
    EXPECT_THAT(ParallelFor(pool, 1'000'000, cancellation,
                            [&](int64_t) {
                              if (++runs == 10) cancellation.Cancel();
                              return absl::OkStatus();
                            }),
                StatusIs(absl::StatusCode::kCancelled));
    EXPECT_LT(runs, 10 + threads);
  }
}

}  // namespace
}  // namespace adapterd
