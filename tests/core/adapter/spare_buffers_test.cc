#include "core/adapter/spare_buffers.h"

#include <gtest/gtest.h>

#include <utility>

namespace adapterd {
namespace {

TEST(SpareBuffersTest, TheLastOneGivenIsUsedFirst) {
  SpareBuffers spares;
  AlignedBuffer first = spares.Take(1000);
  AlignedBuffer second = spares.Take(1000);
  const std::byte* const memory = second.data();
  spares.Give(std::move(first));
  spares.Give(std::move(second));
  AlignedBuffer again = spares.Take(10);
  EXPECT_EQ(again.data(), memory);
  EXPECT_EQ(again.size(), 10u);
  EXPECT_EQ(again.capacity(), 1000u);
}

TEST(SpareBuffersTest, ASpareThatIsTooSmallIsReplaced) {
  SpareBuffers spares;
  spares.Give(AlignedBuffer(10));
  const AlignedBuffer larger = spares.Take(1000);
  EXPECT_EQ(larger.size(), 1000u);
  EXPECT_EQ(larger.capacity(), 1000u);
}

TEST(SpareBuffersTest, KeepsNeitherLargeBuffersNorOnesThatWereMovedFrom) {
  SpareBuffers spares;
  AlignedBuffer large = spares.Take(SpareBuffers::kMaxBytes + 1);
  EXPECT_EQ(large.size(), SpareBuffers::kMaxBytes + 1);
  spares.Give(std::move(large));
  AlignedBuffer kept(1000);
  const AlignedBuffer elsewhere = std::move(kept);
  spares.Give(std::move(kept));  // NOLINT(bugprone-use-after-move): what a sink leaves
  const AlignedBuffer taken = spares.Take(100);
  EXPECT_EQ(taken.capacity(), 100u);
  EXPECT_NE(taken.data(), nullptr);
}

}  // namespace
}  // namespace adapterd
