// Which files of a folder make up the adapter.
#ifndef ADAPTERD_CORE_ADAPTER_SOURCE_FOLDER_H_
#define ADAPTERD_CORE_ADAPTER_SOURCE_FOLDER_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/adapter/problems.h"
#include "core/formats/source_roots.h"

namespace adapterd {

inline constexpr std::string_view kConfigFileName = "adapter_config.json";

// Empty: there is none.
struct AdapterFiles {
  std::string config;
  std::string weights;
};

// A folder without a config of its own is searched for subfolders that have one, among this many.
inline constexpr size_t kMaxSubfolders = 1000;

// The folder `source`, or the only adapter in a subfolder of it: PEFT puts an adapter that is not
// called "default" in a folder of its name. Errors: those of SourceRoots::OpenFolder;
// SOURCE_NOT_FOUND, with their names, when several subfolders hold an adapter.
absl::StatusOr<SourceFolder> OpenAdapterFolder(const SourceRoots& roots, const std::string& source);

// By name alone, nothing is opened: adapter_model, adapters or pytorch_lora_weights .safetensors,
// else the only .safetensors, else the only .gguf. Errors: SOURCE_NOT_FOUND when the weights are
// missing or there is no choice, UNSAFE_FORMAT when the only weights are pickled. A warning names
// the weights that are left alone. A config may be missing: some formats have none.
AdapterFiles ChooseAdapterFiles(const SourceFolder& folder, ProblemList& problems);

// Of a source that names a file, whatever it is called, and the config beside it. REQUIRES: `file`
// is what SourceRoots::OpenFolder gave for it.
AdapterFiles FilesOf(const SourceFolder& file);

// True for names that torch.save gives to pickled data (.bin, .pt, .pth, .ckpt, .pkl).
bool IsPickleName(std::string_view name);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_SOURCE_FOLDER_H_
