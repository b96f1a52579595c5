#include "core/base/random_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace adapterd {
namespace {

using ::testing::ElementsAre;

std::vector<uint64_t> First(RandomStream stream, size_t count) {
  std::vector<uint64_t> numbers(count);
  for (uint64_t& number : numbers) number = stream.Next();
  return numbers;
}

// Published for state 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
TEST(RandomStreamTest, GivesThePublishedNumbers) {
  EXPECT_THAT(First(RandomStream(1234567), 5),
              ElementsAre(6457827717110365317U, 3203168211198807973U, 9817491932198370423U,
                          4593380528125082431U, 16408922859458223821U));
}

// printf 'adapterd-random-v1\n42\nlora_a' | sha256sum
TEST(RandomStreamTest, BeginsAtTheDigestOfSeedAndPurpose) {
  EXPECT_EQ(First(RandomStream::For(42, "lora_a"), 3), First(RandomStream(0xf3868f838f1a13a4), 3));
}

TEST(RandomStreamTest, SeedsAndPurposesHaveStreamsOfTheirOwn) {
  const auto stream = First(RandomStream::For(1, "a"), 3);
  EXPECT_EQ(First(RandomStream::For(1, "a"), 3), stream);
  EXPECT_NE(First(RandomStream::For(2, "a"), 3), stream);
  EXPECT_NE(First(RandomStream::For(1, "b"), 3), stream);
}

}  // namespace
}  // namespace adapterd
