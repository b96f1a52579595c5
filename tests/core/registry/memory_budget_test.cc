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
    EXPECT_THAT(budget->Reserve(41).status(), HasReason(Reason::kMemoryBudgetExceeded));
    EXPECT_THAT(budget->Reserve(40).status(), IsOk());
  }
  EXPECT_EQ(budget->used(), 0);
  EXPECT_THAT(budget->Reserve(100).status(), IsOk());
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
  EXPECT_EQ(budget->used(), 1);
}

TEST(MemoryBudgetTest, AsksForRoomAsLongAsThatHelps) {
  const auto budget = MemoryBudget::Create(100);
  std::vector<Reservation> held;
  for (int i = 0; i < 4; ++i) held.push_back(budget->Reserve(25).value());
  std::vector<int64_t> asked;
  int freed = 0;
  budget->Attach(
      [&](int64_t missing) {
        asked.push_back(missing);
        if (held.size() == 1) return false;
        held.pop_back();
        return true;
      },
      [&] { ++freed; });
  ASSERT_OK_AND_ASSIGN(const Reservation more, budget->Reserve(60));
  EXPECT_THAT(asked, ::testing::ElementsAre(60, 35, 10));
  EXPECT_EQ(freed, 3);
  EXPECT_EQ(budget->used(), 85);
  EXPECT_THAT(budget->Reserve(41), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(asked.size(), 4u);
  EXPECT_THAT(budget->Reserve(101), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(asked.size(), 4u) << "nothing could make that fit";
  budget->Detach();
}

TEST(MemoryBudgetTest, ALoweredLimitHoldsForWhatComesNext) {
  const auto budget = MemoryBudget::Create(100);
  ASSERT_OK_AND_ASSIGN(Reservation held, budget->Reserve(80));
  budget->SetLimit(50);
  EXPECT_EQ(budget->used(), 80);
  EXPECT_THAT(budget->Reserve(1), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(budget->Reserve(INT64_MAX), HasReason(Reason::kMemoryBudgetExceeded));
  held.Release();
  EXPECT_THAT(budget->Reserve(50).status(), IsOk());
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
