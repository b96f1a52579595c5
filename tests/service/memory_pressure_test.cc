#include "service/memory_pressure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace adapterd {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kLimit = 1000;

// A machine that uses so many bytes, and what was asked of it.
class MemoryPressureTest : public ::testing::Test {
 protected:
  void Watch(int64_t used, int64_t of_caches, int64_t of_adapters) {
    used_ = used;
    const auto read = [this]() -> std::optional<MemoryUse> {
      absl::MutexLock lock(&mutex_);
      ++reads_;
      if (!has_limit_) return std::nullopt;
      return MemoryUse{used_, kLimit};
    };
    MemoryPressure::Relief relief;
    relief.began = [this](const MemoryUse& use) { Note("began at", use.used_bytes, 0); };
    relief.drop_caches = [this, of_caches] { Note("caches", 0, of_caches); };
    relief.evict = [this, of_adapters](int64_t bytes) { Note("adapters", bytes, of_adapters); };
    MemoryPressure pressure(read, std::move(relief), absl::Milliseconds(1));
    absl::MutexLock lock(&mutex_);  // two looks at least: one that finds things as the other left
    mutex_.Await(absl::Condition(
        +[](MemoryPressureTest* test) { return test->reads_ >= 4; }, this));
  }

  std::vector<std::string> TakeNotes() {
    absl::MutexLock lock(&mutex_);
    return notes_;
  }

  bool has_limit_ = true;

 private:
  void Note(const std::string& what, int64_t bytes, int64_t freed) {
    absl::MutexLock lock(&mutex_);
    used_ -= freed;
    notes_.push_back(bytes == 0 ? what : what + " " + std::to_string(bytes));
  }

  absl::Mutex mutex_;
  int64_t used_ = 0;
  int reads_ = 0;
  std::vector<std::string> notes_;
};

TEST_F(MemoryPressureTest, NothingGoesBelowTheLine) {
  Watch(900, 0, 0);
  EXPECT_THAT(TakeNotes(), ElementsAre());
}

TEST_F(MemoryPressureTest, CachesGoFirst) {
  Watch(950, 100, 0);
  EXPECT_THAT(TakeNotes(), ElementsAre("began at 950", "caches"));
}

TEST_F(MemoryPressureTest, AdaptersGoForWhatCachesDidNotGive) {
  Watch(1000, 30, 80);
  EXPECT_THAT(TakeNotes(), ElementsAre("began at 1000", "caches", "adapters 70"));
}

TEST_F(MemoryPressureTest, ItIsToldOnceHoweverLongItLasts) {
  Watch(1000, 0, 10);
  const std::vector<std::string> notes = TakeNotes();
  ASSERT_GE(notes.size(), 5U);
  EXPECT_EQ(notes[3], "caches");
  EXPECT_EQ(notes[4], "adapters 90");
}

TEST_F(MemoryPressureTest, WithoutALimitThereIsNone) {
  has_limit_ = false;
  Watch(5000, 0, 0);
  EXPECT_THAT(TakeNotes(), ElementsAre());
}

}  // namespace
}  // namespace adapterd
