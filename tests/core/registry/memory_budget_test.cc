#include "core/registry/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

TEST(MemoryBudgetTest, ReservesUpToTheLastByte) {
  const auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(const Reservation first, budget->Reserve(60));
  ASSERT_OK_AND_ASSIGN(const Reservation second, budget->Reserve(40));
  EXPECT_EQ(budget->used(), 100);
  EXPECT_EQ(first.bytes(), 60);
  EXPECT_THAT(budget->Reserve(0), IsOk());
  EXPECT_THAT(budget->Reserve(1), HasReason(Reason::kMemoryBudgetExceeded));
}

TEST(MemoryBudgetTest, ARefusalSaysWhatWasNeededUsedAndAllowed) {
  const auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(const Reservation held, budget->Reserve(60));
  const absl::Status refused = budget->Reserve(41).status();
  EXPECT_THAT(refused, HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(refused, HasErrorMetadata("needed_bytes", "41"));
  EXPECT_THAT(refused, HasErrorMetadata("used_bytes", "60"));
  EXPECT_THAT(refused, HasErrorMetadata("budget_bytes", "100"));
  EXPECT_EQ(budget->used(), 60);
}

TEST(MemoryBudgetTest, GivesBackWhenTheReservationEnds) {
  const auto budget = MemoryBudget::Create(100);
  {
    ASSERT_OK_AND_ASSIGN(const Reservation held, budget->Reserve(60));
    EXPECT_FALSE(budget->Fits(41));
    EXPECT_TRUE(budget->Fits(40));
  }
  EXPECT_EQ(budget->used(), 0);
  EXPECT_TRUE(budget->Fits(100));
}

TEST(MemoryBudgetTest, ReleaseGivesBackOnce) {
  const auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(Reservation held, budget->Reserve(60));
  held.Release();
  EXPECT_EQ(budget->used(), 0);
  held.Release();
  EXPECT_EQ(budget->used(), 0);
  EXPECT_EQ(held.bytes(), 0);
}

TEST(MemoryBudgetTest, AMovedReservationIsGivenBackOnce) {
  const auto budget = MemoryBudget::Create(100);
  {
    ASSERT_OK_AND_ASSIGN(Reservation first, budget->Reserve(60));
    const Reservation second = std::move(first);
    EXPECT_EQ(budget->used(), 60);
  }
  EXPECT_EQ(budget->used(), 0);
}

TEST(MemoryBudgetTest, AssigningOverAReservationGivesTheOldOneBack) {
  const auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(Reservation first, budget->Reserve(60));
  ASSERT_OK_AND_ASSIGN(Reservation second, budget->Reserve(10));
  first = std::move(second);
  EXPECT_EQ(budget->used(), 10);
  Reservation& same = first;
  first = std::move(same);
  EXPECT_EQ(budget->used(), 10);
  first = Reservation();
  EXPECT_EQ(budget->used(), 0);
}

TEST(MemoryBudgetTest, ReservationsOutliveTheOwnerOfTheBudget) {
  auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(Reservation held, budget->Reserve(60));
  budget.reset();
  held.Release();
}

TEST(MemoryBudgetTest, HugeRequestsAreRefusedWithoutOverflow) {
  const auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(const Reservation held, budget->Reserve(1));
  EXPECT_THAT(budget->Reserve(INT64_MAX), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_FALSE(budget->Fits(INT64_MAX));
  EXPECT_EQ(budget->used(), 1);
}

TEST(MemoryBudgetTest, ThreadsTogetherNeverExceedTheLimit) {
  constexpr int64_t kLimit = 10;
  const auto budget = MemoryBudget::Create(kLimit);
  std::atomic<int64_t> held{0};
  std::atomic<bool> exceeded{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        const int64_t bytes = 1 + (i + t) % 5;
        absl::StatusOr<Reservation> reservation = budget->Reserve(bytes);
        if (!reservation.ok()) continue;
        if (held.fetch_add(bytes) + bytes > kLimit || budget->used() > kLimit) exceeded = true;
        held.fetch_sub(bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(exceeded);
  EXPECT_EQ(budget->used(), 0);
}

}  // namespace
}  // namespace adapterd
