#include "core/adapter/new_adapter.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

FreshAdapter Fresh() {
  FreshAdapter fresh;
  fresh.geometry.hidden_size = 64;
  fresh.geometry.num_layers = 2;
  fresh.geometry.num_attention_heads = 4;
  fresh.geometry.num_key_value_heads = 1;
  return fresh;
}

TEST(FreshAdapterTest, WithoutMoreItIsRank8Alpha16OfQueriesAndValues) {
  const auto made = MakeFresh(Fresh());
  ASSERT_THAT(made, IsOk());
  const AdapterManifest& manifest = *made->manifest;
  EXPECT_EQ(manifest.method, "lora");
  EXPECT_EQ(manifest.format, AdapterFormat::kCreated);
  EXPECT_THAT(manifest.target_modules(), ::testing::ElementsAre("q_proj", "v_proj"));
  ASSERT_EQ(manifest.modules.size(), 4);
  const ModuleInfo& value = manifest.modules[1];
  EXPECT_EQ(value.path, "model.layers.0.self_attn.v_proj");
  EXPECT_EQ(value.rank, 8);
  EXPECT_EQ(value.alpha, 16);
  EXPECT_EQ(value.scale, 2);
  EXPECT_EQ(value.lora_a_tensor, "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight");
  // 2 layers of r x (in + out): q 8 x (64 + 64), v 8 x (64 + 16).
  EXPECT_EQ(manifest.parameter_count(), 2 * 8 * (128 + 80));
  EXPECT_EQ(made->tensors(1, TensorRole::kLoraA)->shape(), Shape({8, 64}));
  EXPECT_EQ(made->tensors(1, TensorRole::kLoraB)->shape(), Shape({16, 8}));
  EXPECT_EQ(*manifest.index.Find({"", "v_proj", 1}), 3);
}

TEST(FreshAdapterTest, RsLoraDividesByTheRootOfTheRank) {
  FreshAdapter fresh = Fresh();
  fresh.use_rslora = true;
  const auto made = MakeFresh(fresh);
  ASSERT_THAT(made, IsOk());
  EXPECT_EQ(made->manifest->method, "rslora");
  EXPECT_EQ(made->manifest->modules[0].scale, 16 / std::sqrt(8.0));
}

TEST(FreshAdapterTest, ARankMayBeTheSmallerSideOfItsModuleAndNoMore) {
  FreshAdapter fresh = Fresh();
  fresh.rank = 16;  // v_proj is [16, 64]
  EXPECT_THAT(MakeFresh(fresh), IsOk());
  for (const int64_t rank : {int64_t{17}, int64_t{0}, int64_t{-1}}) {
    fresh.rank = rank;
    const auto made = MakeFresh(fresh);
    EXPECT_THAT(made, HasReason(Reason::kInvalidField));
    EXPECT_THAT(made, HasErrorMetadata("field", "rank"));
  }
}

TEST(FreshAdapterTest, AnAlphaIsFiniteAndAboveZero) {
  FreshAdapter fresh = Fresh();
  for (const double alpha : {0.0, -1.0, kNaN, kInfinity, 1.1e12}) {
    fresh.alpha = alpha;
    const auto made = MakeFresh(fresh);
    EXPECT_THAT(made, HasReason(Reason::kInvalidField));
    EXPECT_THAT(made, HasErrorMetadata("field", "alpha"));
  }
}

// Factors in memory of this test.
class GivenPairsTest : public ::testing::Test {
 protected:
  GivenTensor Given(const Shape& shape, std::vector<float> values = {}) {
    values.resize(static_cast<size_t>(*ElementCount(shape)), 0.5F);
    memory_.push_back(std::make_unique<std::vector<float>>(std::move(values)));
    return {DType::kF32, shape, std::as_bytes(std::span<const float>(*memory_.back()))};
  }
  GivenPair Pair(const std::string& path, int64_t rank = 2) {
    GivenPair pair;
    pair.path = path;
    pair.lora_a = Given({rank, 5});
    pair.lora_b = Given({3, rank});
    return pair;
  }

  std::vector<std::unique_ptr<std::vector<float>>> memory_;
};

TEST_F(GivenPairsTest, KeepTheirRanksAndAlphas) {
  GivenPair first = Pair("b.0.proj", 4);
  first.alpha = 6;
  GivenPair second = Pair("a.0.proj", 2);
  second.lora_a = Given({2, 5}, {7});
  const auto made = MakeFromPairs({first, second});
  ASSERT_THAT(made, IsOk());
  ASSERT_EQ(made->manifest->modules.size(), 2);
  const ModuleInfo& a = made->manifest->modules[0];
  const ModuleInfo& b = made->manifest->modules[1];
  EXPECT_EQ(a.path, "a.0.proj");
  EXPECT_EQ(a.scale, 1);  // alpha unset
  EXPECT_EQ(b.scale, 1.5);
  EXPECT_EQ(b.in_features, 5);
  EXPECT_EQ(b.out_features, 3);
  const Tensor tensor = made->tensors(0, TensorRole::kLoraA).value();
  EXPECT_EQ(*reinterpret_cast<const float*>(tensor.bytes().data()), 7);
}

TEST_F(GivenPairsTest, WhatIsWrongIsNamed) {
  struct Row {
    Reason reason;
    const char* field;
    std::function<void(std::vector<GivenPair>&)> spoil;
  };
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<Row> table = {
      {Reason::kInvalidField, "tensors.modules", [](auto& pairs) { pairs.clear(); }},
      {Reason::kInvalidField, "tensors.modules", [](auto& pairs) { pairs[1].path = "m.0.q"; }},
      {Reason::kInvalidField, "tensors.modules[1].path", [](auto& pairs) { pairs[1].path = ""; }},
      {Reason::kInvalidField, "tensors.modules[1].path",
       [](auto& pairs) { pairs[1].path = "base_model.model.m.0.v"; }},
      {Reason::kInvalidField, "tensors.modules[1].path",
       [](auto& pairs) { pairs[1].path = "m.base_layer"; }},
      {Reason::kInvalidField, "tensors.modules[1].path",
       [](auto& pairs) { pairs[1].path = "m\n.0"; }},
      {Reason::kInvalidField, "tensors.modules[1].path",
       [](auto& pairs) { pairs[1].path = std::string(5000, 'm'); }},
      {Reason::kInvalidField, "tensors.modules[1].path",
       [](auto& pairs) {
         pairs[1].path = "m";
         for (int i = 0; i < 70; ++i) pairs[1].path += ".m";
       }},
      {Reason::kInvalidField, "tensors.modules[0].alpha", [](auto& pairs) { pairs[0].alpha = 0; }},
      {Reason::kInvalidField, "tensors.modules[0].alpha",
       [](auto& pairs) { pairs[0].alpha = kNaN; }},
      {Reason::kInvalidAdapter, "tensors.modules[0].lora_a",
       [](auto& pairs) { pairs[0].lora_a.reset(); }},
      {Reason::kInvalidAdapter, "tensors.modules[1].lora_b",
       [](auto& pairs) { pairs[1].lora_b.reset(); }},
      {Reason::kInvalidAdapter, "tensors.modules[0].lora_a",
       [this](auto& pairs) { pairs[0].lora_a = Given({10}); }},
      {Reason::kInvalidAdapter, "tensors.modules[0].lora_a",
       [this](auto& pairs) {
         pairs[0].lora_a = Given({0, 5});
       }},
      {Reason::kInvalidAdapter, "tensors.modules[0]",
       [this](auto& pairs) {
         pairs[0].lora_b = Given({3, 4});
       }},
      {Reason::kNonFiniteWeights, "tensors.modules[1].lora_b",
       [&](auto& pairs) {
         pairs[1].lora_b = Given({3, 2}, {0, inf});
       }},
      {Reason::kNonFiniteWeights, "tensors.modules[1].lora_a",
       [&](auto& pairs) {
         pairs[1].lora_a = Given({2, 5}, {static_cast<float>(kNaN)});
       }},
  };
  for (size_t i = 0; i < table.size(); ++i) {
    SCOPED_TRACE(fmt::format("row {}: {}", i, table[i].field));
    std::vector<GivenPair> pairs = {Pair("m.0.q"), Pair("m.0.v")};
    table[i].spoil(pairs);
    const auto made = MakeFromPairs(std::move(pairs));
    EXPECT_THAT(made, HasReason(table[i].reason));
    EXPECT_THAT(made, HasErrorMetadata("field", table[i].field));
  }
}

}  // namespace
}  // namespace adapterd
