#include "service/queue_limit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "core/base/error.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

constexpr int kJobs = 1000;  // until the average is what they took

// Two threads that are busy until the end of the test.
class QueueLimitTest : public ::testing::Test {
 protected:
  QueueLimitTest() {
    for (int i = 0; i < 2; ++i) Submit();
    while (workers_.queue_length() > 0) absl::SleepFor(absl::Milliseconds(1));
  }
  ~QueueLimitTest() override { end_.Notify(); }

  void Submit() {
    workers_.Submit([this] { end_.WaitForNotification(); });
  }
  void Queue(int jobs) {
    while (workers_.queue_length() < jobs) Submit();
  }
  void JobsTook(absl::Duration time) {
    for (int i = 0; i < kJobs; ++i) limit_.Ran(time);
  }

  absl::Notification end_;
  ThreadPool workers_{"test", 2};
  QueueLimit limit_{workers_};
};

TEST_F(QueueLimitTest, WhatWouldWaitTooLongIsRefused) {
  JobsTook(absl::Microseconds(500));
  Queue(399);  // jobs of half a millisecond on two threads
  EXPECT_THAT(limit_.Check(), IsOk());
  Queue(402);
  EXPECT_THAT(limit_.Check(), HasReason(Reason::kOverloaded));
}

TEST_F(QueueLimitTest, QuickJobsMayBeMany) {
  JobsTook(absl::Microseconds(10));
  Queue(10'000);
  EXPECT_THAT(limit_.Check(), IsOk());
  JobsTook(absl::Milliseconds(1));  // it is what they take now that counts
  EXPECT_THAT(limit_.Check(), HasReason(Reason::kOverloaded));
}

TEST_F(QueueLimitTest, AFewMayWaitHoweverLongTheyTake) {
  JobsTook(absl::Seconds(10));
  Queue(2 * kPatientJobs - 1);
  EXPECT_THAT(limit_.Check(), IsOk());
  Queue(2 * kPatientJobs);
  EXPECT_THAT(limit_.Check(), HasReason(Reason::kOverloaded));
}

TEST_F(QueueLimitTest, NothingIsRefusedBeforeItIsKnownWhatJobsTake) {
  Queue(10'000);
  EXPECT_THAT(limit_.Check(), IsOk());
}

}  // namespace
}  // namespace adapterd
