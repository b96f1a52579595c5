// Adapters that PEFT wrote, bound to the tiny models that it trained them on.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>

#include "core/adapter/base_model.h"
#include "core/adapter/base_model_binding.h"
#include "core/formats/safetensors.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

nlohmann::json JsonOf(const std::string& path) {
  std::ifstream stream(path);
  return nlohmann::json::parse(stream);
}

// The pairs of one adapter by the names and shapes of its tensors alone, whatever the reader of
// adapters supports. Parameters of experts are listed by hand in their test.
std::vector<ModuleInfo> ModulesOf(const std::string& name) {
  const auto roots = SourceRoots::Open({{"", ADAPTERD_FIXTURES "/peft/cases"}});
  const auto file = roots->OpenFolder(name)->OpenFile("adapter_model.safetensors");
  const SafetensorsHeader header = *ReadSafetensorsHeader(*file);
  std::map<std::string, Shape> shapes;
  for (const SafetensorsEntry& entry : header.tensors) {
    shapes[entry.name.substr(std::string("base_model.model.").size())] = entry.shape;
  }
  std::vector<ModuleInfo> modules;
  for (const auto& [key, a] : shapes) {
    ModuleInfo module;
    const auto is = [&, &key = key](std::string_view end) {
      if (!key.ends_with(end)) return false;
      module.path = key.substr(0, key.size() - end.size());
      return true;
    };
    if (is(".lora_A.weight")) {
      const Shape& b = shapes.at(module.path + ".lora_B.weight");
      module.kind = a.size() > 2 ? ModuleKind::kConv : ModuleKind::kLinear;
      module.kernel_elements =
          std::accumulate(a.begin() + 2, a.end(), int64_t{1}, std::multiplies<>());
      module.in_features = a[1];
      module.out_features = b[0];
    } else if (is(".lora_embedding_A")) {
      module.kind = ModuleKind::kEmbedding;
      module.in_features = a[1];
      module.out_features = shapes.at(module.path + ".lora_embedding_B")[0];
    } else if (is(".token_adapter.trainable_tokens_delta")) {
      module.kind = ModuleKind::kReplacement;
      module.weight_shape = a;
      module.token_ids.assign(a[0], 127);
    } else if (key.find(".lora_") == std::string::npos && !key.ends_with(".base_layer.weight") &&
               is(".weight")) {
      module.kind = ModuleKind::kReplacement;
      module.weight_shape = a;
    } else {
      continue;
    }
    modules.push_back(std::move(module));
  }
  return modules;
}

std::unique_ptr<const BaseModel> BaseOf(const std::string& name, ProblemList& problems) {
  const auto roots = SourceRoots::Open({{"", ADAPTERD_FIXTURES "/peft/bases"}});
  return BaseModel::Open(*roots, name, problems);
}

BindOptions OptionsOf(const nlohmann::json& config) {
  BindOptions options;
  options.fan_in_fan_out = config.value("fan_in_fan_out", false);
  if (const auto found = config.find("layer_replication");
      found != config.end() && !found->is_null()) {
    for (const auto& range : *found) options.layer_replication.push_back({range[0], range[1]});
  }
  return options;
}

class BaseFixtureTest : public ::testing::TestWithParam<const char*> {};

TEST_P(BaseFixtureTest, EveryModuleIsFound) {
  const std::string folder = fmt::format("{}/peft/cases/{}/", ADAPTERD_FIXTURES, GetParam());
  ProblemList problems;
  const auto base = BaseOf(JsonOf(folder + "case.json").at("base"), problems);
  ASSERT_NE(base, nullptr) << problems.ToStatus();
  const auto modules = ModulesOf(GetParam());
  ASSERT_FALSE(modules.empty());
  const BindOptions options = OptionsOf(JsonOf(folder + "adapter_config.json"));
  const auto bindings = BindToBase(modules, *base, options, problems);
  EXPECT_THAT(problems.items(), IsEmpty()) << problems.ToStatus();
  const bool gpt2 = base->geometry().model_type == "gpt2";
  for (size_t i = 0; i < modules.size(); ++i) {
    ASSERT_TRUE(bindings[i].weight) << modules[i].path;
    const bool transposed = gpt2 || modules[i].kind == ModuleKind::kEmbedding;
    EXPECT_EQ(bindings[i].weight->layout, transposed ? BaseLayout::kInOut : BaseLayout::kOutIn)
        << modules[i].path;
    EXPECT_EQ(bindings[i].bias.has_value(),
              base->checkpoint().Find(modules[i].path + ".bias") != nullptr)
        << modules[i].path;
  }
}

INSTANTIATE_TEST_SUITE_P(Peft, BaseFixtureTest,
                         ::testing::Values("bert-seq-cls", "conv2d", "gpt2-conv1d",
                                           "llama-all-linear", "llama-bf16", "llama-dora",
                                           "llama-embedding-head", "llama-embedding-saved",
                                           "llama-exclude", "llama-layer-replication",
                                           "llama-modules-to-save", "llama-patterns", "llama-qv",
                                           "llama-trainable-tokens", "qwen2-bias-all",
                                           "qwen2-dora-bias"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(BaseFixturesTest, GptTwoIsToldWithoutTheSwitchOfTheConfig) {
  ProblemList problems;
  const auto base = BaseOf("tiny-gpt2", problems);
  for (const BaseBinding& binding : BindToBase(ModulesOf("gpt2-conv1d"), *base, {}, problems)) {
    EXPECT_EQ(binding.weight->layout, BaseLayout::kInOut) << binding.weight->tensor;
  }
  EXPECT_THAT(problems.items(), IsEmpty());
}

TEST(BaseFixturesTest, AnAdapterOfAnotherModelDoesNotFit) {
  ProblemList problems;
  const auto gpt2 = BaseOf("tiny-gpt2", problems);
  BindToBase(ModulesOf("llama-qv"), *gpt2, {}, problems);
  EXPECT_THAT(problems.ToStatus(), HasReason(Reason::kBaseModelMismatch));
  EXPECT_THAT(problems.ToStatus(), HasMessage(HasSubstr("none of the adapter's 4 modules")));
}

TEST(BaseFixturesTest, AHeadOfATiedModelIsItsEmbedding) {
  ProblemList problems;
  const auto base = BaseOf("tiny-llama-tied", problems);
  std::vector<ModuleInfo> modules = ModulesOf("llama-modules-to-save");
  const auto bindings = BindToBase(modules, *base, {}, problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  ASSERT_EQ(modules[0].path, "lm_head");
  EXPECT_EQ(bindings[0].weight->tensor, "model.embed_tokens.weight");
}

// transformers 5 fuses the experts of this checkpoint when it loads it; the file has them apart.
TEST(BaseFixturesTest, FusedExpertsOfACheckpointThatHasThemApartAreNotFound) {
  ProblemList problems;
  const auto base = BaseOf("tiny-mixtral", problems);
  ModuleInfo experts;
  experts.kind = ModuleKind::kExperts;
  experts.path = "model.layers.0.mlp.experts.gate_up_proj";
  experts.in_features = 64;
  experts.out_features = 192;
  experts.experts = 4;
  ModuleInfo query;
  query.path = "model.layers.0.self_attn.q_proj";
  query.in_features = query.out_features = 64;
  const auto bindings = BindToBase({experts, query}, *base, {}, problems);
  EXPECT_FALSE(bindings[0].weight);
  EXPECT_TRUE(bindings[1].weight);
  ASSERT_THAT(problems.items(), SizeIs(1));
  EXPECT_EQ(problems.items()[0].severity, Severity::kWarning);
}

}  // namespace
}  // namespace adapterd
