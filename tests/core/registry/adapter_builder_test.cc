// Adapters from real files: what is held is what was stored, and what a base model adds to it.
#include "core/registry/adapter_builder.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/core/adapter/fixture_numbers.h"
#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/module_collector.h"
#include "tests/testing/peft_builder.h"
#include "tests/testing/tolerance.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::NotNull;

constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

std::string StoredBytes(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size()};
}

class AdapterBuilderTest : public ::testing::Test {
 protected:
  // Random values of that shape, as they are stored; the folder has them too.
  std::vector<float> Add(const std::string& name, const Shape& shape, DType dtype = DType::kF32) {
    const std::vector<float> values = random_.Floats(dtype, *ElementCount(shape));
    folder_.AddBytes("base_model.model." + name, shape, dtype, BytesOf(dtype, values));
    return values;
  }

  std::vector<float> AddToBase(const std::string& name, const Shape& shape,
                               DType dtype = DType::kF32) {
    const std::vector<float> values = random_.Floats(dtype, *ElementCount(shape));
    base_.AddBytes(name, shape, dtype, BytesOf(dtype, values));
    return values;
  }

  // With `base` set, against the base that AddToBase made.
  std::shared_ptr<const LoadedAdapter> Load(bool base = false, const std::string& config = "{}") {
    if (base) {
      base_.Write(folder_.dir(), "base");
      folder_.dir().Write("base/config.json", config);
    }
    const auto reader = folder_.Write().Open("", base ? "base" : "");
    EXPECT_THAT(reader, NotNull()) << folder_.problems().ToStatus();
    return Build(*reader);
  }

  std::shared_ptr<const LoadedAdapter> Build(AdapterReader& reader) {
    auto reservation = budget_->Reserve(*LoadedAdapter::BytesFor(kernels_, *reader.manifest()));
    AdapterBuilder builder(kernels_, budget_, reader.manifest(), *std::move(reservation));
    ProblemList problems;
    const auto revision = reader.Read(pool_, Cancellation(), &builder, problems);
    EXPECT_THAT(revision, IsOk());
    if (reader.base() != nullptr) {
      EXPECT_THAT(builder.BindBase(*reader.base(), pool_, Cancellation()), IsOk());
    }
    return builder.Build(*revision);
  }

  TestRandom random_{11};
  AdapterFolder folder_;
  CheckpointBuilder base_;
  Kernels kernels_;
  ThreadPool pool_{"io", 2};
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(1 << 24);
};

TEST_F(AdapterBuilderTest, FactorsAreTheStoredBytes) {
  folder_.Config({{"r", "3"}});
  struct Stored {
    DType a_dtype;
    DType b_dtype;
    std::string a;
    std::string b;
  };
  std::vector<Stored> stored;
  for (const DType a_dtype : kFloats) {
    for (const DType b_dtype : kFloats) {
      const std::string path = fmt::format("m.{}.q_proj", stored.size());
      const std::vector<float> a = Add(path + ".lora_A.weight", {3, 37}, a_dtype);
      const std::vector<float> b = Add(path + ".lora_B.weight", {21, 3}, b_dtype);
      stored.push_back({a_dtype, b_dtype, BytesOf(a_dtype, a), BytesOf(b_dtype, b)});
    }
  }
  const auto adapter = Load();
  for (size_t i = 0; i < stored.size(); ++i) {
    SCOPED_TRACE(i);
    const PairFactors factors = adapter->Factors(i, 0);
    EXPECT_EQ(factors.lora_a.dtype(), stored[i].a_dtype);
    EXPECT_EQ(factors.lora_b.dtype(), stored[i].b_dtype);
    EXPECT_THAT(factors.lora_a.shape(), ElementsAre(3, 37));
    EXPECT_THAT(factors.lora_b.shape(), ElementsAre(21, 3));
    EXPECT_EQ(StoredBytes(factors.lora_a), stored[i].a);
    EXPECT_EQ(StoredBytes(factors.lora_b), stored[i].b);
  }
}

TEST_F(AdapterBuilderTest, FactorsOfEmbeddingsAreTheStoredBytes) {
  folder_.Config({{"target_modules", R"(["e"])"}});
  std::vector<std::string> a;
  std::vector<std::string> b;
  for (const DType dtype : kFloats) {
    const std::string path = fmt::format("m.{}.e", a.size());
    a.push_back(BytesOf(dtype, Add(path + ".lora_embedding_A", {2, 19}, dtype)));
    b.push_back(BytesOf(dtype, Add(path + ".lora_embedding_B", {5, 2}, dtype)));
  }
  const auto adapter = Load();
  for (size_t i = 0; i < a.size(); ++i) {
    const PairFactors factors = adapter->Factors(i, 0);
    EXPECT_THAT(factors.lora_a.shape(), ElementsAre(2, 19));
    EXPECT_EQ(StoredBytes(factors.lora_a), a[i]);
    EXPECT_EQ(StoredBytes(factors.lora_b), b[i]);
    ASSERT_OK_AND_ASSIGN(const PackedPair* pair, adapter->Pair(i, 0, DType::kF32));
    EXPECT_TRUE(pair->is_embedding());
  }
}

TEST_F(AdapterBuilderTest, AKernelCountsAsColumns) {
  const std::vector<float> a = Add("q_proj.lora_A.weight", {2, 4, 3, 3}, DType::kF16);
  const std::vector<float> b = Add("q_proj.lora_B.weight", {5, 2, 1, 1}, DType::kF16);
  const PairFactors factors = Load()->Factors(0, 0);
  EXPECT_THAT(factors.lora_a.shape(), ElementsAre(2, 36));
  EXPECT_THAT(factors.lora_b.shape(), ElementsAre(5, 2));
  EXPECT_EQ(FloatsOf(factors.lora_a), a);
  EXPECT_EQ(FloatsOf(factors.lora_b), b);
}

TEST_F(AdapterBuilderTest, EachExpertHasItsPair) {
  constexpr int64_t kExperts = 3;
  folder_.Config({{"target_parameters", R"(["experts.down_proj"])"},
                  {"target_modules", "[]"},
                  {"peft_version", R"("0.19.1")"}});
  for (const DType dtype : kFloats) {
    const std::string path = fmt::format("m.{}.experts", static_cast<int>(dtype));
    const std::vector<float> a = Add(path + ".lora_A.weight", {2 * kExperts, 6}, dtype);
    const std::vector<float> b = Add(path + ".lora_B.weight", {5, 2 * kExperts}, dtype);
    const auto adapter = Load();
    const size_t module = adapter->manifest().index.Find({path + ".down_proj", "", {}}).value();
    for (int64_t e = 0; e < kExperts; ++e) {
      std::vector<float> own_b;
      for (int64_t o = 0; o < 5; ++o) {
        for (int64_t k = 0; k < 2; ++k) own_b.push_back(b[o * 2 * kExperts + k * kExperts + e]);
      }
      const PairFactors factors = adapter->Factors(module, e);
      EXPECT_EQ(factors.lora_a.dtype(), dtype);
      EXPECT_EQ(FloatsOf(factors.lora_a),
                std::vector<float>(a.begin() + e * 12, a.begin() + (e + 1) * 12));
      EXPECT_EQ(FloatsOf(factors.lora_b), own_b);
    }
  }
}

// Pairs as they say themselves; tensors as stored, and F32 copies of what the arithmetic reads.
TEST_F(AdapterBuilderTest, TheReservationIsWhatIsHeld) {
  folder_.Config({{"bias", "\"all\""}, {"modules_to_save", R"(["score"])"}});
  folder_.Config({{"target_modules", R"(["q_proj", "e"])"}, {"lora_bias", "true"}});
  Add("m.0.q_proj.lora_A.weight", {2, 6});
  Add("m.0.q_proj.lora_B.weight", {5, 2});
  const std::vector<float> own_bias = Add("m.0.q_proj.lora_B.bias", {5});
  const std::vector<float> bias = Add("m.0.q_proj.base_layer.bias", {5});
  Add("e.lora_embedding_A", {2, 19});
  Add("e.lora_embedding_B", {4, 2});
  const std::vector<float> score = Add("score.weight", {3, 4}, DType::kBF16);
  const auto adapter = Load();
  ASSERT_EQ(adapter->manifest().modules.size(), 3u);
  const ModuleExtras& q = adapter->extras(1);
  EXPECT_EQ(FloatsOf(q.lora_bias), own_bias);
  EXPECT_EQ(q.lora_bias_f32, own_bias);
  EXPECT_EQ(FloatsOf(q.bias), bias);
  EXPECT_THAT(q.magnitude_f32, IsEmpty());
  EXPECT_EQ(FloatsOf(adapter->extras(2).weight), score);
  int64_t held = (*adapter->Pair(0, 0, DType::kF32))->bytes();
  held += (*adapter->Pair(1, 0, DType::kF32))->bytes();
  held += 2 * 5 * 4 + 5 * 4 + 3 * 4 * 2;
  EXPECT_EQ(adapter->memory_bytes(), held);
  EXPECT_EQ(budget_->used(), held);
}

TEST_F(AdapterBuilderTest, OnlyTheBaseOfAScalingFamilyTellsTheScaleOfEmbeddings) {
  folder_.Config({{"target_modules", R"(["embed_tokens"])"}});
  Add("embed_tokens.lora_embedding_A", {2, 19});
  Add("embed_tokens.lora_embedding_B", {4, 2});
  EXPECT_EQ(Load()->extras(0).embedding_scale, 1);
  folder_.Config({{"base_model_name_or_path", R"("google/Gemma-2b")"}});
  EXPECT_EQ(Load()->extras(0).embedding_scale, std::nullopt);
  AddToBase("embed_tokens.weight", {19, 4});
  const char config[] = R"({"model_type": "gemma", "hidden_size": 4, "vocab_size": 19})";
  EXPECT_EQ(Load(true, config)->extras(0).embedding_scale, 2);  // the root of 4
}

// gain[o] = magnitude[o] / |row o of W + scale B A|, by plain loops. `w` gives W[o][i].
template <typename Weight>
void ExpectGains(const std::vector<float>& gains, const std::vector<float>& magnitude,
                 const std::vector<float>& a, const std::vector<float>& b, double scale,
                 int64_t rank, Weight w) {
  const auto inputs = static_cast<int64_t>(a.size()) / rank;
  ASSERT_EQ(gains.size(), magnitude.size());
  for (size_t o = 0; o < gains.size(); ++o) {
    double squares = 0;
    double errors = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      double sum = w(o, i);
      double size = std::abs(sum);
      for (int64_t k = 0; k < rank; ++k) {
        const double product = scale * b[o * rank + k] * a[k * inputs + i];
        sum += product;
        size += std::abs(product);
      }
      squares += sum * sum;
      const double error = Tolerance({.exact = sum, .magnitude = size, .roundings = rank + 2});
      errors += error * error;
    }
    const double norm = std::sqrt(squares);
    const double gain = magnitude[o] / norm;
    // A norm is off by at most the length of the errors; the quotient is rounded once.
    const double relative = std::sqrt(errors) / norm + 2 * UnitRoundoff(DType::kF32);
    EXPECT_NEAR(gains[o], gain, 1.01 * relative * std::abs(gain)) << o;
  }
}

struct DoraCase {
  DType dtype;
  bool in_out;  // the base's layout
};

class AdapterBuilderDoraTest : public AdapterBuilderTest,
                               public ::testing::WithParamInterface<DoraCase> {};
INSTANTIATE_TEST_SUITE_P(Types, AdapterBuilderDoraTest,
                         ::testing::Values(DoraCase{DType::kF32, false},
                                           DoraCase{DType::kF32, true},
                                           DoraCase{DType::kF16, false},
                                           DoraCase{DType::kBF16, false},
                                           DoraCase{DType::kBF16, true}));

TEST_P(AdapterBuilderDoraTest, GainsAreMagnitudesOverTheNormsOfTheBase) {
  const auto [dtype, in_out] = GetParam();
  folder_.Config({{"use_dora", "true"}, {"fan_in_fan_out", in_out ? "true" : "false"}});
  const std::vector<float> a = Add("q_proj.lora_A.weight", {2, 7}, dtype);
  const std::vector<float> b = Add("q_proj.lora_B.weight", {5, 2}, dtype);
  const std::vector<float> magnitude = Add("q_proj.lora_magnitude_vector", {5}, dtype);
  const std::vector<float> w =
      AddToBase("q_proj.weight", in_out ? Shape{7, 5} : Shape{5, 7}, dtype);
  const std::vector<float> bias = AddToBase("q_proj.bias", {5}, dtype);
  const auto adapter = Load(/*base=*/true);
  const ModuleExtras& extras = adapter->extras(0);
  EXPECT_EQ(FloatsOf(extras.magnitude), magnitude);
  ASSERT_TRUE(extras.dora.has_value());
  EXPECT_EQ(extras.dora->base_bias, bias);
  const bool transposed = in_out;
  ExpectGains(extras.dora->gain, magnitude, a, b, 2, 2, [&](size_t o, int64_t i) {
    return w[transposed ? i * 5 + static_cast<int64_t>(o) : static_cast<int64_t>(o) * 7 + i];
  });
  if (dtype != DType::kF32) return;
  const int64_t pair = (*adapter->Pair(0, 0, DType::kF32))->bytes();
  EXPECT_EQ(adapter->memory_bytes(), pair + 4 * 5 * 4);  // twice magnitude, gain, base bias
}

TEST_F(AdapterBuilderTest, DoraOnAnEmbeddingHasANormADimension) {
  folder_.Config({{"use_dora", "true"}, {"target_modules", R"(["embed_tokens"])"}});
  const std::vector<float> a = Add("embed_tokens.lora_embedding_A", {2, 9});
  const std::vector<float> b = Add("embed_tokens.lora_embedding_B", {4, 2});
  const std::vector<float> magnitude = Add("embed_tokens.lora_magnitude_vector", {4});
  const std::vector<float> w = AddToBase("embed_tokens.weight", {9, 4});
  const auto adapter = Load(/*base=*/true);
  ASSERT_TRUE(adapter->extras(0).dora.has_value());
  ExpectGains(adapter->extras(0).dora->gain, magnitude, a, b, 2, 2,
              [&](size_t o, int64_t i) { return w[i * 4 + o]; });
}

TEST_F(AdapterBuilderTest, WithoutItsWeightThereAreNoGains) {
  folder_.Config({{"use_dora", "true"}});
  for (const std::string path : {"m.0.q_proj", "m.1.q_proj"}) {
    Add(path + ".lora_A.weight", {2, 7});
    Add(path + ".lora_B.weight", {5, 2});
    Add(path + ".lora_magnitude_vector", {5});
  }
  EXPECT_FALSE(Load()->extras(0).dora.has_value());
  AddToBase("m.1.q_proj.weight", {5, 7});
  const auto adapter = Load(/*base=*/true);
  EXPECT_FALSE(adapter->extras(0).dora.has_value());
  ASSERT_TRUE(adapter->extras(1).dora.has_value());
  EXPECT_THAT(adapter->extras(1).dora->base_bias, IsEmpty());  // the layer has none
}

TEST_F(AdapterBuilderTest, DoraRescalesTheBiasThatTheAdapterBrings) {
  folder_.Config({{"use_dora", "true"}, {"bias", R"("lora_only")"}});
  Add("q_proj.lora_A.weight", {2, 7});
  Add("q_proj.lora_B.weight", {5, 2});
  Add("q_proj.lora_magnitude_vector", {5});
  const std::vector<float> brought = Add("q_proj.base_layer.bias", {5});
  AddToBase("q_proj.weight", {5, 7});
  const std::vector<float> of_base = AddToBase("q_proj.bias", {5});
  const auto adapter = Load(/*base=*/true);
  ASSERT_TRUE(adapter->extras(0).dora.has_value());
  EXPECT_EQ(adapter->extras(0).dora->base_bias, brought);
  EXPECT_NE(brought, of_base);
}

TEST_F(AdapterBuilderTest, NormsOfAWeightThatTheAdapterReplacesAreNotKnown) {
  folder_.Config({{"use_dora", "true"}, {"target_modules", R"(["embed_tokens"])"}});
  Add("embed_tokens.lora_embedding_A", {2, 9});
  Add("embed_tokens.lora_embedding_B", {4, 2});
  Add("embed_tokens.lora_magnitude_vector", {4});
  Add("embed_tokens.base_layer.weight", {9, 4});
  AddToBase("embed_tokens.weight", {9, 4});
  const auto adapter = Load(/*base=*/true);
  ASSERT_EQ(adapter->manifest().modules.size(), 2u);
  EXPECT_FALSE(adapter->extras(0).dora.has_value());
}

// PEFT's own adapter on PEFT's own base: what it merged is gain * (W + scale B A).
TEST_F(AdapterBuilderTest, GainsOfARealAdapterGiveItsMergedWeights) {
  ProblemList problems;
  const auto reader =
      OpenerAt(ADAPTERD_FIXTURES)({"peft/cases/llama-dora", "", "peft/bases/tiny-llama"}, problems);
  ASSERT_THAT(reader, NotNull()) << problems.ToStatus();
  const auto adapter = Build(*reader);
  const auto expected = ReadNumbers("peft/cases/llama-dora/expected.safetensors");
  const auto base = ReadNumbers("peft/bases/tiny-llama/model.safetensors");
  int checked = 0;
  for (size_t i = 0; i < adapter->manifest().modules.size(); ++i) {
    const ModuleInfo& info = adapter->manifest().modules[i];
    const auto merged = expected.find(info.path + "|merged");
    ASSERT_TRUE(adapter->extras(i).dora.has_value());
    if (merged == expected.end()) continue;
    ++checked;
    const PairFactors factors = adapter->Factors(i, 0);
    const std::vector<float> a = FloatsOf(factors.lora_a);
    const std::vector<float> b = FloatsOf(factors.lora_b);
    const Doubles& w = base.at(info.path + ".weight");
    for (int64_t o = 0; o < info.out_features; ++o) {
      for (int64_t in = 0; in < info.in_features; ++in) {
        double sum = w.at(o, in);
        double size = std::abs(sum);
        for (int64_t k = 0; k < info.rank; ++k) {
          const double product = info.scale * b[o * info.rank + k] * a[k * info.in_features + in];
          sum += product;
          size += std::abs(product);
        }
        const double gain = adapter->extras(i).dora->gain[o];
        // PEFT's norm is a sum of in_features squares in F32, and so is its gain.
        const double tolerance = Tolerance({.exact = gain * sum,
                                            .magnitude = gain * size,
                                            .roundings = info.in_features + info.rank + 8});
        ASSERT_NEAR(merged->second.at(o, in), gain * sum, tolerance) << info.path;
      }
    }
  }
  EXPECT_GE(checked, 2);
}

}  // namespace
}  // namespace adapterd
