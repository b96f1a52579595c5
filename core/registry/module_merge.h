// What loaded adapters make of one module's weight and bias, in the terms of the arithmetic.
#ifndef ADAPTERD_CORE_REGISTRY_MODULE_MERGE_H_
#define ADAPTERD_CORE_REGISTRY_MODULE_MERGE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/compute/merge.h"
#include "core/registry/adapter_handle.h"

namespace adapterd {

// One adapter's part in the merge of a module. Views name and handle.
struct MergePart {
  std::string_view name;  // the adapter's, for errors
  const AdapterHandle* adapter = nullptr;
  size_t module = 0;
  int64_t pair = 0;  // the expert
  double weight = 1;
  // Of a module that holds several layers' outputs one below the other, the first of those that are
  // meant, and how many; 0: all.
  int64_t first_output = 0;
  int64_t outputs = 0;

  const ModuleInfo& info() const { return adapter->manifest().modules[module]; }
  const ModuleExtras& extras() const { return (*adapter)->extras(module); }
  int64_t out_features() const { return outputs == 0 ? info().out_features : outputs; }

  // The base weight that the adapter brings along: its module is one, or the next is.
  std::optional<size_t> ReplacedIndex() const;
  const ModuleInfo* ReplacedInfo() const {
    return ReplacedIndex() ? &adapter->manifest().modules[*ReplacedIndex()] : nullptr;
  }
  bool ChangesBias() const { return info().replaces_bias || info().has_lora_bias; }
};

// A weight of any number of dimensions as a matrix.
struct WeightMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  WeightLayout layout = WeightLayout::kOutIn;
};

// Everything that a merge reads, alive until it is done.
struct MergeInput {
  std::deque<PairFactors> factors;
  std::vector<MergeTerm> terms;
  MergeOptions options;
};

// INVALID_FIELD: what is no sum of deltas (DoRA, replacements) beside another part, or weighted.
absl::Status CheckAlone(const std::vector<MergePart>& parts);

// A weight of `shape` as the module's matrix, in the base model's own layout: that of embeddings
// and convolutions is fixed, linear layers have `layout`. SHAPE_MISMATCH, about the field `weight`.
absl::StatusOr<WeightMatrix> MatrixOf(const MergePart& part, const Shape& shape,
                                      WeightLayout layout);

// Copies the factors. SHAPE_MISMATCH when a replacement has another shape than the weight.
absl::StatusOr<MergeInput> ReadMergeInput(const std::vector<MergePart>& parts, const Shape& shape,
                                          const WeightMatrix& matrix);

// What the parts make of a bias of `dtype`: summed in F32, rounded once. `stored`, of as many
// elements as `merged`, may be null: the layer has none, which adds like zeros. NON_FINITE_RESULT
// when a finite element becomes infinite or NaN, unless allowed.
absl::Status MergeBias(const std::vector<MergePart>& parts, DType dtype, const std::byte* stored,
                       bool allow_non_finite, std::span<std::byte> merged);

// `field` has another shape than it should.
absl::Status ShapeError(const std::string& field, const std::string& expected, const Shape& actual);

// Tells adapter and module.
absl::Status About(const absl::Status& status, const MergePart& part);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_MODULE_MERGE_H_
