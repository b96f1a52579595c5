// What an adapter is, independent of the format that it came in.
#ifndef ADAPTERD_CORE_ADAPTER_ADAPTER_H_
#define ADAPTERD_CORE_ADAPTER_ADAPTER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/adapter/module_index.h"
#include "core/adapter/peft_traits.h"
#include "core/tensor/tensor.h"

namespace adapterd {

enum class AdapterFormat {
  kPeft,
  kGguf,
  kMlx,
  kKohya,
  kDiffusers,
  kCreated,  // made in a server: stored as PEFT, marked so (peft_export.h)
};

enum class ModuleKind {
  kLinear,       // W [out_features, in_features]
  kEmbedding,    // W [in_features, out_features]: one row a token id; A's columns are ids
  kConv,         // W [out_features, in_features, kernel...]; A's columns are in_features x kernel
  kExperts,      // one W an expert; the path names a parameter of the module that holds them
  kReplacement,  // no pair: tensors that take the place of the base model's
};

// One adapted weight matrix W: delta W = scale * B A.
struct ModuleInfo {
  std::string path;  // in the base model, "model.layers.0.self_attn.q_proj"
  ModuleKind kind = ModuleKind::kLinear;
  int64_t in_features = 0;  // of an embedding: token ids
  int64_t out_features = 0;
  int64_t rank = 0;             // of one pair
  int64_t experts = 0;          // kExperts: how many pairs there are
  Shape kernel;                 // kConv: [3, 3]
  int64_t kernel_elements = 1;  // kConv: places of one kernel (3x3: 9)
  double alpha = 0;
  double scale = 0;  // the factor on B A
  DType lora_a_dtype = DType::kF32;
  DType lora_b_dtype = DType::kF32;
  std::string lora_a_tensor;  // names in the file
  std::string lora_b_tensor;
  bool has_lora_bias = false;  // B's own bias [out_features]: delta y = scale * (B A x + bias)
  bool has_magnitude = false;  // DoRA [out_features]
  bool replaces_bias = false;  // the file holds the layer's bias [out_features]
  DType lora_bias_dtype = DType::kF32;
  DType magnitude_dtype = DType::kF32;
  DType bias_dtype = DType::kF32;
  Shape magnitude_shape;  // as PEFT has it: of a convolution [1, out_features, 1, 1]
  // kReplacement: the weight that takes the base's place. Empty shape: only the bias is replaced.
  DType weight_dtype = DType::kF32;
  Shape weight_shape;
  std::vector<int64_t> token_ids;  // not empty: weight holds these rows alone, [ids, out_features]
  // The base model's tensor is not <path>.weight but a parameter: of the module that the path names
  // up to its last component, or of the module itself when it is called "weight".
  std::string parameter;
  // Not 0: the file has B's rows in the order of ggml's RoPE, and they were put back for so many
  // heads.
  int64_t rope_heads = 0;

  int64_t columns() const { return in_features * kernel_elements; }  // of A
  // How many pairs there are. None also of a pair that pruning left without rank: its delta is
  // zero.
  int64_t pairs() const {
    if (kind == ModuleKind::kReplacement || rank == 0) return 0;
    return kind == ModuleKind::kExperts ? experts : 1;
  }
  // All numbers that the file holds for it.
  int64_t parameter_count() const;
};

// Attention heads of a base model. REQUIRES, where there are any: both above 0.
struct HeadCounts {
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;

  bool operator==(const HeadCounts&) const = default;
};

// All that is known of an adapter without holding its weights.
struct AdapterManifest {
  AdapterFormat format = AdapterFormat::kPeft;
  std::string method;      // "lora", "rslora", "dora", "adalora", "vera", ...
  std::string base_model;  // as the config or the caller names it; may be empty
  double lora_dropout = 0;
  int64_t file_bytes = 0;  // size of the weights file
  // By path, bytewise. Two may share a path: a pair, and behind it the weight that it is added to.
  std::vector<ModuleInfo> modules;
  ModuleIndex index;  // over modules; of one path's two, the pair
  PeftTraits peft;
  std::optional<HeadCounts> head_counts;  // of the base model, when the request or the base says

  int64_t parameter_count() const;
  int64_t original_parameter_count() const;         // sum of in x out
  std::vector<int32_t> ranks() const;               // distinct, ascending
  std::vector<std::string> target_modules() const;  // distinct last components, sorted
  int32_t layer_count() const;                      // distinct layers
};

// The tensors of one module in their final form: what folds into the factors is folded. Empty where
// the module has none.
struct ModuleTensors {
  // [rank, columns]; kExperts: [experts x rank, columns], one expert after the other.
  Tensor lora_a;
  // [out_features, rank]; kExperts: [experts x out_features, rank], one expert after the other.
  Tensor lora_b;
  Tensor lora_bias;  // [out_features]
  Tensor magnitude;  // [out_features]
  Tensor weight;     // weight_shape
  Tensor bias;       // [out_features]
};

// What identifies content: see revision.h. Empty: not known yet.
struct ContentDigest {
  std::string revision;        // 64 hex digits
  std::string weights_sha256;  // of the weights file, 64 hex digits

  bool operator==(const ContentDigest&) const = default;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_ADAPTER_H_
