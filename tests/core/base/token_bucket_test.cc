#include "core/base/token_bucket.h"

#include <gtest/gtest.h>

namespace adapterd {
namespace {

using std::chrono::milliseconds;

class TokenBucketTest : public ::testing::Test {
 protected:
  // How many of `wanted` events may happen at once, so long after the beginning.
  int Take(milliseconds after, int wanted) {
    int taken = 0;
    for (; taken < wanted && bucket_.HasToken(begin_ + after); ++taken) bucket_.Take();
    return taken;
  }

  TokenBucket bucket_{10};
  const TokenBucket::Clock::time_point begin_ = TokenBucket::Clock::now();
};

TEST_F(TokenBucketTest, IsFullAtFirst) { EXPECT_EQ(Take(milliseconds(0), 100), 10); }

TEST_F(TokenBucketTest, FillsAtItsRate) {
  Take(milliseconds(0), 10);
  EXPECT_EQ(Take(milliseconds(50), 1), 0);
  EXPECT_EQ(Take(milliseconds(350), 100), 3);
  EXPECT_EQ(Take(milliseconds(420), 100), 1);
}

TEST_F(TokenBucketTest, HoldsASecondOfThem) {
  Take(milliseconds(0), 10);
  EXPECT_EQ(Take(milliseconds(3'600'000), 100), 10);
}

TEST_F(TokenBucketTest, AnEarlierMomentFillsAndTakesNothing) {
  Take(milliseconds(500), 10);
  EXPECT_EQ(Take(milliseconds(200), 1), 0);
  EXPECT_EQ(Take(milliseconds(599), 1), 0);
  EXPECT_EQ(Take(milliseconds(601), 100), 1);
}

TEST_F(TokenBucketTest, AskingTakesNothing) {
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(bucket_.HasToken(begin_));
}

}  // namespace
}  // namespace adapterd
