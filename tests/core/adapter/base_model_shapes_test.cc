#include "core/adapter/base_model_shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/tensor/shape.h"

namespace adapterd {
namespace {

constexpr ModuleKind kLinear = ModuleKind::kLinear;
constexpr ModuleKind kConv = ModuleKind::kConv;
constexpr ModuleKind kEmbedding = ModuleKind::kEmbedding;
constexpr ModuleKind kExperts = ModuleKind::kExperts;
constexpr auto kOutIn = BaseLayout::kOutIn;
constexpr auto kInOut = BaseLayout::kInOut;
constexpr std::nullopt_t kWrong = std::nullopt;

ModuleInfo Module(ModuleKind kind, const char* path, int64_t in, int64_t out) {
  ModuleInfo module;
  module.kind = kind;
  module.path = path;
  module.in_features = in;
  module.out_features = out;
  if (kind == kConv) module.kernel_elements = 9;
  if (kind == kExperts) module.experts = 4;
  return module;
}

struct Case {
  ModuleInfo module;
  const char* model_type;
  bool fan_in_fan_out;
  Shape shape;
  std::optional<BaseLayout> layout;
};

TEST(BaseShapesTest, LayoutsOfWeights) {
  const ModuleInfo up = Module(kLinear, "mlp.up", 3, 5);
  const ModuleInfo square = Module(kLinear, "mlp.up", 4, 4);
  const ModuleInfo c_proj = Module(kLinear, "attn.c_proj", 4, 4);
  const ModuleInfo embedding = Module(kEmbedding, "embed_tokens", 7, 3);
  const ModuleInfo conv = Module(kConv, "conv", 3, 5);
  const ModuleInfo experts = Module(kExperts, "mlp.experts.up", 3, 5);
  const ModuleInfo square_experts = Module(kExperts, "mlp.experts.up", 3, 3);
  ModuleInfo router = Module(kExperts, "mlp.gate.weight", 3, 5);
  router.experts = 1;
  const Case cases[] = {
      {up, "llama", false, {5, 3}, kOutIn},
      {up, "llama", false, {3, 5}, kWrong},  // another layer's weight
      {up, "llama", true, {3, 5}, kInOut},
      {up, "llama", true, {5, 3}, kOutIn},  // the shape is clear
      {up, "", false, {3, 5}, kInOut},
      {up, "gpt2", false, {3, 5}, kWrong},  // "up" is no Conv1D of GPT-2
      {up, "llama", false, {5, 4}, kWrong},
      {up, "llama", false, {15}, kWrong},
      {up, "llama", false, {}, kWrong},
      {up, "llama", false, {5, 3, 1}, kWrong},
      {Module(kLinear, "attn.c_attn", 3, 5), "gpt2", false, {3, 5}, kInOut},
      {Module(kLinear, "attn.c_attn", 3, 5), "gpt_bigcode", false, {3, 5}, kWrong},
      {square, "llama", false, {4, 4}, kOutIn},
      {square, "llama", true, {4, 4}, kOutIn},  // PEFT takes the switch back for nn.Linear
      {square, "", false, {4, 4}, kOutIn},
      {square, "", true, {4, 4}, kInOut},
      {c_proj, "someones_gpt", true, {4, 4}, kInOut},  // of its own code, with Conv1D's names
      {c_proj, "someones_gpt", false, {4, 4}, kOutIn},
      {c_proj, "gpt2", false, {4, 4}, kInOut},
      {c_proj, "gpt2", true, {4, 4}, kInOut},
      {c_proj, "gpt_bigcode", false, {4, 4}, kOutIn},
      {c_proj, "gpt_bigcode", true, {4, 4}, kOutIn},  // nn.Linear, for all its name
      {square, "gpt2", true, {4, 4}, kOutIn},
      {embedding, "llama", false, {7, 3}, kInOut},
      {embedding, "llama", true, {3, 7}, kWrong},
      {conv, "", false, {5, 3, 3, 3}, kOutIn},
      {conv, "", false, {5, 3, 9}, kOutIn},
      {conv, "", false, {3, 5, 3, 3}, kWrong},
      {conv, "", false, {5, 3, 3}, kWrong},
      {conv, "", false, {5, 3}, kWrong},
      {experts, "mixtral", false, {4, 5, 3}, kOutIn},
      {experts, "mixtral", false, {4, 3, 5}, kInOut},
      {experts, "mixtral", false, {5, 5, 3}, kWrong},
      {experts, "mixtral", false, {5, 3}, kWrong},
      {square_experts, "mixtral", false, {4, 3, 3}, kOutIn},
      {square_experts, "gpt_oss", false, {4, 3, 3}, kInOut},
      {router, "mixtral", false, {5, 3}, kOutIn},
      {router, "mixtral", false, {1, 5, 3}, kOutIn},
      {router, "mixtral", false, {3, 5}, kWrong},
  };
  for (const Case& test : cases) {
    BaseGeometry geometry;
    geometry.model_type = geometry.text_model_type = test.model_type;
    EXPECT_EQ(LayoutOfWeight(test.module, test.shape, geometry, test.fan_in_fan_out), test.layout)
        << test.module.path << " " << test.model_type << " " << ShapeString(test.shape);
  }
}

TEST(BaseShapesTest, ExpectedShapes) {
  BaseGeometry llama;
  llama.model_type = llama.text_model_type = "llama";
  const ModuleInfo up = Module(kLinear, "mlp.up", 3, 5);
  EXPECT_EQ(ExpectedShape(up, llama, false), "[5, 3]");
  EXPECT_EQ(ExpectedShape(up, llama, true), "[5, 3] or [3, 5]");
  EXPECT_EQ(ExpectedShape(up, BaseGeometry(), false), "[5, 3] or [3, 5]");
  EXPECT_EQ(ExpectedShape(Module(kLinear, "up", 4, 4), llama, true), "[4, 4]");
  EXPECT_EQ(ExpectedShape(Module(kEmbedding, "e", 7, 3), llama, false), "[7, 3]");
  EXPECT_EQ(ExpectedShape(Module(kConv, "c", 3, 5), llama, false), "[5, 3, a kernel of 9 places]");
  EXPECT_EQ(ExpectedShape(Module(kExperts, "e", 3, 5), llama, false), "[4, 5, 3] or [4, 3, 5]");
  EXPECT_EQ(ExpectedShape(Module(kExperts, "e", 3, 3), llama, false), "[4, 3, 3]");
}

}  // namespace
}  // namespace adapterd
