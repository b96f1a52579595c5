// Which files of a folder make up the adapter.
#ifndef ADAPTERD_CORE_ADAPTER_SOURCE_FOLDER_H_
#define ADAPTERD_CORE_ADAPTER_SOURCE_FOLDER_H_

#include <string>
#include <string_view>

#include "core/adapter/problems.h"
#include "core/formats/source_roots.h"

namespace adapterd {

inline constexpr std::string_view kConfigFileName = "adapter_config.json";

// Empty: there is none.
struct AdapterFiles {
  std::string config;
  std::string weights;
};

// By name alone, nothing is opened. Errors: SOURCE_NOT_FOUND for what is missing, UNSAFE_FORMAT
// when the only weights are pickled, UNSUPPORTED_ADAPTER when they are of another format. A warning
// names the weights that are left alone.
AdapterFiles ChooseAdapterFiles(const SourceFolder& folder, ProblemList& problems);

// True for names that torch.save gives to pickled data (.bin, .pt, .pth, .ckpt, .pkl).
bool IsPickleName(std::string_view name);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_SOURCE_FOLDER_H_
