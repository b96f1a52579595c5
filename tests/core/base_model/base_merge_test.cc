#include "core/base_model/base_merge.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "tests/core/base_model/base_merge_fixture.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

class BaseMergeTest : public BaseMergeFixture {
 protected:
  // What the model should hold: module -> names of adapters.
  using Merged = std::map<std::string, std::set<std::string>>;

  void LoadThree() {
    targets_ = {{"a", {"k", "q", "up", "v"}}, {"b", {"q", "v"}}, {"c", {"k", "q"}}};
    for (const auto& [name, targets] : targets_) {
      Options options;
      options.seed = static_cast<uint32_t>(name[0]);
      adapters_[name] = {name, 0.5 + (name[0] - 'a'), MakeAdapter(targets, options)};
    }
  }

  void ExpectState(const Merged& merged) {
    for (const char* target : {"k", "q", "up", "v"}) {
      const ModuleSnapshot snapshot = Snapshot(target);
      const auto found = merged.find(target);
      if (found == merged.end() || found->second.empty()) {
        ASSERT_EQ(snapshot.merged, nullptr);
        ASSERT_EQ(BytesOfWeight(snapshot), BytesOfStored(snapshot));
        continue;
      }
      std::vector<Adapter> adapters;  // by name, as a set has them
      for (const std::string& name : found->second) adapters.push_back(adapters_.at(name));
      ASSERT_EQ(BytesOfWeight(snapshot), Expected(target, adapters)) << target;
    }
  }

  std::map<std::string, Adapter> adapters_;
  std::map<std::string, std::vector<std::string>> targets_;
};

TEST_F(BaseMergeTest, AThousandRandomSequencesLeaveEveryBitRight) {
  LoadThree();
  const std::string original = BytesOfStored(Snapshot("q"));
  for (uint32_t seed = 0; seed < 1000; ++seed) {
    TestRandom random(seed);
    Merged merged;
    for (int step = 0; step < 6; ++step) {
      const std::string name(1, static_cast<char>('a' + random.Below(3)));
      std::vector<std::string> chosen = targets_.at(name);
      std::vector<std::string> patterns;
      if (random.Below(2) == 0) {
        chosen = {chosen[static_cast<size_t>(random.Below(static_cast<int>(chosen.size())))]};
        patterns = {PathOf(chosen[0])};
      }
      if (random.Below(2) == 0) {
        ASSERT_THAT(Merge({adapters_.at(name)}, patterns, /*skip_merged=*/true).status(), IsOk());
        for (const std::string& target : chosen) merged[target].insert(name);
      } else {
        ASSERT_THAT(Unmerge({{name, ""}}, patterns, /*skip_unmerged=*/true), IsOk());
        for (const std::string& target : chosen) merged[target].erase(name);
      }
      if (seed % 20 == 0) ExpectState(merged);
    }
    ExpectState(merged);
    ASSERT_THAT(Unmerge({}, {}, /*skip_unmerged=*/true), IsOk());
    ASSERT_EQ(BytesOfWeight(Snapshot("q")), original);
  }
}

TEST_F(BaseMergeTest, TheOrderOfCallsAndOfTheRequestDoesNotMatter) {
  LoadThree();
  const std::vector<Adapter> in_order = {adapters_["a"], adapters_["b"], adapters_["c"]};
  const std::string expected = Expected("q", in_order);
  std::vector<Adapter> order = in_order;
  do {
    ASSERT_THAT(Merge(order).status(), IsOk());
    EXPECT_EQ(BytesOfWeight(Snapshot("q")), expected);
    ASSERT_THAT(Unmerge({}), IsOk());
    for (const Adapter& adapter : order) ASSERT_THAT(Merge({adapter}).status(), IsOk());
    EXPECT_EQ(BytesOfWeight(Snapshot("q")), expected);
    ASSERT_THAT(Unmerge({}), IsOk());
  } while (std::next_permutation(order.begin(), order.end(),
                                 [](const auto& a, const auto& b) { return a.name < b.name; }));
}

TEST_F(BaseMergeTest, BiasesOfAdaptersAreMergedToo) {
  Options options;
  options.lora_bias = true;
  const Adapter adapter = {"a", 2, MakeAdapter({"k", "q"}, options)};
  const Tensor& before = Snapshot("k").module->bias;
  ASSERT_THAT(Merge({adapter}).status(), IsOk());
  for (const char* target : {"k", "q"}) {  // one with a bias of its own, one without
    const ModuleSnapshot snapshot = Snapshot(target);
    const size_t module =
        adapter.handle->manifest().index.Find({PathOf(target), "", std::nullopt}).value();
    std::vector<float> expected(kOut, 0.0f);
    if (std::string(target) == "k") {
      ConvertToF32(kDType, before.bytes().data(), expected.data(), kOut);
    }
    for (int64_t i = 0; i < kOut; ++i) {
      expected[i] += (*adapter.handle)->extras(module).lora_bias_f32[i];  // 2 x the scale of 0.5
    }
    ASSERT_NE(snapshot.bias(), nullptr);
    const auto bytes = snapshot.bias()->bytes();
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
              BytesOf(kDType, expected));
  }
  ASSERT_THAT(Unmerge({{"a", ""}}), IsOk());
  EXPECT_EQ(Snapshot("q").bias(), nullptr);
  EXPECT_EQ(Snapshot("k").bias(), &before);
}

TEST_F(BaseMergeTest, ABiasBeyondItsTypeIsRefused) {
  Options options;
  options.lora_bias = true;
  options.bias_value = 3.4e38f;            // finite in F32, infinite in BF16
  for (const char* target : {"k", "q"}) {  // one with a bias of its own, one without
    const Adapter adapter = {"a", 2, MakeAdapter({target}, options)};
    EXPECT_THAT(Merge({adapter}).status(), HasReason(Reason::kNonFiniteResult)) << target;
    EXPECT_EQ(Snapshot(target).merged, nullptr);
  }
}

TEST_F(BaseMergeTest, AdaptersThatTakeAWeightForEachOthersTransposesAreRefused) {
  Options options;
  options.out_features = kIn;
  const Adapter out_in = {"a", 1, MakeAdapter({"square"}, options)};
  options.fan_in_fan_out = true;
  const Adapter in_out = {"b", 1, MakeAdapter({"square"}, options)};
  EXPECT_THAT(Merge({out_in, in_out}).status(), HasReason(Reason::kInvalidField));
  EXPECT_EQ(Snapshot("square").merged, nullptr);
  for (const auto& [first, second] : {std::pair(out_in, in_out), {in_out, out_in}}) {
    ASSERT_THAT(Merge({first}).status(), IsOk());
    const absl::Status status = Merge({second}).status();
    EXPECT_THAT(status, HasReason(Reason::kInvalidField));
    EXPECT_THAT(std::string(status.message()), HasSubstr("transposes"));
    ASSERT_EQ(Snapshot("square").merged->adapters().size(), 1U);
    ASSERT_THAT(Unmerge({}), IsOk());
  }
}

TEST_F(BaseMergeTest, AQuantisedWeightGetsAnOverlayInBf16) {
  base_ = MakeBase(/*nf4_block=*/7);
  const Adapter adapter = {"a", 1, MakeAdapter({"q"}, {})};
  ASSERT_FALSE(Snapshot("q").weight().has_value());
  ASSERT_THAT(Merge({adapter}).status(), IsOk());
  const ModuleSnapshot snapshot = Snapshot("q");
  ASSERT_TRUE(snapshot.weight().has_value());
  std::vector<float> expected(kOut * kIn);
  snapshot.module->nf4->Dequantize(0, kOut * kIn, expected.data());
  const PairFactors factors = (*adapter.handle)->Factors(0, 0);
  const MergeTerm term = {AsMatrix(factors.lora_a), AsMatrix(factors.lora_b), 0.5};
  auto* bytes = reinterpret_cast<std::byte*>(expected.data());
  ASSERT_THAT(MergeWeight(kernels_, workers_, {DType::kF32, kOut, kIn, bytes}, {&term, 1},
                          MergeOptions(), {DType::kF32, kOut, kIn, bytes}, Cancellation())
                  .status(),
              IsOk());
  EXPECT_EQ(BytesOfWeight(snapshot), BytesOf(DType::kBF16, expected));
  ASSERT_THAT(Unmerge({{"a", ""}}), IsOk());
  EXPECT_FALSE(Snapshot("q").weight().has_value());
}

TEST_F(BaseMergeTest, ErrorsChangeNothing) {
  LoadThree();
  Options other;
  other.revision = "other";
  Options dora;
  dora.dora = true;
  Options wide;
  wide.out_features = kOut + 1;
  const Adapter stranger = {"b", adapters_["b"].weight, MakeAdapter({"q", "v", "k"}, other)};
  const Adapter with_dora = {"d", 1, MakeAdapter({"q"}, dora)};
  const Adapter too_wide = {"w", 1, MakeAdapter({"q"}, wide)};
  const Adapter elsewhere = {"e", 1, MakeAdapter({"q", "nowhere"}, {})};
  Options replicated;
  replicated.replicates_layers = true;  // for one of two layers that share this weight
  const Adapter copy = {"r", 1, MakeAdapter({"q"}, replicated)};
  Adapter heavier = adapters_["b"];
  heavier.weight = 3;
  ASSERT_THAT(Merge({adapters_["b"]}).status(), IsOk());
  const Merged merged = {{"q", {"b"}}, {"v", {"b"}}};
  const auto expect = [&](const absl::Status& status, Reason reason, const std::string& text) {
    EXPECT_THAT(status, HasReason(reason));
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    ExpectState(merged);
  };
  const Adapter a = adapters_["a"];
  const Adapter b = adapters_["b"];
  expect(Merge({b}).status(), Reason::kAlreadyMerged, "merged already");
  expect(Merge({heavier}).status(), Reason::kAlreadyMerged, "merged already");
  expect(Merge({heavier}, {}, true).status(), Reason::kMergedRevision, "unmerge it first");
  expect(Merge({stranger}, {PathOf("k")}).status(), Reason::kMergedRevision, "unmerge it first");
  expect(Merge({a, b}).status(), Reason::kAlreadyMerged, "\"b\"");
  expect(Merge({a, a}).status(), Reason::kInvalidField, "more than once");
  expect(Merge({a}, {"("}).status(), Reason::kInvalidField, "modules");
  expect(Merge({a}, {PathOf("k"), "none"}).status(), Reason::kModuleNotTargeted, "none");
  expect(Merge({adapters_["c"]}, {PathOf("up")}).status(), Reason::kModuleNotTargeted, "\"c\"");
  expect(Merge({elsewhere}).status(), Reason::kModuleNotTargeted, "nowhere");
  expect(Merge({too_wide}).status(), Reason::kShapeMismatch, "[10, 24]");
  expect(Merge({copy}).status(), Reason::kUnsupportedAdapter, "layer_replication");
  expect(Merge({with_dora}).status(), Reason::kInvalidField, "DoRA");  // b is there
  expect(Unmerge({{"a", ""}}), Reason::kNotMerged, "\"a\"");
  expect(Unmerge({{"b", "other"}}), Reason::kNotMerged, "at revision other");
  expect(Unmerge({{"b", ""}}, {PathOf("k")}), Reason::kNotMerged, "\"b\"");
  expect(Unmerge({{"b", ""}}, {PathOf("q"), PathOf("k")}), Reason::kNotMerged, "\"b\"");
  expect(Unmerge({{"b", ""}}, {"none"}), Reason::kModuleNotTargeted, "none");
  expect(Unmerge({{"b", ""}, {"a", ""}}), Reason::kNotMerged, "\"a\"");
  ASSERT_THAT(Unmerge({}), IsOk());
  EXPECT_THAT(Unmerge({}), HasReason(Reason::kNotMerged));
  EXPECT_THAT(Merge({{"d", 2, with_dora.handle}}).status(), HasReason(Reason::kInvalidField));
  EXPECT_THAT(Merge({with_dora}).status(), IsOk());
  EXPECT_THAT(Merge({adapters_["c"]}).status(), HasReason(Reason::kInvalidField));
}

TEST_F(BaseMergeTest, SkippingLeavesTheRest) {
  LoadThree();
  ASSERT_THAT(Merge({adapters_["a"]}, {PathOf("q")}).status(), IsOk());
  ASSERT_THAT(Merge({adapters_["a"]}, {}, /*skip_merged=*/true).status(), IsOk());
  ExpectState({{"k", {"a"}}, {"q", {"a"}}, {"up", {"a"}}, {"v", {"a"}}});
  ASSERT_THAT(Unmerge({{"a", ""}}, {PathOf("q")}), IsOk());
  ASSERT_THAT(Unmerge({{"a", ""}}, {PathOf("q"), PathOf("v")}, /*skip_unmerged=*/true), IsOk());
  ExpectState({{"k", {"a"}}, {"up", {"a"}}});
}

TEST_F(BaseMergeTest, TheBudgetCountsOverlaysAndIsTheBoundOfMerges) {
  const int64_t empty = budget_->used();
  {
    LoadThree();
    const int64_t loaded = budget_->used();
    ASSERT_THAT(Merge({adapters_["a"]}).status(), IsOk());
    EXPECT_EQ(budget_->used() - loaded, 4 * kOut * kIn * FloatBytes(kDType));
    EXPECT_EQ(OverlayBytes(base_->overlays()), budget_->used() - loaded);
    ASSERT_THAT(Merge({adapters_["b"]}).status(), IsOk());
    EXPECT_EQ(budget_->used() - loaded, 4 * kOut * kIn * FloatBytes(kDType));
    ASSERT_THAT(Unmerge({{"b", ""}}), IsOk());
    // All or nothing: there is room for two of c's three overlays, the old one of q included.
    budget_->SetLimit(budget_->used() + kOut * kIn * FloatBytes(kDType));
    EXPECT_THAT(Merge({adapters_["c"]}).status(), HasReason(Reason::kMemoryBudgetExceeded));
    ExpectState({{"k", {"a"}}, {"q", {"a"}}, {"up", {"a"}}, {"v", {"a"}}});
    EXPECT_EQ(budget_->used() - loaded, 4 * kOut * kIn * FloatBytes(kDType));
    ASSERT_THAT(Unmerge({{"a", ""}}), IsOk());
    EXPECT_EQ(budget_->used(), loaded);
    adapters_.clear();
  }
  EXPECT_EQ(budget_->used(), empty);
  base_ = nullptr;
  EXPECT_EQ(budget_->used(), 0);
}

TEST_F(BaseMergeTest, ReadersSeeTheOldStateOrTheNewOne) {
  LoadThree();
  const std::string original = BytesOfStored(Snapshot("q"));
  const std::string merged = Expected("q", {adapters_["a"]});
  std::atomic<bool> done{false};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!done) {
        const ModuleSnapshot snapshot = Snapshot("q");
        const std::string weight = BytesOfWeight(snapshot);
        EXPECT_EQ(weight, snapshot.merged == nullptr ? original : merged);
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    ASSERT_THAT(Merge({adapters_["a"]}).status(), IsOk());
    ASSERT_THAT(Unmerge({{"a", ""}}), IsOk());
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
}

TEST_F(BaseMergeTest, WhoHoldsASnapshotKeepsTheModel) {
  int64_t freed = -1;
  base_->OnFreed([&](int64_t bytes) { freed = bytes; });
  const int64_t bytes = base_->base_bytes();
  std::optional<ModuleSnapshot> snapshot = Snapshot("q");
  const std::string weight = BytesOfWeight(*snapshot);
  base_ = nullptr;
  EXPECT_EQ(freed, -1);
  EXPECT_EQ(BytesOfWeight(*snapshot), weight);
  snapshot.reset();
  EXPECT_EQ(freed, bytes);
  EXPECT_EQ(budget_->used(MemoryKind::kBaseModels), 0);
}

}  // namespace
}  // namespace adapterd
