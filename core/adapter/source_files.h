// The files of one source, opened, and the format that their content shows.
#ifndef ADAPTERD_CORE_ADAPTER_SOURCE_FILES_H_
#define ADAPTERD_CORE_ADAPTER_SOURCE_FILES_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/config_json.h"
#include "core/adapter/problems.h"
#include "core/adapter/source_folder.h"
#include "core/formats/gguf.h"
#include "core/formats/input_file.h"
#include "core/formats/safetensors.h"
#include "core/formats/source_roots.h"

namespace adapterd {

struct SourceFiles {
  std::string folder;               // below its root
  std::optional<InputFile> config;  // adapter_config.json; nullopt: none, or reported as unreadable
  bool has_config = false;          // there is one
  std::optional<absl::StatusOr<ConfigJson>> json;  // what it holds; nullopt: it was not read
  std::optional<InputFile> weights;
  bool is_gguf = false;
  std::optional<SafetensorsHeader> header;  // of weights that are not GGUF
};

// Opens those of `chosen` in `folder`, and reads config and header. What is wrong with the weights
// goes to `of_weights`: when there is something, `weights` or `header` may be missing, and the
// config can still be judged. A config beside a GGUF is not opened.
SourceFiles OpenSourceFiles(const SourceFolder& folder, const AdapterFiles& chosen,
                            ProblemList& problems, ProblemList& of_weights);

// By content alone:
//   GGUF       the weights start with its magic
//   PEFT, MLX  keys of the config (peft_type; fine_tune_type, lora_parameters)
//   kohya      tensors X.lora_down.weight, or factors of LyCORIS (IsKohyaName)
//   diffusers  the metadata lora_adapter_metadata; factors below a component of a pipeline, or
//              spelled with down and up (IsDiffusersName)
// What shows nothing of all this is taken for PEFT, whose reader says what is missing.
AdapterFormat DetectFormat(const SourceFiles& files);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_SOURCE_FILES_H_
