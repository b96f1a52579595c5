#include "core/adapter/kohya_keys.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/adapter/diffusers_keys.h"

namespace adapterd {
namespace {

using Part = DiffusionPart;

struct Case {
  std::string name;
  Part part;
  std::string module = "";
  std::string component = "";
};

TEST(KohyaKeysTest, NamesAreTakenApart) {
  const std::vector<Case> cases = {
      {"lora_unet_down_blocks_0_conv.lora_down.weight", Part::kDown,
       "lora_unet_down_blocks_0_conv"},
      {"lora_unet_mid.lora_up.weight", Part::kUp, "lora_unet_mid"},
      {"lora_te1_text_model_fc1.alpha", Part::kAlpha, "lora_te1_text_model_fc1"},
      {"lora_unet_mid.dora_scale", Part::kMagnitude, "lora_unet_mid"},
      {"double_blocks.0.img_attn.qkv.lora_down.weight", Part::kDown,
       "double_blocks.0.img_attn.qkv"},
      {"lora_unet_mid.hada_w1_a", Part::kRefused, "lora_unet_mid"},
      {"lora_unet_mid.lokr_w2", Part::kRefused, "lora_unet_mid"},
      {"lora_unet_mid.lora_mid.weight", Part::kRefused, "lora_unet_mid"},
      {"lora_unet_mid.diff", Part::kRefused, "lora_unet_mid"},
      {"lora_unet_mid.diff_b", Part::kRefused, "lora_unet_mid"},
      {"lora_unet_mid.bias_values", Part::kRefused, "lora_unet_mid"},
      {".lora_down.weight", Part::kUnknown},
      {".alpha", Part::kUnknown},
      {"alpha", Part::kUnknown},
      {"lora_unet_mid.lora_down", Part::kUnknown},
      {"lora_unet_mid.lora_down.0.weight", Part::kUnknown},
      {"lora_unet_mid.lora_A.weight", Part::kUnknown},
      {"", Part::kUnknown},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const DiffusionKey key = ParseKohyaKey(c.name);
    EXPECT_EQ(key.part, c.part);
    EXPECT_EQ(key.module, c.module);
    EXPECT_EQ(key.component, "");
    EXPECT_EQ(key.why.empty(), c.part != Part::kRefused);
  }
}

TEST(KohyaKeysTest, ThePrefixOfAComponentEndsAtTheSecondUnderscore) {
  EXPECT_EQ(WithoutComponent("lora_unet_down_blocks_0"), "down_blocks_0");
  EXPECT_EQ(WithoutComponent("lora_te2_text_model"), "text_model");
  EXPECT_EQ(WithoutComponent("lycoris_transformer_blocks_0"), "blocks_0");
  EXPECT_EQ(WithoutComponent("lora_unet"), "");
  EXPECT_EQ(WithoutComponent("lora_"), "");
  EXPECT_EQ(WithoutComponent("double_blocks.0"), "");
}

TEST(DiffusersKeysTest, NamesAreTakenApart) {
  const std::vector<Case> cases = {
      {"unet.down.0.to_q.lora.down.weight", Part::kDown, "down.0.to_q", "unet"},
      {"unet.down.0.to_q.lora.up.weight", Part::kUp, "down.0.to_q", "unet"},
      {"text_encoder_2.fc1.lora_linear_layer.up.weight", Part::kUp, "fc1", "text_encoder_2"},
      {"transformer.blocks.0.to_q.lora_A.weight", Part::kDown, "blocks.0.to_q", "transformer"},
      {"transformer.blocks.0.to_q.lora_B.bias", Part::kUpBias, "blocks.0.to_q", "transformer"},
      {"transformer.to_q.lora_magnitude_vector", Part::kMagnitude, "to_q", "transformer"},
      {"transformer.to_q.lora_magnitude_vector.weight", Part::kMagnitude, "to_q", "transformer"},
      {"transformer.to_q.alpha", Part::kAlpha, "to_q", "transformer"},
      {"down.0.to_q.lora_A.weight", Part::kDown, "down.0.to_q"},
      {"unet.mid.attn1.processor.to_q_lora.down.weight", Part::kDown, "mid.attn1.to_q", "unet"},
      {"unet.mid.attn1.processor.to_out_lora.up.weight", Part::kUp, "mid.attn1.to_out.0", "unet"},
      {"text_encoder.l.0.self_attn.to_out_lora.up.weight", Part::kUp, "l.0.self_attn.out_proj",
       "text_encoder"},
      {"text_encoder.l.0.self_attn.to_q_lora.down.weight", Part::kDown, "l.0.self_attn.q_proj",
       "text_encoder"},
      {"unet.to_q_lora.down.weight", Part::kUnknown, "", "unet"},
      {"unet.lora.down.weight", Part::kUnknown, "", "unet"},
      {"unet.weight", Part::kUnknown, "", "unet"},
      {"unet", Part::kUnknown},
      {"", Part::kUnknown},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const DiffusionKey key = ParseDiffusersKey(c.name);
    EXPECT_EQ(key.part, c.part);
    EXPECT_EQ(key.module, c.module);
    EXPECT_EQ(key.component, c.component);
  }
}

TEST(DiffusersKeysTest, OnlyTheirOwnSpellingOrComponentTellsThem) {
  EXPECT_TRUE(IsDiffusersName("unet.mid.to_q.lora.down.weight"));
  EXPECT_TRUE(IsDiffusersName("mid.to_q.lora.down.weight"));
  EXPECT_TRUE(IsDiffusersName("unet.mid.to_q.lora_A.weight"));
  EXPECT_TRUE(IsDiffusersName("transformer.transformer_blocks.0.to_q.lora_A.weight"));
  EXPECT_FALSE(IsDiffusersName("mid.to_q.lora_A.weight"));
  EXPECT_FALSE(IsDiffusersName("base_model.model.mid.to_q.lora_A.weight"));
  EXPECT_FALSE(IsDiffusersName("transformer.h.0.attn.c_attn.lora_A.weight"));
  EXPECT_FALSE(IsDiffusersName("unet.mid.to_q.weight"));
  EXPECT_FALSE(IsDiffusersName("w_a_000"));
}

}  // namespace
}  // namespace adapterd
