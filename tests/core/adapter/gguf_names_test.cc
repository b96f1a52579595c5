// Names as gguf-py's tensor map gives them (gguf 0.19.0, tensor_mapping.py).
#include "core/adapter/gguf_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace adapterd {
namespace {

struct Pair {
  const char* architecture;
  const char* tensor;
  const char* path;
};

constexpr Pair kPairs[] = {
    {"llama", "token_embd.weight", "model.embed_tokens"},
    {"llama", "output.weight", "lm_head"},
    {"llama", "blk.31.attn_q.weight", "model.layers.31.self_attn.q_proj"},
    {"llama", "blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj"},
    {"llama", "blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj"},
    {"llama", "blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj"},
    {"llama", "blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj"},
    {"llama", "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj"},
    {"llama", "blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj"},
    {"llama", "blk.7.ffn_gate_inp.weight", "model.layers.7.block_sparse_moe.gate"},
    {"llama", "blk.7.ffn_gate_exps.weight", "model.layers.7.block_sparse_moe.experts.w1"},
    {"llama", "blk.7.ffn_down_exps.weight", "model.layers.7.block_sparse_moe.experts.w2"},
    {"llama", "blk.7.ffn_up_exps.weight", "model.layers.7.block_sparse_moe.experts.w3"},
    {"mistral3", "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj"},
    {"qwen2", "blk.10.attn_q.weight", "model.layers.10.self_attn.q_proj"},
    {"qwen3", "blk.10.ffn_down.weight", "model.layers.10.mlp.down_proj"},
    {"qwen2moe", "blk.1.ffn_gate_inp.weight", "model.layers.1.mlp.gate"},
    {"qwen2moe", "blk.1.ffn_gate_inp_shexp.weight", "model.layers.1.mlp.shared_expert_gate"},
    {"qwen2moe", "blk.1.ffn_up_shexp.weight", "model.layers.1.mlp.shared_expert.up_proj"},
    {"qwen3moe", "blk.1.ffn_down_exps.weight", "model.layers.1.mlp.experts.down_proj"},
    {"gemma", "blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj"},
    {"gemma2", "blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj"},
    {"gemma3", "blk.1.attn_output.weight", "model.layers.1.self_attn.o_proj"},
    {"phi2", "blk.1.attn_output.weight", "model.layers.1.self_attn.dense"},
    {"phi2", "blk.1.ffn_up.weight", "model.layers.1.mlp.fc1"},
    {"phi2", "blk.1.ffn_down.weight", "model.layers.1.mlp.fc2"},
    {"phi3", "blk.1.attn_qkv.weight", "model.layers.1.self_attn.qkv_proj"},
    {"phi3", "blk.1.ffn_up.weight", "model.layers.1.mlp.gate_up_proj"},
    {"phimoe", "blk.1.ffn_up_exps.weight", "model.layers.1.block_sparse_moe.experts.w3"},
};

TEST(GgufNamesTest, BothWays) {
  for (const Pair& pair : kPairs) {
    const GgufArchitecture* architecture = FindGgufArchitecture(pair.architecture);
    ASSERT_NE(architecture, nullptr) << pair.architecture;
    const auto module = ModuleOfGgufTensor(*architecture, pair.tensor);
    ASSERT_TRUE(module) << pair.tensor;
    EXPECT_EQ(module->path, pair.path);
    EXPECT_EQ(GgufTensorOf(*architecture, pair.path), pair.tensor);
  }
}

TEST(GgufNamesTest, OnlyLlamasAndMistralsReorderRows) {
  for (const char* name : {"llama", "mistral3", "qwen2", "qwen3moe", "gemma3", "phi2", "phimoe"}) {
    const std::string_view text = name;
    const bool reorders = text == "llama" || text == "mistral3";
    const GgufArchitecture& architecture = *FindGgufArchitecture(name);
    const auto rope = [&](const char* tensor) {
      return ModuleOfGgufTensor(architecture, tensor)->rope;
    };
    EXPECT_EQ(rope("blk.0.attn_q.weight"), reorders ? RopeHeads::kQuery : RopeHeads::kNone);
    EXPECT_EQ(rope("blk.0.attn_k.weight"), reorders ? RopeHeads::kKeyValue : RopeHeads::kNone);
    EXPECT_EQ(rope("blk.0.attn_v.weight"), RopeHeads::kNone);
  }
}

TEST(GgufNamesTest, WhatIsNoModuleHasNoName) {
  EXPECT_EQ(FindGgufArchitecture("mamba"), nullptr);
  EXPECT_EQ(FindGgufArchitecture(""), nullptr);
  const GgufArchitecture& llama = *FindGgufArchitecture("llama");
  for (const char* tensor :
       {"", ".weight", "blk..weight", "blk.0.weight", "blk.x.attn_q.weight", "blk.-1.attn_q.weight",
        "blk.01.attn_q.weight", "blk.0.attn_q", "blk.0.attn_q.bias", "blk.0.attn_qkv.weight",
        "blk.0.ffn_up_shexp.weight", "blk.9999999999.attn_q.weight", "v.blk.0.attn_q.weight",
        "output_norm.weight"}) {
    EXPECT_FALSE(ModuleOfGgufTensor(llama, tensor)) << tensor;
  }
  for (const char* path :
       {"", "model.layers.0", "model.layers.0.mlp.fc1", "layers.0.self_attn.q_proj",
        "model.layers.x.self_attn.q_proj", "model.visual.blocks.0.attn.qkv"}) {
    EXPECT_FALSE(GgufTensorOf(llama, path)) << path;
  }
}

TEST(GgufNamesTest, LanguageModelsOfMultimodalOnesHaveTheirOwnNames) {
  const GgufArchitecture& gemma = *FindGgufArchitecture("gemma3");
  for (const char* prefix : {"model.language_model.", "language_model.model."}) {
    EXPECT_EQ(GgufTensorOf(gemma, std::string(prefix) + "layers.2.self_attn.q_proj"),
              "blk.2.attn_q.weight");
  }
  EXPECT_EQ(GgufTensorOf(gemma, "language_model.lm_head"), "output.weight");
}

}  // namespace
}  // namespace adapterd
