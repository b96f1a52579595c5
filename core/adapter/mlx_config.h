// adapter_config.json of mlx-lm: all arguments of a training run, of which few matter here.
#ifndef ADAPTERD_CORE_ADAPTER_MLX_CONFIG_H_
#define ADAPTERD_CORE_ADAPTER_MLX_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/config_json.h"
#include "core/adapter/problems.h"

namespace adapterd {

enum class MlxTuning { kLora, kDora, kFull };

// "lora", "dora", "full": as fine_tune_type spells them.
std::string_view MlxTuningName(MlxTuning tuning);

// Optional values are missing when they were refused, or when the tuning has none.
struct MlxConfig {
  std::string file;  // what problems call it
  MlxTuning tuning = MlxTuning::kLora;
  std::string base_model;
  std::optional<int64_t> rank;
  std::optional<double> scale;  // the factor on B A: nothing is divided by the rank
  double dropout = 0;
  int64_t num_layers = 0;         // the last blocks that were tuned; 0: all
  std::vector<std::string> keys;  // whole paths, or paths within a block; empty: every module
};

// Adds what is wrong to `problems`: MALFORMED_CONFIG for JSON, types and values,
// UNSUPPORTED_ADAPTER for another fine_tune_type and for parameters that may change the arithmetic.
// nullopt when no tensor can be judged by it.
//
// "alpha" among the lora_parameters was a factor until June 2024 and is ignored since: which of the
// two a file means follows from the keys that came later (fine_tune_type, num_layers, use_dora). A
// warning says what was done.
std::optional<MlxConfig> ReadMlxConfig(const absl::StatusOr<ConfigJson>& json, std::string file,
                                       ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_MLX_CONFIG_H_
