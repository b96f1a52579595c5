// Tensors of every kind that are incomplete, of a wrong shape or dtype, or that nothing explains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::Contains;

const std::string kP = "base_model.model.";
const std::string kQ = kP + "q_proj";
const std::string kMagnitude = kQ + ".lora_magnitude_vector";
const std::string kRows = kP + "e.token_adapter.trainable_tokens_delta";

constexpr Reason kInvalid = Reason::kInvalidAdapter;
constexpr Reason kUnsupported = Reason::kUnsupportedAdapter;
constexpr Reason kDtype = Reason::kUnsupportedDtype;

struct BadTensors {
  std::string what;
  AdapterFolder::Keys config;
  std::function<void(AdapterFolder&)> add;
  Reason reason;
  std::string about;  // the tensor's name, or the file alone
};

void ExpectRefused(const std::vector<BadTensors>& cases) {
  for (const BadTensors& bad : cases) {
    SCOPED_TRACE(bad.what);
    AdapterFolder folder;
    folder.Config({{"target_modules", R"(["q_proj"])"}}).Config(bad.config);
    if (bad.what.find("VeRA") != std::string::npos) folder.Without("lora_alpha");
    bad.add(folder);
    EXPECT_EQ(folder.WriteAndOpen(), nullptr);
    EXPECT_THAT(folder.problems().items(), Contains(IsError(bad.reason, bad.about)));
    EXPECT_THAT(folder.problems().ToStatus(), HasReason(bad.reason));
    for (const Problem& problem : folder.problems().items()) {
      if (problem.severity != Severity::kError) continue;
      EXPECT_EQ(problem.file, AdapterFolder::kWeights);
    }
  }
}

TEST(PeftKindsErrorsTest, WhatAPairNeedsMustBeThere) {
  const AdapterFolder::Keys dora = {{"use_dora", "true"}};
  const AdapterFolder::Keys embedding = {{"target_modules", R"(["e"])"}};
  const AdapterFolder::Keys bias = {{"lora_bias", "true"}};
  ExpectRefused({
      {"DoRA without magnitude", dora, [](AdapterFolder& f) { f.AddPair("q_proj"); }, kInvalid,
       kQ + ".lora_A.weight"},
      {"magnitude alone", dora, [](AdapterFolder& f) { f.Add(kMagnitude, {3}); }, kInvalid,
       kMagnitude},
      {"magnitude of another size", dora,
       [](AdapterFolder& f) { f.AddPair("q_proj").Add(kMagnitude, {4}); }, kInvalid, kMagnitude},
      {"magnitude that is a matrix", dora,
       [](AdapterFolder& f) {
         f.AddPair("q_proj", 2, 4, 4).Add(kMagnitude, {2, 2});
       },
       kInvalid, kMagnitude},
      {"integer magnitude", dora,
       [](AdapterFolder& f) { f.AddPair("q_proj").Add(kMagnitude, {3}, DType::kI32); }, kDtype,
       kMagnitude},
      {"magnitude without use_dora",
       {},
       [](AdapterFolder& f) { f.AddPair("q_proj").Add(kMagnitude, {3}); },
       kInvalid,
       kMagnitude},
      {"lora_bias without bias", bias, [](AdapterFolder& f) { f.AddPair("q_proj"); }, kInvalid,
       kQ + ".lora_A.weight"},
      {"bias of another size", bias,
       [](AdapterFolder& f) { f.AddPair("q_proj").Add(kQ + ".lora_B.bias", {2}); }, kInvalid,
       kQ + ".lora_B.bias"},
      {"bias without lora_bias",
       {},
       [](AdapterFolder& f) { f.AddPair("q_proj").Add(kQ + ".lora_B.bias", {3}); },
       kInvalid,
       kQ + ".lora_B.bias"},
      {"embedding without B", embedding,
       [](AdapterFolder& f) {
         f.Add(kP + "e.lora_embedding_A", {2, 9});
       },
       kInvalid, kP + "e.lora_embedding_A"},
      {"embedding of two ranks", embedding,
       [](AdapterFolder& f) {
         f.Add(kP + "e.lora_embedding_A", {2, 9}).Add(kP + "e.lora_embedding_B", {4, 3});
       },
       kInvalid, kP + "e.lora_embedding_B"},
      {"embedding with three dimensions", embedding,
       [](AdapterFolder& f) {
         f.Add(kP + "e.lora_embedding_A", {2, 9, 1}).Add(kP + "e.lora_embedding_B", {4, 2, 1});
       },
       kInvalid, ""},
      {"embedding that is not targeted",
       {},
       [](AdapterFolder& f) {
         f.Add(kP + "e.lora_embedding_A", {2, 9}).Add(kP + "e.lora_embedding_B", {4, 2});
       },
       kInvalid,
       kP + "e.lora_embedding_A"},
  });
}

TEST(PeftKindsErrorsTest, ConvolutionsAreChecked) {
  const auto conv = [](Shape a, Shape b, DType dtype = DType::kF32) {
    return [a, b, dtype](AdapterFolder& f) {
      f.Add(kQ + ".lora_A.weight", a, dtype).Add(kQ + ".lora_B.weight", b);
    };
  };
  ExpectRefused({
      {"ranks differ", {}, conv({2, 4, 3, 3}, {4, 3, 1, 1}), kInvalid, kQ + ".lora_B.weight"},
      {"in groups", {}, conv({4, 4, 3, 3}, {4, 2, 1, 1}), kUnsupported, kQ + ".lora_B.weight"},
      {"empty kernel", {}, conv({2, 4, 0, 3}, {4, 2, 1, 1}), kInvalid, kQ + ".lora_A.weight"},
      {"integers", {}, conv({2, 4, 3, 3}, {4, 2, 1, 1}, DType::kI8), kDtype, kQ + ".lora_A.weight"},
      {"B with a kernel", {}, conv({2, 4, 3, 3}, {4, 2, 3, 3}), kInvalid, kQ + ".lora_A.weight"},
      {"A is none", {}, conv({2, 4}, {4, 2, 1, 1}), kInvalid, kQ + ".lora_B.weight"},
      {"six dimensions",
       {},
       conv({2, 4, 1, 1, 1, 1}, {4, 2, 1, 1, 1, 1}),
       kInvalid,
       kQ + ".lora_A.weight"},
      {"rank of the config", {}, conv({3, 4, 3, 3}, {4, 3, 1, 1}), kInvalid, kQ + ".lora_A.weight"},
  });
}

TEST(PeftKindsErrorsTest, ReplacementsAreChecked) {
  const AdapterFolder::Keys all = {{"bias", "\"all\""}};
  const AdapterFolder::Keys lora_only = {{"bias", "\"lora_only\""}};
  const AdapterFolder::Keys saved = {{"modules_to_save", R"(["score"])"}};
  const AdapterFolder::Keys tokens = {{"trainable_token_indices", "[1, 2]"}};
  const AdapterFolder::Keys of_other = {{"trainable_token_indices", R"({"other": [1, 2]})"}};
  const auto with_pair = [](const std::string& name, Shape shape, DType dtype = DType::kF32) {
    return [name, shape, dtype](AdapterFolder& f) { f.AddPair("q_proj").Add(name, shape, dtype); };
  };
  const std::string bias = kQ + ".base_layer.bias";
  const std::string score = kP + "score.weight";
  ExpectRefused({
      {"bias that nothing explains", {}, with_pair(bias, {3}), kInvalid, bias},
      {"bias of a layer without a pair", lora_only, with_pair(kP + "k_proj.bias", {3}), kInvalid,
       kP + "k_proj.bias"},
      {"bias of a factor", all, with_pair(kQ + ".lora_A.bias", {2}), kInvalid, kQ + ".lora_A.bias"},
      {"bias of another size", all, with_pair(bias, {4}), kInvalid, bias},
      {"integer bias", all, with_pair(kP + "norm.bias", {4}, DType::kI64), kDtype,
       kP + "norm.bias"},
      {"weight that nothing explains", {}, with_pair(score, {3, 4}), kInvalid, score},
      {"weight of a task without a head",
       {{"task_type", "\"CAUSAL_LM\""}},
       with_pair(score, {3, 4}),
       kInvalid,
       score},
      {"base weight of a pair",
       {},
       with_pair(kQ + ".base_layer.weight", {3, 4}),
       kInvalid,
       kQ + ".base_layer.weight"},
      {"empty weight", saved, with_pair(score, {0, 4}), kInvalid, score},
      {"integer weight", saved, with_pair(score, {3, 4}, DType::kI8), kDtype, score},
      {"weight and bias that differ", saved,
       [&](AdapterFolder& f) {
         f.AddPair("q_proj").Add(score, {3, 4}).Add(kP + "score.bias", {4});
       },
       kInvalid, kP + "score.bias"},
      {"weight twice", saved,
       [&](AdapterFolder& f) {
         f.AddPair("q_proj").Add(score, {3, 4}).Add("score.weight", {3, 4});
       },
       kInvalid, "score.weight"},
      {"rows without tokens", {}, with_pair(kRows, {2, 4}), kInvalid, kRows},
      {"rows of another layer", of_other, with_pair(kRows, {2, 4}), kInvalid, kRows},
      {"other number of rows", tokens, with_pair(kRows, {3, 4}), kInvalid, kRows},
      {"rows that are a vector", tokens, with_pair(kRows, {2}), kInvalid, kRows},
      {"integer rows", tokens, with_pair(kRows, {2, 4}, DType::kI32), kDtype, kRows},
      {"rows beside a pair",
       {{"trainable_token_indices", "[1, 2]"}, {"target_modules", R"(["e"])"}},
       [](AdapterFolder& f) {
         f.Add(kP + "e.lora_embedding_A", {2, 9}).Add(kP + "e.lora_embedding_B", {4, 2});
         f.Add(kRows, {2, 4});
       },
       kUnsupported,
       kRows},
      {"rows beside a whole weight",
       {{"trainable_token_indices", "[1, 2]"}, {"modules_to_save", R"(["e"])"}},
       [](AdapterFolder& f) {
         f.AddPair("q_proj").Add(kRows, {2, 4}).Add(kP + "e.weight", {9, 4});
       },
       kUnsupported,
       kRows},
  });
}

TEST(PeftKindsErrorsTest, AdaLoraAndVeraAreChecked) {
  const AdapterFolder::Keys adalora = {{"peft_type", "\"ADALORA\""}, {"init_r", "2"}};
  const AdapterFolder::Keys vera = {{"peft_type", "\"VERA\""}, {"projection_prng_key", "0"}};
  const auto ada = [](int64_t rank, Shape e, bool with_b = true) {
    return [rank, e, with_b](AdapterFolder& f) {
      f.Add(kQ + ".lora_A", {rank, 4});
      if (with_b) f.Add(kQ + ".lora_B", {3, rank});
      if (!e.empty()) f.Add(kQ + ".lora_E", e);
    };
  };
  struct Vera {
    Shape a = {2, 4};
    Shape b = {3, 2};
    Shape lambda_d = {2};
    Shape lambda_b = {3};
  };
  const auto with = [](const Vera& v) {
    return [v](AdapterFolder& f) {
      if (!v.a.empty()) f.Add("base_model.vera_A", v.a);
      if (!v.b.empty()) f.Add("base_model.vera_B", v.b);
      if (!v.lambda_d.empty()) f.Add(kQ + ".vera_lambda_d", v.lambda_d);
      if (!v.lambda_b.empty()) f.Add(kQ + ".vera_lambda_b", v.lambda_b);
    };
  };
  ExpectRefused({
      {"without E", adalora, ada(2, {}), kInvalid, kQ + ".lora_A"},
      {"without B", adalora, ada(2, {2, 1}, false), kInvalid, kQ + ".lora_A"},
      {"E of another rank", adalora, ada(2, {3, 1}), kInvalid, kQ + ".lora_E"},
      {"another rank than init_r", adalora, ada(3, {3, 1}), kInvalid, kQ + ".lora_A"},
      {"names of LoRA", adalora, [](AdapterFolder& f) { f.AddPair("q_proj"); }, kInvalid,
       kQ + ".lora_A.weight"},
      {"E in a LoRA", {}, ada(2, {2, 1}), kInvalid, kQ + ".lora_A"},
      {"vector of a method in a LoRA", {}, with({}), kInvalid, "base_model.vera_A"},
      {"VeRA: without vera_A", vera, with({.a = {}}), kInvalid, ""},
      {"VeRA: without vera_B", vera, with({.b = {}}), kInvalid, ""},
      {"VeRA: projections of two ranks", vera, with({.b = {3, 3}}), kInvalid, "base_model.vera_B"},
      {"VeRA: projection that is a vector", vera, with({.a = {8}}), kInvalid, "base_model.vera_A"},
      {"VeRA: without lambda_d", vera, with({.lambda_d = {}}), kInvalid, kQ + ".vera_lambda_b"},
      {"VeRA: without lambda_b", vera, with({.lambda_b = {}}), kInvalid, kQ + ".vera_lambda_d"},
      {"VeRA: lambda_d of another rank", vera, with({.lambda_d = {3}}), kInvalid,
       kQ + ".vera_lambda_d"},
      {"VeRA: more outputs than vera_B", vera, with({.lambda_b = {4}}), kInvalid,
       "base_model.vera_B"},
  });
}

TEST(PeftKindsErrorsTest, ExpertsAreChecked) {
  const auto targeting = [](const std::string& parameters, const std::string& version) {
    return AdapterFolder::Keys{
        {"target_parameters", parameters}, {"target_modules", "[]"}, {"peft_version", version}};
  };
  const std::string down = R"(["experts.down_proj"])";
  const AdapterFolder::Keys experts = targeting(down, R"("0.19.1")");
  const AdapterFolder::Keys old = targeting(down, R"("0.18.0")");
  const AdapterFolder::Keys unknown =
      targeting(R"(["experts.down_proj", "experts.w9"])", R"("0.19.1")");
  const std::string a = kP + "m.experts.lora_A.weight";
  const std::string inner = kP + "m.experts.base_layer.lora_A.weight";
  ExpectRefused({
      {"no whole number of experts", experts, [](AdapterFolder& f) { f.AddPair("m.experts", 5); },
       kInvalid, a},
      {"another parameter's wrapper", experts,
       [](AdapterFolder& f) { f.AddPair("m.experts", 4).AddPair("m.experts.base_layer", 4); },
       kInvalid, inner},
      {"another module", experts, [](AdapterFolder& f) { f.AddPair("m.mlp", 4); }, kInvalid,
       kP + "m.mlp.lora_A.weight"},
      {"A alone", experts,
       [&](AdapterFolder& f) {
         f.Add(a, {4, 6});
       },
       kInvalid, a},
      {"unknown order", unknown, [](AdapterFolder& f) { f.AddPair("m.experts", 4); }, kUnsupported,
       "target_parameters"},
      {"sides that only a base tells", old, [](AdapterFolder& f) { f.AddPair("m.experts", 4); },
       Reason::kBaseRequired, ""},
      {"attention",
       {},
       [](AdapterFolder& f) { f.AddPair("q_proj").AddPair("a.base_layer.out_proj"); },
       kUnsupported,
       kP + "a.base_layer.out_proj.lora_A.weight"},
      {"KaSA",
       {},
       [](AdapterFolder& f) { f.AddPair("q_proj").Add(kQ + ".lora_diag", {2}); },
       kUnsupported,
       kQ + ".lora_diag"},
  });
}

// One refused switch, not one line for each tensor that comes with it.
TEST(PeftKindsErrorsTest, RefusedSwitchesExplainTheirTensors) {
  AdapterFolder folder;
  folder.AddPair("q_proj").Add(kQ + ".lora_diag", {2});
  folder.Config({{"kasa_config", R"({"x": 1})"}});
  EXPECT_EQ(folder.WriteAndOpen(), nullptr);
  EXPECT_THAT(folder.problems().items(),
              ::testing::ElementsAre(IsError(kUnsupported, "kasa_config")));
}

}  // namespace
}  // namespace adapterd
