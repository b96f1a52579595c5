// What to make of several adapters.
#ifndef ADAPTERD_CORE_COMPOSE_COMPOSE_SPEC_H_
#define ADAPTERD_CORE_COMPOSE_COMPOSE_SPEC_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "core/adapter/adapter.h"

namespace adapterd {

// Names and mathematics of PEFT's add_weighted_adapter: docs/compose.md.
enum class ComposeMethod {
  kLinear,
  kCat,
  kSvd,
  kTies,
  kTiesSvd,
  kDareLinear,
  kDareTies,
  kDareLinearSvd,
  kDareTiesSvd,
  kMagnitudePrune,
  kMagnitudePruneSvd,
};

enum class Pruning { kNone, kMagnitude, kRandom };
// How TIES finds the sign that an element's sum is of; kNone: all signs are summed.
enum class SignElection { kNone, kTotal, kFrequency };

// What a method does: prune each adapter, elect signs, sum up; on what, and then what.
struct MethodTraits {
  Pruning pruning = Pruning::kNone;
  bool elects = false;  // signs, and averages what agrees
  bool svd = false;     // on deltas, of which an SVD makes factors; otherwise on factors
};
MethodTraits TraitsOf(ComposeMethod method);

struct ComposeSpec {
  ComposeMethod method = ComposeMethod::kLinear;
  double density = 1;  // part that pruning keeps, in (0, 1]
  int64_t rank = 0;    // of an SVD's result; 0: the largest of the inputs
  std::optional<double> svd_clamp = std::nullopt;  // quantile in (0, 1]
  SignElection majority_sign = SignElection::kTotal;
  uint64_t seed = 0;  // of random pruning
};

// The stored factors of one module.
struct StoredPair {
  Tensor lora_a;  // [rank, columns]
  Tensor lora_b;  // [out_features, rank]
};

struct ComposeInput {
  std::string name;  // what errors call it
  std::shared_ptr<const AdapterManifest> manifest;
  std::function<StoredPair(size_t module)> pair;  // a copy; called from several threads at once
  double weight = 1;                              // finite
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPOSE_COMPOSE_SPEC_H_
