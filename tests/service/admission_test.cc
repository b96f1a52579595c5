#include "service/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "core/base/error.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

class AdmissionTest : public ::testing::Test {
 protected:
  prometheus::Gauge gauge_;
  Admission admission_{100, gauge_};
};

TEST_F(AdmissionTest, BytesAreCountedWhileTheTicketLives) {
  {
    ASSERT_OK_AND_ASSIGN(const Admission::Ticket first, admission_.Admit(60));
    ASSERT_OK_AND_ASSIGN(const Admission::Ticket second, admission_.Admit(40));
    EXPECT_EQ(gauge_.Value(), 100);
    EXPECT_THAT(admission_.Admit(1).status(), HasReason(Reason::kOverloaded));
    EXPECT_EQ(gauge_.Value(), 100);
  }
  EXPECT_EQ(gauge_.Value(), 0);
}

TEST_F(AdmissionTest, ARequestLargerThanTheLimitIsLetInAlone) {
  {
    ASSERT_OK_AND_ASSIGN(const Admission::Ticket small, admission_.Admit(1));
    EXPECT_THAT(admission_.Admit(1000).status(), HasReason(Reason::kOverloaded));
  }
  ASSERT_OK_AND_ASSIGN(const Admission::Ticket large, admission_.Admit(1000));
  EXPECT_EQ(gauge_.Value(), 1000);
  EXPECT_THAT(admission_.Admit(0).status(), HasReason(Reason::kOverloaded));
}

TEST_F(AdmissionTest, ATicketGrowsWithinTheLimitOrAlone) {
  ASSERT_OK_AND_ASSIGN(Admission::Ticket first, admission_.Admit(50));
  EXPECT_THAT(first.Grow(500), IsOk());  // nobody else is in
  EXPECT_EQ(gauge_.Value(), 550);
  first = Admission::Ticket();
  EXPECT_EQ(gauge_.Value(), 0);
  ASSERT_OK_AND_ASSIGN(first, admission_.Admit(50));
  ASSERT_OK_AND_ASSIGN(Admission::Ticket second, admission_.Admit(30));
  EXPECT_THAT(second.Grow(21), HasReason(Reason::kOverloaded));
  EXPECT_EQ(gauge_.Value(), 80);
  EXPECT_THAT(second.Grow(20), IsOk());
  EXPECT_EQ(gauge_.Value(), 100);
  second = Admission::Ticket();
  EXPECT_EQ(gauge_.Value(), 50);
}

TEST_F(AdmissionTest, AMovedTicketIsGivenBackOnce) {
  {
    ASSERT_OK_AND_ASSIGN(Admission::Ticket first, admission_.Admit(60));
    const Admission::Ticket second = std::move(first);
    EXPECT_EQ(gauge_.Value(), 60);
  }
  EXPECT_EQ(gauge_.Value(), 0);
}

TEST_F(AdmissionTest, RequestsAreCountedToo) {
  std::vector<Admission::Ticket> tickets;
  for (int i = 0; i < kMaxAdmittedRequests; ++i) {
    ASSERT_OK_AND_ASSIGN(Admission::Ticket ticket, admission_.Admit(0));
    tickets.push_back(std::move(ticket));
  }
  EXPECT_THAT(admission_.Admit(0).status(), HasReason(Reason::kOverloaded));
  tickets.pop_back();
  EXPECT_THAT(admission_.Admit(0).status(), IsOk());
}

}  // namespace
}  // namespace adapterd
