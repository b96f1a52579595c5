// What of a checkpoint's folder goes along with its tensors.
#ifndef ADAPTERD_CORE_MERGE_CARRIED_FILES_H_
#define ADAPTERD_CORE_MERGE_CARRIED_FILES_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/formats/source_roots.h"
#include "core/merge/checkpoint_plan.h"

namespace adapterd {

// More than any checkpoint has beside its weights; each is open until the merge ends.
inline constexpr size_t kMaxCarriedFiles = 1000;

// Names of the files in `folder` that a merged checkpoint keeps: config, tokenizer, generation
// defaults, code, licence, whatever is no weights in any format, no index of them, not hidden and
// not the certificate of an earlier merge. Folders are left behind. INVALID_FIELD, about `source`:
// more than kMaxCarriedFiles.
absl::StatusOr<std::vector<std::string>> CarriedFiles(const SourceFolder& folder);

// UNSUPPORTED_DTYPE when config.json says that the weights are quantised, by the name of the
// method.
absl::Status CheckNotQuantised(std::string_view config);

// config.json for what the merge changed: the size of the vocabulary, a head that is tied no
// longer, the type of the weights. `config` itself when that is nothing. MALFORMED_CONFIG.
absl::StatusOr<std::string> ChangedConfig(const std::string& config, const CheckpointPlan& plan,
                                          std::optional<DType> dtype);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_CARRIED_FILES_H_
