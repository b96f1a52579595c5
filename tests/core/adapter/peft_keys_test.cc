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
      {"base_model.model.lora_A.weight", Kind::kUnknown, "lora_A.weight"},
      {"base_model.q.lora_A.weight", Kind::kLoraA, "base_model.q"},
      {"my_orig_mod.q.lora_A.weight", Kind::kLoraA, "my_orig_mod.q"},

      {"base_model.model.m.q.lora_B.bias", Kind::kLoraBias, "m.q"},
      {"base_model.model.m.q.lora_A.bias", Kind::kLoraBias, "m.q"},
      {"base_model.model.m.q.lora_B.default.bias", Kind::kLoraBias, "m.q", "default"},
      {"base_model.model.m.e.lora_embedding_A", Kind::kEmbedding, "m.e"},
      {"base_model.model.m.e.lora_embedding_B", Kind::kEmbedding, "m.e"},
      {"m.e.lora_embedding_A.default", Kind::kEmbedding, "m.e", "default"},
      {"base_model.model.m.q.lora_magnitude_vector", Kind::kMagnitude, "m.q"},
      {"base_model.model.m.q.lora_magnitude_vector.weight", Kind::kMagnitude, "m.q", "weight"},
      {"m.q.lora_magnitude_vector.default.weight", Kind::kMagnitude, "m.q", "default"},
      {"base_model.model.m.experts.base_layer.lora_A.weight", Kind::kNested,
       "m.experts.base_layer"},
      {"base_model.model.a.base_layer.out_proj.lora_B.weight", Kind::kNested,
       "a.base_layer.out_proj"},
      {"base_model.model.m.q.lora_diag", Kind::kVariant, "m.q.lora_diag"},
      {"base_model.model.m.q.lora_velora_embed", Kind::kVariant, "m.q.lora_velora_embed"},
      {"m.q.lora_monteclora_sampler.x", Kind::kVariant, "m.q.lora_monteclora_sampler.x"},
      {"base_model.model.m.e.token_adapter.trainable_tokens_delta", Kind::kTokenRows,
       "m.e.token_adapter.trainable_tokens_delta"},
      {"base_model.model.m.q.base_layer.bias", Kind::kBias, "m.q.base_layer.bias"},
      {"base_model.model.m.q.bias", Kind::kBias, "m.q.bias"},
      {"base_model.model.m.e.base_layer.weight", Kind::kSavedWeight, "m.e.base_layer.weight"},
      {"base_model.model.m.embed_tokens.weight", Kind::kSavedWeight, "m.embed_tokens.weight"},
      {"base_model.model.lm_head.weight", Kind::kSavedWeight, "lm_head.weight"},
      {"base_model.model.s.original_module.weight", Kind::kSavedWeight, "s.original_module.weight"},
      {"s.modules_to_save.default.weight", Kind::kSavedWeight, "s.modules_to_save.default.weight"},

      {"base_model.model.m.q.mystery", Kind::kUnknown, "m.q.mystery"},
      {"base_model.model.score.weight", Kind::kUnknown, "score.weight"},
      {"m.q.lora_a", Kind::kUnknown, "m.q.lora_a"},
      {"m.q.lora_A", Kind::kUnknown, "m.q.lora_A"},
      {"m.q.lora_A.x.y.weight", Kind::kUnknown, "m.q.lora_A.x.y.weight"},
      {"m.q.lora_C.weight", Kind::kUnknown, "m.q.lora_C.weight"},
      {"m.q.lora_A.weights", Kind::kUnknown, "m.q.lora_A.weights"},
      {"lora_A.weight", Kind::kUnknown, "lora_A.weight"},
      {"lora_embedding_A", Kind::kUnknown, "lora_embedding_A"},
      {"m.q.lora.down.weight", Kind::kUnknown, "m.q.lora.down.weight"},
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
  }
}

}  // namespace
}  // namespace adapterd
