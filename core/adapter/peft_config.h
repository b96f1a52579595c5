// adapter_config.json of PEFT: what it says about the arithmetic.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_CONFIG_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_CONFIG_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/adapter/config_json.h"
#include "core/adapter/peft_methods.h"
#include "core/adapter/peft_traits.h"
#include "core/adapter/problems.h"

namespace adapterd {
// Each is a regular expression that every module is matched with; real configs have one.
inline constexpr size_t kMaxLayersPatterns = 100;
// Above this a rank is no rank: matrices of transformers have at most some 10^5 rows.
inline constexpr int64_t kMaxRank = 1'000'000;

// A factor of 10^12 is no adapter: real alphas are below some thousands. The arithmetic is in F32,
// whose numbers end at 3 * 10^38, and products have to stay below that.
inline constexpr double kMaxAlpha = 1e12;
// Vocabularies have some 10^5 entries; ids of more than 32 bits are none.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 31) - 1;
inline constexpr size_t kMaxTrainedTokens = 500'000;  // of all layers together
// The deepest models have some hundred layers.
inline constexpr int64_t kMaxReplicatedLayers = 100'000;

// target_modules and exclude_modules: one regular expression, or names that are whole paths or
// whole components at the end of one. Empty: no module.
struct ModuleNames {
  bool is_pattern = false;
  std::string pattern;
  std::vector<std::string> names;
  bool any = false;  // every module that the file has tensors of

  bool empty() const { return is_pattern ? pattern.empty() : names.empty(); }
};

// A number a pattern, in the order of the file: the first that matches wins.
template <typename Number>
using ModulePatterns = std::vector<std::pair<std::string, Number>>;

// use_bdlora: one factor of a pair is block-diagonal, in modules whose name holds one of the texts.
struct BlockDiagonals {
  std::vector<std::string> of_a;
  std::vector<std::string> of_b;
  int64_t blocks = 1;
  bool match_strict = true;  // every module is one of them
};

// Values that are absent or were refused hold PEFT's defaults, but for the optional ones: those say
// that what depends on them cannot be checked.
struct PeftConfig : PeftTraits {
  std::string file;  // what problems call it
  PeftMethod method = PeftMethod::kLora;
  std::string base_model;
  std::string peft_version;
  std::optional<int64_t> r = 8;  // AdaLoRA: init_r, the divisor of its scale
  // AdaLoRA: the factor on B (E A) / init_r, above 0. VeRA has none: its factor is 1.
  std::optional<double> lora_alpha = 8;
  double lora_dropout = 0;
  std::optional<ModuleNames> target_modules;
  ModuleNames exclude_modules;
  std::optional<std::vector<int64_t>> layers_to_transform;  // empty: every layer
  std::vector<std::string> layers_pattern;
  std::optional<ModulePatterns<int64_t>> rank_pattern{std::in_place};  // LoRA
  std::optional<ModulePatterns<double>> alpha_pattern{std::in_place};  // LoRA
  // AdaLoRA: whole path -> rank in the file, 0 to init_r. Modules that are not named have init_r.
  std::optional<ModulePatterns<int64_t>> kept_ranks{std::in_place};

  bool use_dora = false;
  bool lora_bias = false;
  std::vector<std::string> target_parameters;  // ends of paths of parameters
  std::optional<BlockDiagonals> block_diagonals;

  // Keys that were refused as not supported: they explain the tensors that come with them.
  std::set<std::string, std::less<>> unsupported_keys;
};

// Adds what is wrong to `problems`: MALFORMED_CONFIG for JSON, types and values,
// UNSUPPORTED_ADAPTER for methods and switches that change the arithmetic and are not implemented.
// nullopt when the tensors of the weights file cannot be judged by it at all (no JSON, or a
// peft_type that is not read).
std::optional<PeftConfig> ReadPeftConfig(const absl::StatusOr<ConfigJson>& json, std::string file,
                                         ProblemList& problems);

// The same, of text.
std::optional<PeftConfig> ParsePeftConfig(std::string_view text, std::string file,
                                          ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_CONFIG_H_
