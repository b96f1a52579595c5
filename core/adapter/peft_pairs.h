// The pairs of a PEFT adapter: which module each belongs to, its kind, sizes and scale.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_PAIRS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_PAIRS_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "core/adapter/peft_block_diagonal.h"
#include "core/adapter/peft_checks.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_experts.h"
#include "core/adapter/peft_patterns.h"
#include "core/adapter/peft_tensors.h"

namespace adapterd {

// Plans one pair after the other. Not thread-safe; keeps references.
class PairPlanner {
 public:
  // `base` may be null.
  PairPlanner(const PeftConfig& config, const PeftTensors& tensors, const BaseFacts* base,
              TensorChecks& checks, ProblemList& problems);

  // nullopt: refused, the problem is reported. `base_layers` as in PeftKey.
  std::optional<PlannedPart> Plan(const std::string& path, int base_layers, const PeftPair& pair);

  // After the last pair: what only all of them together show.
  void Finish();

 private:
  std::optional<PlannedPart> PlanLora(const std::string& path, const PeftPair& pair);
  std::optional<PlannedPart> PlanAdaLora(const std::string& path, const PeftPair& pair);
  std::optional<PlannedPart> PlanVera(const std::string& path, const PeftPair& pair);
  std::optional<PlannedPart> PlanParameter(const std::string& path, int base_layers,
                                           const PeftPair& pair,
                                           const std::vector<std::string>& parameters);
  std::optional<BlockFactor> FindBlocks(const std::string& path, const PeftPair& pair);
  bool CheckFactors(const std::string& path, const PeftPair& pair, bool convolution,
                    int64_t blocks_of_b = 1);
  bool CheckGroups(const std::string& path, const SafetensorsEntry& a, const SafetensorsEntry& b);
  bool MakeExperts(const std::string& key, PlannedPart& part);
  bool ScaleByPatterns(const std::string& key, ModuleInfo& info);
  bool IsPrunedAway(const std::string& path, const PeftPair& pair) const;
  std::optional<PlannedPart> PlanWithoutRank(const std::string& path, const PeftPair& pair);
  void ScaleByInitialRank(ModuleInfo& info) const;
  bool CheckKeptRank(const std::string& path, const ModuleInfo& info);
  void RefuseRank(const std::string& path, const ModuleInfo& info, int64_t expected);
  bool AddVectors(const PeftPair& pair, PlannedPart& part);
  int64_t VeraInputs(const std::string& path);
  bool HasProjections();

  const PeftConfig& config_;
  const PeftTensors& tensors_;
  const BaseFacts* base_;
  TensorChecks& checks_;
  ProblemList& problems_;
  PeftPatterns patterns_;
  absl::flat_hash_map<std::string, int64_t> kept_ranks_;  // AdaLoRA, by path
  std::optional<bool> has_projections_;                   // nullopt: not looked at yet
  bool warned_of_width_ = false;
  std::string order_lost_;       // the first module that shows it; empty: none
  std::string ambiguous_alpha_;  // the same
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_PAIRS_H_
