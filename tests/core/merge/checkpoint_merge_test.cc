// Whole checkpoints: what PEFT made of them, and disks and callers that give up in the middle.
#include "core/merge/checkpoint_merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/adapter/adapter_reader.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/formats/checkpoint.h"
#include "core/registry/adapter_registry.h"
#include "core/tensor/convert.h"
#include "tests/testing/pending.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

namespace fs = std::filesystem;

using ::testing::IsEmpty;

const fs::path kPeft = fs::path(ADAPTERD_FIXTURES) / "peft";

// The real disk, but for what a test lets go wrong. Any thread.
class FaultyDisk final : public Disk {
 public:
  std::atomic<int> writes = 0;
  std::atomic<int> fail_at = -1;      // this write finds the disk full
  std::atomic<int> cancel_at = -1;    // with this write the caller goes away
  std::atomic<bool> can_copy = true;  // inside the system
  Cancellation cancellation;

  int64_t WriteAt(int file, int64_t offset, std::span<const std::byte> bytes) override {
    const int number = writes++;
    if (number == fail_at) return -ENOSPC;
    if (number == cancel_at) cancellation.Cancel();
    return Disk::WriteAt(file, offset, bytes);
  }
  int64_t CopyRange(int from, int64_t from_offset, int to, int64_t to_offset,
                    int64_t bytes) override {
    return can_copy ? Disk::CopyRange(from, from_offset, to, to_offset, bytes) : -EXDEV;
  }
};

class CheckpointMergeTest : public ::testing::Test {
 protected:
  CheckpointMergeTest() {
    const auto adapters = Roots(kPeft / "merge");
    registry_.emplace(RegistryOptions(), kernels_, OpenFromRoots(adapters, models_, nullptr),
                      MemoryBudget::Create(int64_t{1} << 30), io_);
  }

  static std::shared_ptr<const SourceRoots> Roots(const fs::path& path) {
    return std::make_shared<const SourceRoots>(SourceRoots::Open({{"", path.string()}}).value());
  }

  // Loads the fixture's adapter once, and merges it.
  absl::StatusOr<CheckpointMergeResult> Merge(const std::string& name,
                                              CheckpointMergeRequest request = {}) {
    if (!registry_->Get(name).ok()) {
      LoadRequest load;
      load.name = name;
      load.source.source = name + "/adapter";
      Pending<LoadResult> loaded;
      registry_->Load(std::move(load), loaded.Callback());
      RETURN_IF_ERROR(loaded.Wait().status());
    }
    Pending<std::vector<AdapterHandle>> acquired;
    registry_->Acquire({{name, ""}}, false, acquired.Callback());
    ASSIGN_OR_RETURN(const std::vector<AdapterHandle> handles, acquired.Wait());
    request.source = SourceOf(name);
    request.output = name;
    request.adapters = {{name, 1, handles.data()}};
    const SourceRoots outputs = SourceRoots::Open({{"", dir_.path().string()}}).value();
    const CheckpointMergePlaces places{*models_, outputs, kernels_, helpers_, disk_};
    return MergeCheckpoint(
        places, request, [this](const CheckpointProgress& p) { phases_.emplace_back(p.phase); },
        disk_->cancellation);
  }

  static std::string SourceOf(const std::string& name) {
    std::ifstream file(kPeft / "merge" / name / "case.json");
    return nlohmann::json::parse(file)["base"];
  }

  static Checkpoint Open(const fs::path& path) {
    return Checkpoint::Open(SourceRoots::Open({{"", path.string()}})->OpenFolder(".").value())
        .value();
  }

  static std::vector<float> ValuesOf(const Checkpoint& checkpoint, const CheckpointTensor& tensor) {
    std::vector<std::byte> bytes(tensor.bytes);
    EXPECT_THAT(checkpoint.ReadRows(tensor, 1, 0, bytes), IsOk());
    std::vector<float> values(tensor.bytes / FloatBytes(tensor.dtype));
    ConvertToF32(tensor.dtype, bytes.data(), values.data(), static_cast<int64_t>(values.size()));
    return values;
  }

  // F32: 1e-5 relative and 1e-6 absolute; BF16: one unit in the last place, in few elements.
  static void ExpectLikePeft(const fs::path& output, const fs::path& merged) {
    const Checkpoint ours = Open(output);
    const Checkpoint theirs = Open(merged);
    ASSERT_EQ(ours.tensors().size(), theirs.tensors().size());
    for (const CheckpointTensor& tensor : ours.tensors()) {
      SCOPED_TRACE(tensor.name);
      const CheckpointTensor* expected = theirs.Find(tensor.name);
      ASSERT_NE(expected, nullptr);
      ASSERT_EQ(tensor.dtype, expected->dtype);
      ASSERT_EQ(tensor.shape, expected->shape);
      const std::vector<float> a = ValuesOf(ours, tensor);
      const std::vector<float> b = ValuesOf(theirs, *expected);
      const bool half = tensor.dtype == DType::kBF16;
      size_t off = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        const double magnitude = std::abs(b[i]);
        const double ulp = std::ldexp(1.0, std::ilogb(magnitude) - 7);
        const double tolerance = half ? ulp : 1e-5 * magnitude + 1e-6;
        ASSERT_LE(std::abs(a[i] - b[i]), tolerance) << i;
        off += a[i] != b[i] ? 1 : 0;
      }
      if (half) EXPECT_LE(off, a.size() / 500);
    }
  }

  std::vector<std::string> Entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_.path())) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  TempDir dir_;
  const std::shared_ptr<FaultyDisk> disk_ = std::make_shared<FaultyDisk>();
  const std::shared_ptr<const SourceRoots> models_ = Roots(kPeft);
  Kernels kernels_;
  ThreadPool io_{"io", 1};
  ThreadPool helpers_{"merge-help", 2, PrepareComputeThread};
  std::vector<std::string> phases_;
  std::optional<AdapterRegistry> registry_;
};

TEST_F(CheckpointMergeTest, EveryFixtureComesOutAsPeftMergedIt) {
  size_t cases = 0;
  for (const auto& folder : fs::directory_iterator(kPeft / "merge")) {
    const std::string name = folder.path().filename();
    SCOPED_TRACE(name);
    ASSERT_THAT(Merge(name), IsOk());
    ExpectLikePeft(dir_ / name, folder.path() / "merged");
    ++cases;
  }
  EXPECT_GE(cases, 7U);
}

TEST_F(CheckpointMergeTest, ADiskThatFillsUpAtAnyWriteLeavesNothing) {
  const std::string name = "llama-bf16-sharded";
  ASSERT_THAT(Merge(name), IsOk());
  const int writes = disk_->writes;
  ASSERT_GT(writes, 20);
  fs::remove_all(dir_ / name);
  for (int write = 0; write < writes; ++write) {
    SCOPED_TRACE(write);
    disk_->writes = 0;
    disk_->fail_at = write;
    EXPECT_THAT(Merge(name), HasReason(Reason::kStorageFull));
    EXPECT_THAT(Entries(), IsEmpty());
  }
}

TEST_F(CheckpointMergeTest, ACallerThatLeavesAtAnyWriteTakesTheOutputAlong) {
  const std::string name = "gpt2";
  ASSERT_THAT(Merge(name), IsOk());
  const int writes = disk_->writes;
  fs::remove_all(dir_ / name);
  for (int write = 0; write < writes; ++write) {
    SCOPED_TRACE(write);
    disk_->writes = 0;
    disk_->cancellation = Cancellation();
    disk_->cancel_at = write;
    EXPECT_THAT(Merge(name), StatusIs(absl::StatusCode::kCancelled));
    EXPECT_THAT(Entries(), IsEmpty());
  }
}

TEST_F(CheckpointMergeTest, WhatTheSystemCannotCopyIsCopiedByHand) {
  ASSERT_OK_AND_ASSIGN(const CheckpointMergeResult by_system, Merge("llama-f32"));
  fs::remove_all(dir_ / "llama-f32");
  disk_->can_copy = false;
  ASSERT_OK_AND_ASSIGN(const CheckpointMergeResult by_hand, Merge("llama-f32"));
  EXPECT_EQ(by_hand.digest, by_system.digest);
  ExpectLikePeft(dir_ / "llama-f32", kPeft / "merge" / "llama-f32" / "merged");
}

}  // namespace
}  // namespace adapterd
