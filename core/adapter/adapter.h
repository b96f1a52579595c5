// What an adapter is, independent of the format that it came in.
#ifndef ADAPTERD_CORE_ADAPTER_ADAPTER_H_
#define ADAPTERD_CORE_ADAPTER_ADAPTER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/module_index.h"
#include "core/tensor/tensor.h"

namespace adapterd {

enum class AdapterFormat { kPeft };

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
  // kReplacement: the weight that takes the base's place. Empty shape: only the bias is replaced.
  DType weight_dtype = DType::kF32;
  Shape weight_shape;
  std::vector<int64_t> token_ids;  // not empty: weight holds these rows alone, [ids, out_features]

  int64_t columns() const { return in_features * kernel_elements; }  // of A
  int64_t pairs() const {
    return kind == ModuleKind::kReplacement ? 0 : kind == ModuleKind::kExperts ? experts : 1;
  }
  int64_t parameter_count() const { return pairs() * rank * (columns() + out_features); }
  int64_t lora_a_bytes() const { return pairs() * rank * columns() * FloatBytes(lora_a_dtype); }
  int64_t lora_b_bytes() const {
    return pairs() * rank * out_features * FloatBytes(lora_b_dtype);
  }
};

// All that is known of an adapter without holding its weights.
struct AdapterManifest {
  AdapterFormat format = AdapterFormat::kPeft;
  std::string method;      // "lora", "rslora"
  std::string base_model;  // as the config or the caller names it; may be empty
  double lora_dropout = 0;
  int64_t file_bytes = 0;           // size of the weights file
  std::vector<ModuleInfo> modules;  // by path, bytewise
  ModuleIndex index;                // over modules
  std::vector<std::string> warnings;

  int64_t parameter_count() const;
  int64_t original_parameter_count() const;         // sum of in x out
  int64_t factor_bytes() const;                     // all factors as stored
  std::vector<int32_t> ranks() const;               // distinct, ascending
  std::vector<std::string> target_modules() const;  // distinct last components, sorted
  int32_t layer_count() const;                      // distinct layers
};

// Both factors of one module, as stored.
struct ModuleFactors {
  Tensor lora_a;  // [rank, in_features]
  Tensor lora_b;  // [out_features, rank]
};

// What identifies content: see revision.h.
struct ContentDigest {
  std::string revision;        // 64 hex digits
  std::string weights_sha256;  // of the weights file, 64 hex digits

  bool operator==(const ContentDigest&) const = default;
};

// A complete adapter: manifest, digest and weights. Immutable; shared by pointer; any thread.
class Adapter {
 public:
  // REQUIRES: one entry in `factors` a module, in the same order.
  Adapter(std::shared_ptr<const AdapterManifest> manifest, ContentDigest digest,
          std::vector<ModuleFactors> factors)
      : manifest_(std::move(manifest)), digest_(std::move(digest)), factors_(std::move(factors)) {}

  const AdapterManifest& manifest() const { return *manifest_; }
  // For listings, which outlive the weights.
  const std::shared_ptr<const AdapterManifest>& shared_manifest() const { return manifest_; }
  const ContentDigest& digest() const { return digest_; }
  const ModuleFactors& factors(size_t module) const { return factors_[module]; }

 private:
  std::shared_ptr<const AdapterManifest> manifest_;
  ContentDigest digest_;
  std::vector<ModuleFactors> factors_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_ADAPTER_H_
