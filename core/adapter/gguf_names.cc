#include "core/adapter/gguf_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

namespace adapterd {
namespace {

// What follows "blk.N." in GGUF, and "model.layers.N." in the base model.
struct Name {
  std::string_view gguf;
  std::string_view path;
};

constexpr Name kAttention[] = {{"attn_q", "self_attn.q_proj"},
                               {"attn_k", "self_attn.k_proj"},
                               {"attn_v", "self_attn.v_proj"},
                               {"attn_output", "self_attn.o_proj"}};
constexpr Name kGatedMlp[] = {
    {"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"}, {"ffn_down", "mlp.down_proj"}};
constexpr Name kMixtral[] = {{"ffn_gate_inp", "block_sparse_moe.gate"},
                             {"ffn_gate_exps", "block_sparse_moe.experts.w1"},
                             {"ffn_down_exps", "block_sparse_moe.experts.w2"},
                             {"ffn_up_exps", "block_sparse_moe.experts.w3"}};
constexpr Name kQwenMoe[] = {{"ffn_gate_inp", "mlp.gate"},
                             {"ffn_gate_exps", "mlp.experts.gate_proj"},
                             {"ffn_up_exps", "mlp.experts.up_proj"},
                             {"ffn_down_exps", "mlp.experts.down_proj"}};
constexpr Name kSharedExpert[] = {{"ffn_gate_inp_shexp", "mlp.shared_expert_gate"},
                                  {"ffn_gate_shexp", "mlp.shared_expert.gate_proj"},
                                  {"ffn_up_shexp", "mlp.shared_expert.up_proj"},
                                  {"ffn_down_shexp", "mlp.shared_expert.down_proj"}};
constexpr Name kPhi2[] = {{"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"},
                          {"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.dense"},
                          {"ffn_up", "mlp.fc1"},          {"ffn_down", "mlp.fc2"}};
constexpr Name kPhi3[] = {{"attn_qkv", "self_attn.qkv_proj"},
                          {"attn_output", "self_attn.o_proj"},
                          {"ffn_up", "mlp.gate_up_proj"},
                          {"ffn_down", "mlp.down_proj"}};

// The same in all families, outside of the layers.
constexpr Name kTop[] = {{"token_embd", "model.embed_tokens"}, {"output", "lm_head"}};

// At most three groups of names make up an architecture.
struct Entry {
  GgufArchitecture architecture;
  std::span<const Name> groups[3];
};

// The rows of q and k are reordered where the converter's class is LlamaModel or derived from it
// and leaves undo_permute set: the Llama and Mistral families.
constexpr Entry kArchitectures[] = {
    {{"llama", true}, {kAttention, kGatedMlp, kMixtral}},
    {{"mistral3", true}, {kAttention, kGatedMlp, kMixtral}},
    {{"qwen2", false}, {kAttention, kGatedMlp}},
    {{"qwen2moe", false}, {kAttention, kQwenMoe, kSharedExpert}},
    {{"qwen3", false}, {kAttention, kGatedMlp}},
    {{"qwen3moe", false}, {kAttention, kGatedMlp, kQwenMoe}},
    {{"gemma", false}, {kAttention, kGatedMlp}},
    {{"gemma2", false}, {kAttention, kGatedMlp}},
    {{"gemma3", false}, {kAttention, kGatedMlp}},
    {{"phi2", false}, {kPhi2}},
    {{"phi3", false}, {kPhi3}},
    {{"phimoe", false}, {kAttention, kMixtral}},
};

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kGgufLayers = "blk.";
constexpr std::string_view kLayers = "model.layers.";

const Entry& EntryOf(const GgufArchitecture& architecture) {
  return *std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                       [&](const Entry& e) { return e.architecture.name == architecture.name; });
}

// The layer's number, without sign or leading zeros, and what follows its dot.
std::optional<std::pair<std::string_view, std::string_view>> SplitLayer(std::string_view text) {
  const size_t dot = text.find('.');
  if (dot == std::string_view::npos || dot == 0 || dot > 9) return std::nullopt;
  const std::string_view number = text.substr(0, dot);
  if (number.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  if (number.size() > 1 && number[0] == '0') return std::nullopt;
  return std::pair(number, text.substr(dot + 1));
}

// The name whose member `from` is `text`; nullptr: none.
const Name* FindIn(std::span<const Name> names, std::string_view Name::*from,
                   std::string_view text) {
  const auto found = std::find_if(names.begin(), names.end(),
                                  [&](const Name& name) { return name.*from == text; });
  return found == names.end() ? nullptr : &*found;
}

const Name* FindInLayer(const GgufArchitecture& architecture, std::string_view Name::*from,
                        std::string_view text) {
  for (const std::span<const Name> group : EntryOf(architecture).groups) {
    if (const Name* name = FindIn(group, from, text)) return name;
  }
  return nullptr;
}

RopeHeads RopeOf(const GgufArchitecture& architecture, std::string_view gguf) {
  if (!architecture.reorders_rope) return RopeHeads::kNone;
  if (gguf == "attn_q") return RopeHeads::kQuery;
  return gguf == "attn_k" ? RopeHeads::kKeyValue : RopeHeads::kNone;
}

}  // namespace

const GgufArchitecture* FindGgufArchitecture(std::string_view name) {
  for (const Entry& entry : kArchitectures) {
    if (entry.architecture.name == name) return &entry.architecture;
  }
  return nullptr;
}

std::string KnownGgufArchitectures() {
  std::string names;
  for (const Entry& entry : kArchitectures) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", entry.architecture.name);
  }
  return names;
}

std::optional<GgufModule> ModuleOfGgufTensor(const GgufArchitecture& architecture,
                                             std::string_view tensor) {
  if (!tensor.ends_with(kWeight)) return std::nullopt;
  tensor.remove_suffix(kWeight.size());
  GgufModule module;
  if (!tensor.starts_with(kGgufLayers)) {
    const Name* name = FindIn(kTop, &Name::gguf, tensor);
    if (name == nullptr) return std::nullopt;
    module.path = name->path;
    module.is_embedding = name->gguf == "token_embd";
    return module;
  }
  const auto layer = SplitLayer(tensor.substr(kGgufLayers.size()));
  if (!layer) return std::nullopt;
  const Name* name = FindInLayer(architecture, &Name::gguf, layer->second);
  if (name == nullptr) return std::nullopt;
  module.path = fmt::format("{}{}.{}", kLayers, layer->first, name->path);
  module.rope = RopeOf(architecture, name->gguf);
  module.is_experts = name->gguf.ends_with("_exps");
  return module;
}

std::optional<std::string> GgufTensorOf(const GgufArchitecture& architecture,
                                        std::string_view path) {
  constexpr std::string_view kNested = "model.language_model.";
  constexpr std::string_view kOuter = "language_model.";
  std::string plain(path);
  if (path.starts_with(kNested)) {
    plain = fmt::format("model.{}", path.substr(kNested.size()));
  } else if (path.starts_with(kOuter)) {
    plain = path.substr(kOuter.size());
  }
  if (const Name* name = FindIn(kTop, &Name::path, plain)) {
    return fmt::format("{}{}", name->gguf, kWeight);
  }
  if (!plain.starts_with(kLayers)) return std::nullopt;
  const auto layer = SplitLayer(std::string_view(plain).substr(kLayers.size()));
  if (!layer) return std::nullopt;
  const Name* name = FindInLayer(architecture, &Name::path, layer->second);
  if (name == nullptr) return std::nullopt;
  return fmt::format("{}{}.{}{}", kGgufLayers, layer->first, name->gguf, kWeight);
}

}  // namespace adapterd
