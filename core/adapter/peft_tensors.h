// The tensors of a PEFT weights file, sorted by the module that they belong to.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_TENSORS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_TENSORS_H_

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/adapter/peft_config.h"
#include "core/adapter/problems.h"
#include "core/adapter/tensor_role.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// By role; null: the file has none.
using TensorsByRole = std::array<const SafetensorsEntry*, kTensorRoles>;

// A pair and what goes with it.
struct PeftPair {
  TensorsByRole tensors{};
  bool is_embedding = false;

  const SafetensorsEntry* Get(TensorRole role) const { return tensors[static_cast<size_t>(role)]; }
  // Some tensor, to name the pair by.
  const SafetensorsEntry* Any() const;
};

// Tensors that replace those of the base model.
struct PeftReplacement {
  const SafetensorsEntry* weight = nullptr;
  const SafetensorsEntry* bias = nullptr;
  const SafetensorsEntry* token_rows = nullptr;
};

struct PeftTensors {
  // By module path and the number of wrappers between the module and the pair.
  std::map<std::pair<std::string, int>, PeftPair> pairs;
  std::map<std::string, PeftReplacement> replacements;
  const SafetensorsEntry* vera_a = nullptr;  // VeRA's projections, shared by all modules
  const SafetensorsEntry* vera_b = nullptr;
};

// One problem about a file, one of its tensors or a module. Empty or null: not about one.
struct TensorProblem {
  Reason reason = Reason::kInvalidAdapter;
  const SafetensorsEntry* tensor = nullptr;
  std::string_view module = {};
  std::string what = {};  // goes on from "tensor X in FILE"
  std::string expected = {};
  std::string actual = {};
};
void Report(std::string_view file, TensorProblem problem, ProblemList& problems);

// What makes the name of a tensor unfit in any format; empty: nothing.
std::string_view NameFault(std::string_view name);

// Every tensor finds its place or is a problem: INVALID_ADAPTER when no rule explains it or two
// claim one place, UNSUPPORTED_ADAPTER for kinds that cannot be applied. Points into `header`.
PeftTensors SortPeftTensors(const PeftConfig& config, const SafetensorsHeader& header,
                            std::string_view file, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_TENSORS_H_
