#include "core/base/thread_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/synchronization/barrier.h"
#include "absl/synchronization/notification.h"
#include "core/base/cancellation.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

TEST(ThreadPoolTest, OneThreadRunsJobsInTheirOrder) {
  std::vector<int> order;
  {
    ThreadPool pool("order", 1);
    for (int i = 0; i < 100; ++i) pool.Submit([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(ThreadPoolTest, TheDestructorRunsWhatIsQueued) {
  std::atomic<int> ran = 0;
  {
    ThreadPool pool("drain", 3);
    for (int i = 0; i < 1000; ++i) pool.Submit([&ran] { ++ran; });
  }
  EXPECT_EQ(ran, 1000);
}

TEST(ThreadPoolTest, JobsMaySubmitJobsEvenDuringDestruction) {
  std::atomic<int> ran = 0;
  {
    ThreadPool pool("nested", 2);
    pool.Submit([&] {
      ++ran;
      pool.Submit([&] {
        ++ran;
        pool.Submit([&] { ++ran; });
      });
    });
  }
  EXPECT_EQ(ran, 3);
}

TEST(ThreadPoolTest, ThreadsRunAtTheSameTime) {
  ThreadPool pool("barrier", 3);
  EXPECT_EQ(pool.threads(), 3);
  // Each job waits for the two others: with fewer threads this never ends.
  auto* barrier = new absl::Barrier(3);
  for (int i = 0; i < 3; ++i) {
    pool.Submit([barrier] {
      if (barrier->Block()) delete barrier;
    });
  }
}

TEST(ThreadPoolTest, QueueLengthCountsWhatWaits) {
  absl::Notification started;
  absl::Notification release;
  ThreadPool pool("queue", 1);
  pool.Submit([&] {
    started.Notify();
    release.WaitForNotification();
  });
  started.WaitForNotification();
  EXPECT_EQ(pool.queue_length(), 0);
  pool.Submit([] {});
  pool.Submit([] {});
  EXPECT_EQ(pool.queue_length(), 2);
  release.Notify();
}

TEST(ThreadPoolTest, OnStartRunsOncePerThreadBeforeItsJobs) {
  std::atomic<int> starts = 0;
  static thread_local bool started_here = false;
  std::atomic<int> unprepared = 0;
  {
    ThreadPool pool("start", 3, [&] {
      ++starts;
      started_here = true;
    });
    for (int i = 0; i < 100; ++i) pool.Submit([&] { unprepared += started_here ? 0 : 1; });
  }
  EXPECT_EQ(starts, 3);
  EXPECT_EQ(unprepared, 0);
}

TEST(ThreadPoolTest, ThreadsCarryTheirName) {
  std::string name;
  {
    ThreadPool pool("adapterd-io", 1);
    pool.Submit([&name] {
      std::array<char, 16> buffer = {};
      pthread_getname_np(pthread_self(), buffer.data(), buffer.size());
      name = buffer.data();
    });
  }
  EXPECT_EQ(name, "adapterd-io");
}

TEST(ThreadPoolTest, AJobAndWhatItHoldsAreGoneOnceItRan) {
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> watch = held;
  absl::Notification later;
  ThreadPool pool("release", 1);
  pool.Submit([held = std::move(held)] {});
  pool.Submit([&later] { later.Notify(); });
  later.WaitForNotification();
  EXPECT_TRUE(watch.expired());
}

// Counts who helps, and lets nobody go before it is told.
struct WorkToShare final : ThreadPool::SharedWork {
  bool Help() override {
    ++helpers;
    release.WaitForNotification();
    ++done;
    return false;
  }

  std::atomic<int> helpers = 0;
  std::atomic<int> done = 0;
  absl::Notification release;
};

TEST(ThreadPoolTest, SharedWorkGetsAsManyThreadsAsItAskedForAndIsAwaited) {
  for (const int wanted : {1, 2, 4}) {
    ThreadPool pool("share", 4);
    WorkToShare work;
    pool.Share(work, wanted);
    while (work.helpers < wanted) std::this_thread::yield();
    absl::Notification job;
    if (wanted < 4) {  // a thread is left
      pool.Submit([&job] { job.Notify(); });
      job.WaitForNotification();
    }
    work.release.Notify();
    pool.Withdraw(work);
    EXPECT_EQ(work.helpers, wanted);
    EXPECT_EQ(work.done, wanted);
  }
}

TEST(ThreadPoolTest, WithdrawnWorkIsNotHelpedAnyMore) {
  ThreadPool pool("share", 1);
  absl::Notification busy, release;
  pool.Submit([&] {
    busy.Notify();
    release.WaitForNotification();
  });
  busy.WaitForNotification();
  {
    WorkToShare first, second, third;
    pool.Share(first, 1);
    pool.Share(second, 2);
    pool.Share(third, 3);
    pool.Withdraw(second);
    pool.Withdraw(third);
    pool.Withdraw(first);
    EXPECT_EQ(first.helpers + second.helpers + third.helpers, 0);
  }
  release.Notify();
}

TEST(CancellationTest, CopiesShareOneFlag) {
  Cancellation mine;
  const Cancellation theirs = mine;
  EXPECT_FALSE(theirs.IsCancelled());
  EXPECT_THAT(theirs.Check(), IsOk());
  mine.Cancel();
  mine.Cancel();
  EXPECT_TRUE(theirs.IsCancelled());
  EXPECT_THAT(theirs.Check(), HasReason(Reason::kCancelled));
}

TEST(CancellationTest, SeparateOnesAreIndependent) {
  Cancellation first;
  const Cancellation second;
  first.Cancel();
  EXPECT_FALSE(second.IsCancelled());
}

TEST(CancellationTest, ReachesAnotherThread) {
  Cancellation cancellation;
  absl::Notification seen;
  ThreadPool pool("cancel", 1);
  pool.Submit([cancellation, &seen] {
    while (!cancellation.IsCancelled()) {
    }
    seen.Notify();
  });
  cancellation.Cancel();
  seen.WaitForNotification();
}

}  // namespace
}  // namespace adapterd
