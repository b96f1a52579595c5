// Whole lines are written, and nothing beside them.
#include "core/compute/stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace adapterd {
namespace {

constexpr std::byte kUntouched{0xa5};

AlignedBuffer Untouched(int64_t lines) {
  AlignedBuffer buffer(lines * kLineBytes);
  std::ranges::fill(buffer.span(), kUntouched);
  return buffer;
}

bool IsLineOf(const std::byte* line, std::byte value) {
  return std::all_of(line, line + kLineBytes, [value](std::byte byte) { return byte == value; });
}

TEST(StreamTest, CopiesLinesToWhereTheyBelong) {
  constexpr int64_t kLines = 5;
  for (const StreamVariant& variant : StreamVariants()) {
    SCOPED_TRACE(variant.name);
    AlignedBuffer from(kLines * kLineBytes);
    for (size_t i = 0; i < from.size(); ++i) from.data()[i] = static_cast<std::byte>(i % 251);
    for (const int64_t stride_lines : {1, 4}) {
      AlignedBuffer to = Untouched(kLines * stride_lines);
      variant.lines(from.data(), kLines, to.data(), stride_lines * kLineBytes);
      FinishStreams();
      for (int64_t i = 0; i < kLines * stride_lines; ++i) {
        const std::byte* line = to.data() + i * kLineBytes;
        if (i % stride_lines == 0) {
          EXPECT_EQ(std::memcmp(line, from.data() + i / stride_lines * kLineBytes, kLineBytes), 0)
              << "line " << i << " of stride " << stride_lines;
        } else {
          EXPECT_TRUE(IsLineOf(line, kUntouched)) << "line " << i << " of stride " << stride_lines;
        }
      }
    }
  }
}

TEST(StreamTest, ZerosTheLinesBetween) {
  constexpr int64_t kLines = 6;
  for (const StreamVariant& variant : StreamVariants()) {
    SCOPED_TRACE(variant.name);
    for (int64_t begin = 0; begin <= kLines; ++begin) {
      for (int64_t end = begin; end <= kLines; ++end) {
        AlignedBuffer to = Untouched(kLines);
        variant.zeros(to.data() + begin * kLineBytes, to.data() + end * kLineBytes);
        FinishStreams();
        for (int64_t i = 0; i < kLines; ++i) {
          const bool zeroed = i >= begin && i < end;
          EXPECT_TRUE(IsLineOf(to.data() + i * kLineBytes, zeroed ? std::byte{0} : kUntouched))
              << "line " << i << " of [" << begin << ", " << end << ")";
        }
      }
    }
  }
}

}  // namespace
}  // namespace adapterd
