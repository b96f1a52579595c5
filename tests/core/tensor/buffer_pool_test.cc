#include "core/tensor/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <thread>
#include <vector>

namespace adapterd {
namespace {

TEST(BufferPoolTest, BuffersHaveTheirSizeOnACacheLine) {
  BufferPool pool(1 << 20);
  for (const size_t size : {0u, 1u, 4096u, 4097u, 5000u, 65536u, 65537u, 1000000u}) {
    PooledBuffer buffer = pool.Take(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kBufferAlignment, 0u);
    std::memset(buffer.data(), 1, size);
  }
}

TEST(BufferPoolTest, WhatIsGivenBackIsUsedAgain) {
  BufferPool pool(1 << 20);
  const std::byte* first = nullptr;
  {
    PooledBuffer buffer = pool.Take(10000);
    first = buffer.data();
    EXPECT_EQ(pool.idle_bytes(), 0);
    EXPECT_GE(pool.used_bytes(), 10000);
  }
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_GE(pool.idle_bytes(), 10000);
  const PooledBuffer again = pool.Take(9900);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(again.size(), 9900u);
  EXPECT_EQ(pool.idle_bytes(), 0);
}

TEST(BufferPoolTest, AtMostAQuarterIsWasted) {
  BufferPool pool(0);
  for (size_t size = 16384; size < 300000; size += 97) {
    const PooledBuffer buffer = pool.Take(size);
    EXPECT_LE(pool.used_bytes(), static_cast<int64_t>(size + size / 4)) << size;
  }
}

TEST(BufferPoolTest, BeyondTheLimitTheOldestGoes) {
  BufferPool pool(3 * 65536);
  const std::byte* newest = nullptr;
  {
    std::vector<PooledBuffer> buffers;
    for (int i = 0; i < 4; ++i) buffers.push_back(pool.Take(65536));
    newest = buffers.back().data();
    for (PooledBuffer& buffer : buffers) buffer = {};
  }
  EXPECT_EQ(pool.idle_bytes(), 3 * 65536);
  EXPECT_EQ(pool.Take(65536).data(), newest);
  { const PooledBuffer larger = pool.Take(2 * 65536); }
  EXPECT_EQ(pool.idle_bytes(), 3 * 65536);  // the larger one and the newest
}

TEST(BufferPoolTest, IdleBuffersMayBeDroppedAndUsedOnesStay) {
  BufferPool pool(1 << 20);
  const PooledBuffer used = pool.Take(65536);
  { const PooledBuffer small = pool.Take(4096), large = pool.Take(131072); }
  EXPECT_EQ(pool.idle_bytes(), 4096 + 131072);
  pool.DropIdle();
  EXPECT_EQ(pool.idle_bytes(), 0);
  EXPECT_EQ(pool.used_bytes(), 65536);
  pool.DropIdle();
}

TEST(BufferPoolTest, WhatIsLargerThanTheLimitIsFreedAtOnce) {
  BufferPool pool(65536);
  { const PooledBuffer small = pool.Take(65536); }
  { const PooledBuffer large = pool.Take(1 << 20); }
  EXPECT_EQ(pool.idle_bytes(), 65536);
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(BufferPoolTest, ABufferMayOutliveItsPool) {
  std::optional<BufferPool> pool(1 << 20);
  PooledBuffer buffer = pool->Take(5000);
  pool.reset();
  std::memset(buffer.data(), 7, buffer.size());
  EXPECT_EQ(buffer.span()[4999], std::byte{7});
}

TEST(BufferPoolTest, AMovedBufferIsGivenBackOnce) {
  BufferPool pool(1 << 20);
  PooledBuffer one = pool.Take(5000);
  PooledBuffer two = std::move(one);
  one = std::move(two);
  two = {};
  EXPECT_GT(pool.used_bytes(), 0);
  one = {};
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(BufferPoolTest, ThreadsNeverShareABuffer) {
  BufferPool pool(1 << 20);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 2000; ++i) {
        PooledBuffer buffer = pool.Take(4096 + 512 * (i % 8));
        std::memset(buffer.data(), t, buffer.size());
        for (const std::byte byte : buffer.span()) ASSERT_EQ(byte, std::byte(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_LE(pool.idle_bytes(), 1 << 20);
}

}  // namespace
}  // namespace adapterd
