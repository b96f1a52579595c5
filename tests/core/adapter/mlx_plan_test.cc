// Config and tensors of mlx-lm against each other, through the opener.
#include "core/adapter/mlx_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::NotNull;

constexpr char kQ[] = "model.layers.3.self_attn.q_proj";

std::string Config(const std::string& parameters = R"("rank": 2, "scale": 20.0, "dropout": 0.5)",
                   const std::string& more = R"("fine_tune_type": "lora", "num_layers": 4)") {
  return "{" + more + (more.empty() ? "" : ", ") + R"("model": "base", "lora_parameters": {)" +
         parameters + "}}";
}

AdapterFolder& AddPair(AdapterFolder& folder, const std::string& path = kQ) {
  return folder.Add(path + ".lora_a", {6, 2}).Add(path + ".lora_b", {2, 4});
}

TEST(MlxPlanTest, FactorsLieTheOtherWayRoundAndTheScaleIsUsedAsItIs) {
  AdapterFolder folder;
  const auto reader = AddPair(folder).ConfigText(Config()).WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  EXPECT_THAT(folder.problems().items(), IsEmpty());
  const AdapterManifest& manifest = *reader->manifest();
  EXPECT_EQ(manifest.format, AdapterFormat::kMlx);
  EXPECT_EQ(manifest.method, "lora");
  EXPECT_EQ(manifest.base_model, "base");
  EXPECT_EQ(manifest.lora_dropout, 0.5);
  ASSERT_EQ(manifest.modules.size(), 1u);
  const ModuleInfo& module = manifest.modules[0];
  EXPECT_EQ(module.path, kQ);
  EXPECT_EQ(module.kind, ModuleKind::kLinear);
  EXPECT_EQ(module.in_features, 6);
  EXPECT_EQ(module.rank, 2);
  EXPECT_EQ(module.out_features, 4);
  EXPECT_EQ(module.scale, 20);
  EXPECT_EQ(module.alpha, 40);
}

TEST(MlxPlanTest, AnEmbeddingIsToldByItsName) {
  AdapterFolder folder;
  const auto reader = AddPair(folder, "model.embed_tokens").ConfigText(Config()).WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->modules[0].kind, ModuleKind::kEmbedding);
}

TEST(MlxPlanTest, ExpertsComeInTwoLayouts) {
  for (const Shape& a : {Shape{3, 2, 6}, Shape{6, 6}}) {
    AdapterFolder folder;
    const std::string path = "model.layers.1.mlp.switch_mlp.up_proj";
    folder.Add(path + ".lora_a", a).Add(path + ".lora_b", {3, 4, 2});
    const auto reader = folder.ConfigText(Config()).WriteAndOpen();
    ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
    const ModuleInfo& module = reader->manifest()->modules[0];
    EXPECT_EQ(module.kind, ModuleKind::kExperts);
    EXPECT_EQ(module.experts, 3);
    EXPECT_EQ(module.rank, 2);
    EXPECT_EQ(module.in_features, 6);
    EXPECT_EQ(module.out_features, 4);
  }
}

TEST(MlxPlanTest, DoraHasAMagnitudeForEachOutput) {
  AdapterFolder folder;
  AddPair(folder).Add(std::string(kQ) + ".m", {4});
  folder.ConfigText(Config(R"("rank": 2, "scale": 1)", R"("fine_tune_type": "dora")"));
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->method, "dora");
  EXPECT_TRUE(reader->manifest()->modules[0].has_magnitude);
  // As fine_tune_type was called before November 2024.
  folder.ConfigText(Config(R"("rank": 2, "scale": 1)", R"("use_dora": true)"));
  EXPECT_THAT(folder.WriteAndOpen(), NotNull());
}

TEST(MlxPlanTest, AFullFineTuneReplacesWeights) {
  AdapterFolder folder;
  folder.Add("model.layers.0.q_proj.weight", {4, 6}).Add("model.layers.0.q_proj.bias", {4});
  folder.Add("model.norm.weight", {6}).Add("model.layers.0.mixer.A_log", {8});
  folder.ConfigText(R"({"fine_tune_type": "full", "num_layers": 1})");
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  EXPECT_EQ(reader->manifest()->method, "full");
  std::vector<std::string> paths;
  for (const ModuleInfo& module : reader->manifest()->modules) {
    EXPECT_EQ(module.kind, ModuleKind::kReplacement);
    paths.push_back(module.path);
  }
  EXPECT_THAT(paths,
              ElementsAre("model.layers.0.mixer.A_log", "model.layers.0.q_proj", "model.norm"));
  EXPECT_TRUE(reader->manifest()->modules[1].replaces_bias);
  EXPECT_EQ(reader->manifest()->modules[0].parameter, "A_log");
}

// The factor that a config with alpha meant, and what the warning names.
TEST(MlxPlanTest, AlphaCountsWhereNoLaterKeyIs) {
  struct Case {
    std::string what;
    std::string parameters;
    std::string more;
    double scale;
    bool warns;
  };
  const std::string with_alpha = R"("rank": 2, "alpha": 4, "scale": 10)";
  const std::vector<Case> cases = {
      {"of early 2024", with_alpha, R"("lora_layers": 16)", 20, true},
      {"with fine_tune_type", with_alpha, R"("fine_tune_type": "lora")", 10, true},
      {"with num_layers", with_alpha, R"("num_layers": 16)", 10, true},
      {"with use_dora", with_alpha, R"("use_dora": false, "lora_layers": 16)", 10, true},
      {"of the rank", R"("rank": 2, "alpha": 2, "scale": 10)", R"("lora_layers": 16)", 10, false},
      {"null", R"("rank": 2, "alpha": null, "scale": 10)", R"("lora_layers": 16)", 10, false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    AdapterFolder folder;
    const auto reader = AddPair(folder).ConfigText(Config(c.parameters, c.more)).WriteAndOpen();
    ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
    EXPECT_EQ(reader->manifest()->modules[0].scale, c.scale);
    const auto warning = IsWarning("June 2024");
    if (c.warns) EXPECT_THAT(folder.problems().items(), ElementsAre(warning));
    if (!c.warns) EXPECT_THAT(folder.problems().items(), IsEmpty());
  }
}

TEST(MlxPlanTest, KeysNameModulesByPathOrWithinABlock) {
  for (const char* keys : {R"(["self_attn.q_proj"])", R"(["model.layers.3.self_attn.q_proj"])"}) {
    AdapterFolder folder;
    AddPair(folder).ConfigText(Config(std::string(R"("rank": 2, "scale": 1, "keys": )") + keys));
    EXPECT_THAT(folder.WriteAndOpen(), NotNull()) << keys;
  }
  for (const char* keys : {R"(["q_proj"])", R"(["layers.3.self_attn.q_proj"])", R"(["attn"])"}) {
    AdapterFolder folder;
    AddPair(folder).ConfigText(Config(std::string(R"("rank": 2, "scale": 1, "keys": )") + keys));
    EXPECT_EQ(folder.WriteAndOpen(), nullptr) << keys;
    EXPECT_THAT(folder.problems().items(),
                ElementsAre(IsError(Reason::kInvalidAdapter, std::string(kQ) + ".lora_a")));
  }
}

struct BadFolder {
  std::string what;
  std::function<void(AdapterFolder&)> make;
  Reason reason;
  std::string about;  // field or tensor
};

TEST(MlxPlanTest, WhatIsWrongIsNamed) {
  const std::string q = kQ;
  const auto config = [](const std::string& parameters, const std::string& more = "") {
    return [=](AdapterFolder& f) { AddPair(f).ConfigText(Config(parameters, more)); };
  };
  const std::string dora = R"("fine_tune_type": "dora")";
  const std::string good = R"("rank": 2, "scale": 1)";
  const std::vector<BadFolder> cases = {
      {"no rank", config(R"("scale": 1)"), Reason::kMalformedConfig, "lora_parameters.rank"},
      {"no scale", config(R"("rank": 2)"), Reason::kMalformedConfig, "lora_parameters.scale"},
      {"null scale", config(R"("rank": 2, "scale": null)"), Reason::kMalformedConfig,
       "lora_parameters.scale"},
      {"scale in words", config(R"("rank": 2, "scale": "20")"), Reason::kMalformedConfig,
       "lora_parameters.scale"},
      {"endless scale", config(R"("rank": 2, "scale": 1e300)"), Reason::kMalformedConfig,
       "lora_parameters.scale"},
      {"rank 0", config(R"("rank": 0, "scale": 1)"), Reason::kMalformedConfig,
       "lora_parameters.rank"},
      {"alpha in words", config(R"("rank": 2, "scale": 1, "alpha": "16")"),
       Reason::kMalformedConfig, "lora_parameters.alpha"},
      {"unknown parameter", config(R"("rank": 2, "scale": 1, "use_rslora": true)"),
       Reason::kUnsupportedAdapter, "lora_parameters.use_rslora"},
      {"unknown tuning", config(good, R"("fine_tune_type": "ia3")"), Reason::kUnsupportedAdapter,
       "fine_tune_type"},
      {"no parameters",
       [](AdapterFolder& f) { AddPair(f).ConfigText(R"({"fine_tune_type": "lora"})"); },
       Reason::kMalformedConfig, "lora_parameters"},
      {"parameters that are a list",
       [](AdapterFolder& f) {
         AddPair(f).ConfigText(R"({"fine_tune_type": "lora", "lora_parameters": [8]})");
       },
       Reason::kMalformedConfig, "lora_parameters"},
      {"another rank", config(R"("rank": 3, "scale": 1)"), Reason::kInvalidAdapter, q + ".lora_a"},
      {"more blocks than were tuned",
       [](AdapterFolder& f) {
         AddPair(AddPair(f), "model.layers.2.q_proj")
             .ConfigText(Config(R"("rank": 2, "scale": 1)", R"("num_layers": 1)"));
       },
       Reason::kInvalidAdapter, ""},
      {"A alone",
       [&](AdapterFolder& f) {
         f.Add(q + ".lora_a", {6, 2}).ConfigText(Config());
       },
       Reason::kInvalidAdapter, q + ".lora_a"},
      {"B alone",
       [&](AdapterFolder& f) {
         f.Add(q + ".lora_b", {2, 4}).ConfigText(Config());
       },
       Reason::kInvalidAdapter, q + ".lora_b"},
      {"ranks that differ",
       [&](AdapterFolder& f) {
         f.Add(q + ".lora_a", {6, 2}).Add(q + ".lora_b", {3, 4}).ConfigText(Config());
       },
       Reason::kInvalidAdapter, q + ".lora_b"},
      {"experts that differ",
       [&](AdapterFolder& f) {
         f.Add(q + ".lora_a", {2, 2, 6}).Add(q + ".lora_b", {3, 4, 2}).ConfigText(Config());
       },
       Reason::kInvalidAdapter, q + ".lora_a"},
      {"empty factor",
       [&](AdapterFolder& f) {
         f.Add(q + ".lora_a", {0, 2}).Add(q + ".lora_b", {2, 4}).ConfigText(Config());
       },
       Reason::kInvalidAdapter, q + ".lora_a"},
      {"factors of integers",
       [&](AdapterFolder& f) {
         f.Add(q + ".lora_a", {6, 2}, DType::kI32).Add(q + ".lora_b", {2, 4}).ConfigText(Config());
       },
       Reason::kUnsupportedDtype, q + ".lora_a"},
      {"magnitude of no DoRA",
       [&](AdapterFolder& f) { AddPair(f).Add(q + ".m", {4}).ConfigText(Config()); },
       Reason::kInvalidAdapter, q + ".m"},
      {"DoRA without magnitude", config(good, dora), Reason::kInvalidAdapter, q + ".lora_a"},
      {"magnitude of another size",
       [&](AdapterFolder& f) { AddPair(f).Add(q + ".m", {6}).ConfigText(Config(good, dora)); },
       Reason::kInvalidAdapter, q + ".m"},
      {"DoRA of an embedding",
       [&](AdapterFolder& f) {
         AddPair(f, "model.embed_tokens").Add("model.embed_tokens.m", {6});
         f.ConfigText(Config(good, dora));
       },
       Reason::kUnsupportedAdapter, "model.embed_tokens.m"},
      {"tensors of PEFT", [](AdapterFolder& f) { f.AddPair("q_proj").ConfigText(Config()); },
       Reason::kInvalidAdapter, "base_model.model.q_proj.lora_A.weight"},
      {"a config of PEFT", [](AdapterFolder& f) { AddPair(f); }, Reason::kInvalidAdapter,
       q + ".lora_a"},
      {"no config", [](AdapterFolder& f) { AddPair(f).ConfigText(""); }, Reason::kSourceNotFound,
       ""},
      {"nothing", [](AdapterFolder& f) { f.ConfigText(Config()); }, Reason::kInvalidAdapter, ""},
      {"quantised weights of a full fine-tune",
       [](AdapterFolder& f) {
         f.Add("q.weight", {4, 6}, DType::kU32).ConfigText(R"({"fine_tune_type": "full"})");
       },
       Reason::kUnsupportedDtype, "q.weight"},
  };
  for (const BadFolder& c : cases) {
    SCOPED_TRACE(c.what);
    AdapterFolder folder;
    c.make(folder);
    EXPECT_EQ(folder.WriteAndOpen(), nullptr);
    EXPECT_THAT(folder.problems().items(), Contains(IsError(c.reason, c.about)));
  }
}

TEST(MlxPlanTest, BaseModelsMustAgreeWhenBothAreNamed) {
  AdapterFolder folder;
  AddPair(folder).ConfigText(Config()).Write();
  EXPECT_THAT(folder.Open("base"), NotNull());
  EXPECT_EQ(folder.Open("another"), nullptr);
  EXPECT_THAT(folder.problems().items(), ElementsAre(IsError(Reason::kBaseModelMismatch, "model")));
}

}  // namespace
}  // namespace adapterd
