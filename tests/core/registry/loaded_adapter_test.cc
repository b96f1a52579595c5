// What an adapter in memory holds, and what it adds on first use.
#include "core/registry/loaded_adapter.h"

#include <thread>

#include "core/registry/adapter_builder.h"
#include "core/registry/adapter_handle.h"
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

class LoadedAdapterTest : public ::testing::Test {
 protected:
  static FakeContent ContentOf(DType dtype) {
    FakeContent content;
    content.modules[0].dtype = dtype;
    content.modules.push_back({"model.layers.0.self_attn.v_proj", 3, 8, 4, dtype});
    return content;
  }

  std::shared_ptr<const LoadedAdapter> Create(const FakeContent& content) {
    FakeSource source;
    FakeReader reader(source, content);
    auto reservation = budget_->Reserve(*LoadedAdapter::BytesFor(kernels_, *reader.manifest()));
    AdapterBuilder builder(kernels_, budget_, reader.manifest(), *std::move(reservation));
    ProblemList problems;
    return builder.Build(reader.Read(pool_, Cancellation(), &builder, problems).value());
  }

  int64_t PackedBytes(const FakeModule& module, ComputeType type) const {
    return *PackedPair::BytesFor(kernels_, {module.in_features, module.rank, module.out_features},
                                 {type, module.dtype, module.dtype});
  }

  bool HasFastBF16() const {
    return kernels_.ComputeTypeFor(DType::kBF16, DType::kBF16, DType::kBF16) == ComputeType::kBF16;
  }

  Kernels kernels_;
  ThreadPool pool_{"io", 2};
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(1 << 20);
};

TEST_F(LoadedAdapterTest, ItCostsOnePackedForm) {
  const FakeContent content = ContentOf(DType::kF32);
  const auto adapter = Create(content);
  int64_t expected = 0;
  for (const FakeModule& module : content.modules) {
    expected += PackedBytes(module, ComputeType::kF32);
  }
  EXPECT_EQ(adapter->memory_bytes(), expected);
  EXPECT_EQ(budget_->used(), expected);
  EXPECT_EQ(adapter->revision(), DigestOf(content).revision);
}

TEST_F(LoadedAdapterTest, TheFormOfItsOwnTypeIsThereFromTheStart) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto adapter = Create(ContentOf(dtype));
    const int64_t used = budget_->used();
    for (const size_t module : {0, 1}) {
      ASSERT_OK_AND_ASSIGN(const PackedPair* pair, adapter->Pair(module, 0, dtype));
      EXPECT_EQ(pair->type(), kernels_.ComputeTypeFor(dtype, dtype, dtype));
      EXPECT_EQ(pair->shape().rank, static_cast<int64_t>(2 + module));
    }
    EXPECT_EQ(budget_->used(), used);
  }
}

TEST_F(LoadedAdapterTest, AllMixesThatComputeInF32ShareOneForm) {
  const auto adapter = Create(ContentOf(DType::kF16));
  ASSERT_OK_AND_ASSIGN(const PackedPair* f16, adapter->Pair(0, 0, DType::kF16));
  EXPECT_EQ(*adapter->Pair(0, 0, DType::kF32), f16);
  EXPECT_EQ(*adapter->Pair(0, 0, DType::kBF16), f16);
}

TEST_F(LoadedAdapterTest, AnotherFormIsReservedWhenItIsFirstNeeded) {
  if (!HasFastBF16()) GTEST_SKIP() << "this CPU computes everything in F32";
  const FakeContent content = ContentOf(DType::kBF16);
  auto adapter = Create(content);
  const int64_t before = adapter->memory_bytes();
  ASSERT_OK_AND_ASSIGN(const PackedPair* pair, adapter->Pair(1, 0, DType::kF32));
  EXPECT_EQ(pair->type(), ComputeType::kF32);
  const int64_t after = before + PackedBytes(content.modules[1], ComputeType::kF32);
  EXPECT_EQ(adapter->memory_bytes(), after);
  EXPECT_EQ(budget_->used(), after);
  EXPECT_EQ(*adapter->Pair(1, 0, DType::kF32), pair);
  EXPECT_EQ(budget_->used(), after);
  EXPECT_EQ(LoadedAdapter::LetGo(std::move(adapter)), after);
  EXPECT_EQ(budget_->used(), 0);
}

TEST_F(LoadedAdapterTest, AFormThatDoesNotFitIsRefusedAndTheOthersStay) {
  if (!HasFastBF16()) GTEST_SKIP() << "this CPU computes everything in F32";
  const FakeContent content = ContentOf(DType::kBF16);
  const int64_t bytes = *LoadedAdapter::BytesFor(kernels_, *ManifestOf(content));
  budget_ = MemoryBudget::Create(bytes + PackedBytes(content.modules[0], ComputeType::kF32) - 1);
  const auto adapter = Create(content);
  EXPECT_THAT(adapter->Pair(0, 0, DType::kF32), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(adapter->memory_bytes(), bytes);
  EXPECT_EQ(budget_->used(), bytes);
  EXPECT_THAT(adapter->Pair(0, 0, DType::kBF16), IsOk());
}

TEST_F(LoadedAdapterTest, ThreadsThatNeedAFormAtOnceGetTheSame) {
  const auto adapter = Create(ContentOf(DType::kBF16));
  std::vector<const PackedPair*> pairs(8);
  std::vector<std::thread> threads;
  for (const PackedPair*& pair : pairs) {
    threads.emplace_back([&] { pair = adapter->Pair(0, 0, DType::kF32).value(); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(pairs, ::testing::Each(pairs[0]));
  EXPECT_EQ(adapter->memory_bytes(), budget_->used());
}

TEST_F(LoadedAdapterTest, OnlyTheLastShareGivesBytesBack) {
  auto adapter = Create(ContentOf(DType::kF32));
  const int64_t bytes = adapter->memory_bytes();
  auto other = adapter;
  EXPECT_EQ(LoadedAdapter::LetGo(std::move(adapter)), 0);
  EXPECT_EQ(budget_->used(), bytes);
  EXPECT_EQ(LoadedAdapter::LetGo(std::move(other)), bytes);
  EXPECT_EQ(budget_->used(), 0);
}

TEST_F(LoadedAdapterTest, ALeaseTellsAllWhoAskedOnceItIsGone) {
  auto adapter = Create(ContentOf(DType::kF32));
  const int64_t bytes = adapter->memory_bytes();
  auto first = std::make_shared<const AdapterLease>(adapter, adapter->shared_manifest());
  auto second = std::make_shared<const AdapterLease>(std::move(adapter), first->manifest());
  std::vector<int64_t> told;
  for (int i = 0; i < 2; ++i) {
    first->OnFreed([&](int64_t freed) { told.push_back(freed); });
  }
  second->OnFreed([&](int64_t freed) {
    told.push_back(freed);
    EXPECT_EQ(budget_->used(), 0);
  });
  first.reset();
  EXPECT_THAT(told, ::testing::ElementsAre(0, 0));  // the other lease shares the weights
  second.reset();
  EXPECT_THAT(told, ::testing::ElementsAre(0, 0, bytes));
}

}  // namespace
}  // namespace adapterd
