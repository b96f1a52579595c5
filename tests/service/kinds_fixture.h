// One adapter with every kind of module, and one that is DoRA.
#ifndef ADAPTERD_TESTS_SERVICE_KINDS_FIXTURE_H_
#define ADAPTERD_TESTS_SERVICE_KINDS_FIXTURE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/service/projection_fixture.h"
#include "tests/testing/checkpoint_builder.h"

namespace adapterd {

// Adapters "kinds" and "own" (B has biases of its own), "dora" (with its base checkpoint) and
// "bare" (the same without), "plain" (a linear pair on what "dora" targets).
class KindsFixture : public ProjectionFixture {
 protected:
  static constexpr int64_t kRank = 2;
  static constexpr double kScale = PeftBuilder::kAlpha / kRank;
  static constexpr int64_t kIds = 9;
  static constexpr int64_t kDim = 4;
  static constexpr int64_t kInputs = 6;
  static constexpr int64_t kOutputs = 5;
  static constexpr int64_t kExperts = 3;

  KindsFixture() {
    LoadKinds();
    LoadOwn();
    LoadDora();
  }

  // Element [o][i] of scale * B A of a pair, by plain loops; `a` has `columns`.
  static double Delta(const std::vector<float>& a, const std::vector<float>& b, int64_t columns,
                      int64_t o, int64_t i) {
    double sum = 0;
    for (int64_t k = 0; k < kRank; ++k) {
      sum += static_cast<double>(b[o * kRank + k]) * a[k * columns + i];
    }
    return kScale * sum;
  }

  // B of one expert, which the file has in every third column.
  std::vector<float> ExpertB(int64_t expert) const {
    std::vector<float> own;
    for (int64_t o = 0; o < kOutputs; ++o) {
      for (int64_t k = 0; k < kRank; ++k) {
        own.push_back(at("experts.B")[(o * kRank + k) * kExperts + expert]);
      }
    }
    return own;
  }
  std::vector<float> ExpertA(int64_t expert) const {
    const auto begin = at("experts.A").begin() + expert * kRank * kInputs;
    return {begin, begin + kRank * kInputs};
  }

  // Numbers are below 1 and sums short: a few dozen roundings of F32 at most, each of a size below
  // `size`, and one to `output`.
  static double Near(double value, DType output = DType::kF32, double size = 64) {
    return 64 * UnitRoundoff(DType::kF32) * size + UnitRoundoff(output) * std::abs(value);
  }

  const std::vector<float>& at(const std::string& name) const { return values_.at(name); }

 private:
  void Add(PeftBuilder& builder, const std::string& key, const std::string& tensor,
           const Shape& shape) {
    values_[key] = builder.AddTensor(tensor, shape);
  }

  void LoadKinds() {
    PeftBuilder builder(21);
    builder.Config("r", kRank).Config("rank_pattern", nlohmann::json::object());
    builder.Config("target_modules", {"e", "embed_tokens", "q_proj", "conv", "point"});
    builder.Config("target_parameters", {"experts.down_proj"}).Config("peft_version", "0.19.1");
    builder.Config("modules_to_save", {"score"}).Config("bias", "all");
    builder.Config("trainable_token_indices", {{"tok", {5, 0}}});
    Add(builder, "q.A", "q_proj.lora_A.weight", {kRank, kInputs});
    Add(builder, "q.B", "q_proj.lora_B.weight", {kOutputs, kRank});
    Add(builder, "q.bias", "q_proj.base_layer.bias", {kOutputs});
    Add(builder, "e.A", "e.lora_embedding_A", {kRank, kIds});
    Add(builder, "e.B", "e.lora_embedding_B", {kDim, kRank});
    Add(builder, "embed.A", "embed_tokens.lora_embedding_A", {kRank, kIds});
    Add(builder, "embed.B", "embed_tokens.lora_embedding_B", {kDim, kRank});
    Add(builder, "embed.W", "embed_tokens.base_layer.weight", {kIds, kDim});
    Add(builder, "conv.A", "conv.lora_A.weight", {kRank, 3, 3, 2});
    Add(builder, "conv.B", "conv.lora_B.weight", {4, kRank, 1, 1});
    Add(builder, "point.A", "point.lora_A.weight", {kRank, kInputs, 1, 1});
    Add(builder, "point.B", "point.lora_B.weight", {kOutputs, kRank, 1, 1});
    Add(builder, "experts.A", "experts.lora_A.weight", {kExperts * kRank, kInputs});
    Add(builder, "experts.B", "experts.lora_B.weight", {kOutputs, kRank * kExperts});
    Add(builder, "score.W", "score.weight", {3, kInputs});
    Add(builder, "score.bias", "score.bias", {3});
    Add(builder, "tok.rows", "tok.token_adapter.trainable_tokens_delta", {2, kDim});
    LoadAs("kinds", builder);
  }

  void LoadOwn() {
    PeftBuilder builder(22);
    builder.Add("q_proj", kRank, kInputs, kOutputs).Config("lora_bias", true);
    Add(builder, "own.bias", "q_proj.lora_B.bias", {kOutputs});
    values_["own.A"] = builder.module().a;
    values_["own.B"] = builder.module().b;
    LoadAs("own", builder);
  }

  void LoadDora() {
    PeftBuilder builder(23);
    builder.Add("q_proj", kRank, kInputs, kOutputs).Config("use_dora", true);
    Add(builder, "dora.magnitude", "q_proj.lora_magnitude_vector", {kOutputs});
    values_["dora.A"] = builder.module().a;
    values_["dora.B"] = builder.module().b;
    values_["base.W"] = random_.Floats(DType::kF32, kOutputs * kInputs);
    values_["base.bias"] = random_.Floats(DType::kF32, kOutputs);
    CheckpointBuilder()
        .AddBytes("q_proj.weight", {kOutputs, kInputs}, DType::kF32,
                  BytesOf(DType::kF32, at("base.W")))
        .AddBytes("q_proj.bias", {kOutputs}, DType::kF32, BytesOf(DType::kF32, at("base.bias")))
        .Write(server_.dir(), "base");
    LoadAs("bare", builder);
    v1::LoadAdapterRequest request;
    request.set_name("dora");
    request.set_source("bare");
    request.set_base_checkpoint("base");
    EXPECT_THAT(server_.Load(request).status, IsRpcOk());
    LoadAs("plain", PeftBuilder(24).Add("q_proj", kRank, kInputs, kOutputs));
  }

  std::map<std::string, std::vector<float>> values_;  // of every tensor
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_SERVICE_KINDS_FIXTURE_H_
