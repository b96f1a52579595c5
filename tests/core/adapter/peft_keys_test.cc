#include "core/adapter/peft_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace adapterd {
namespace {

using Kind = PeftTensorKind;

struct Case {
  std::string name;
  Kind kind;
  std::string module;
  std::string adapter_name = "";
  int base_layers = 0;
  bool is_copy = false;
};

TEST(PeftKeysTest, NamesAreTakenApart) {
  const std::vector<Case> cases = {
      {"base_model.model.model.layers.0.q_proj.lora_A.weight", Kind::kLoraA,
       "model.layers.0.q_proj"},
      {"base_model.model.model.layers.0.q_proj.lora_B.weight", Kind::kLoraB,
       "model.layers.0.q_proj"},
      {"model.layers.0.q_proj.lora_A.weight", Kind::kLoraA, "model.layers.0.q_proj"},
      {"lin0.lora_A.weight", Kind::kLoraA, "lin0"},
      {"_orig_mod.base_model.model.m.q.lora_B.weight", Kind::kLoraB, "m.q"},
      {"base_model.model._orig_mod.m.q.lora_B.weight", Kind::kLoraB, "m.q"},
      {"base_model.model.m._fsdp_wrapped_module.q.lora_A.weight", Kind::kLoraA, "m.q"},
      {"_fsdp_wrapped_module.base_model._fsdp_wrapped_module.model.m.0._checkpoint_wrapped_module."
       "q."
       "lora_A.weight",
       Kind::kLoraA, "m.0.q"},
      {"base_model.model.m.q.lora_A.default.weight", Kind::kLoraA, "m.q", "default"},
      {"m.q.lora_B.my_adapter.weight", Kind::kLoraB, "m.q", "my_adapter"},
      // Only the first prefix goes: a model wrapped twice has modules below "base_model.model".
      {"base_model.model.base_model.model.q.lora_A.weight", Kind::kLoraA, "base_model.model.q"},
      {"base_model.model.lora_A.weight", Kind::kWeight, "lora_A"},
      {"base_model.q.lora_A.weight", Kind::kLoraA, "base_model.q"},
      {"my_orig_mod.q.lora_A.weight", Kind::kLoraA, "my_orig_mod.q"},

      {"base_model.model.m.q.lora_B.bias", Kind::kLoraBias, "m.q"},
      {"base_model.model.m.q.lora_B.default.bias", Kind::kLoraBias, "m.q", "default"},
      {"base_model.model.m.q.lora_A.bias", Kind::kBareLoraA, "m.q", "bias"},  // A never has one
      {"base_model.model.m.e.lora_embedding_A", Kind::kEmbeddingA, "m.e"},
      {"base_model.model.m.e.lora_embedding_B", Kind::kEmbeddingB, "m.e"},
      {"m.e.lora_embedding_A.default", Kind::kEmbeddingA, "m.e", "default"},
      {"base_model.model.m.q.lora_magnitude_vector", Kind::kMagnitude, "m.q"},
      {"base_model.model.m.q.lora_magnitude_vector.weight", Kind::kMagnitude, "m.q"},
      {"m.q.lora_magnitude_vector.default.weight", Kind::kMagnitude, "m.q", "default"},
      {"base_model.model.m.q.lora_A", Kind::kBareLoraA, "m.q"},
      {"base_model.model.m.q.lora_B", Kind::kBareLoraB, "m.q"},
      {"base_model.model.m.q.lora_E", Kind::kLoraE, "m.q"},
      {"m.q.lora_E.default", Kind::kLoraE, "m.q", "default"},
      {"base_model.model.m.q.vera_lambda_b", Kind::kVeraLambdaB, "m.q"},
      {"base_model.model.m.q.vera_lambda_d", Kind::kVeraLambdaD, "m.q"},
      {"base_model.vera_A", Kind::kVeraA, "base_model.vera_A"},
      {"base_model.vera_B", Kind::kVeraB, "base_model.vera_B"},

      {"m.experts.base_layer.lora_A.weight", Kind::kLoraA, "m.experts", "", 1},
      {"m.experts.base_layer.base_layer.lora_B.weight", Kind::kLoraB, "m.experts", "", 2},
      {"base_layer.lora_A.weight", Kind::kAttention, "base_layer"},
      {"base_model.model.a.base_layer.out_proj.lora_B.weight", Kind::kAttention,
       "a.base_layer.out_proj"},
      {"base_model.model.m.q.lora_diag", Kind::kKasa, "m.q.lora_diag"},
      {"base_model.model.m.q.lora_velora_embed", Kind::kIgnored, "m.q.lora_velora_embed"},
      {"m.q.lora_monteclora_sampler.x", Kind::kIgnored, "m.q.lora_monteclora_sampler.x"},
      {"base_model.model.s.original_module.weight", Kind::kIgnored, "s.original_module.weight"},

      {"base_model.model.m.e.token_adapter.trainable_tokens_delta", Kind::kTokenRows, "m.e"},
      {"base_model.model.m.q.base_layer.bias", Kind::kBias, "m.q", "", 1},
      {"base_model.model.m.q.bias", Kind::kBias, "m.q"},
      {"base_model.model.m.e.base_layer.weight", Kind::kWeight, "m.e", "", 1},
      {"base_model.model.m.embed_tokens.weight", Kind::kWeight, "m.embed_tokens"},
      {"base_model.model.lm_head.weight", Kind::kWeight, "lm_head"},
      {"base_model.model.score.weight", Kind::kWeight, "score"},
      {"s.modules_to_save.default.weight", Kind::kWeight, "s", "", 0, true},
      {"s.modules_to_save.weight", Kind::kWeight, "s", "", 0, true},
      {"s.modules_to_save.default.bias", Kind::kBias, "s", "", 0, true},
      {"s.modules_to_save.x", Kind::kUnknown, "s.x", "", 0, true},

      {"base_model.model.m.q.mystery", Kind::kUnknown, "m.q.mystery"},
      {"m.q.lora_a", Kind::kUnknown, "m.q.lora_a"},
      {"m.q.lora_A.x.y.weight", Kind::kWeight, "m.q.lora_A.x.y"},  // of no module's that is saved
      {"m.q.lora_C.weight", Kind::kWeight, "m.q.lora_C"},
      {"m.q.lora_A.weights", Kind::kBareLoraA, "m.q", "weights"},
      {"lora_A.weight", Kind::kWeight, "lora_A"},
      {"lora_embedding_A", Kind::kUnknown, "lora_embedding_A"},
      {"m.q.lora.down.weight", Kind::kWeight, "m.q.lora.down"},
      {"w_a_000", Kind::kUnknown, "w_a_000"},
      {"", Kind::kUnknown, ""},
      {".", Kind::kUnknown, "."},
      {"_orig_mod", Kind::kUnknown, ""},
      {"base_model.model.", Kind::kUnknown, ""},
  };
  for (const Case& expected : cases) {
    const PeftKey key = ParsePeftKey(expected.name);
    EXPECT_EQ(key.kind, expected.kind) << expected.name;
    EXPECT_EQ(key.module, expected.module) << expected.name;
    EXPECT_EQ(key.adapter_name, expected.adapter_name) << expected.name;
    EXPECT_EQ(key.base_layers, expected.base_layers) << expected.name;
    EXPECT_EQ(key.is_copy, expected.is_copy) << expected.name;
  }
}

}  // namespace
}  // namespace adapterd
