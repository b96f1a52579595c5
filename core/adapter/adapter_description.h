// What a listing tells of an adapter: small, and kept when the weights and the manifest are not.
#ifndef ADAPTERD_CORE_ADAPTER_ADAPTER_DESCRIPTION_H_
#define ADAPTERD_CORE_ADAPTER_ADAPTER_DESCRIPTION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"

namespace adapterd {

// The manifest without its modules.
struct AdapterDescription {
  AdapterFormat format = AdapterFormat::kPeft;
  std::string method;
  std::string base_model;
  std::vector<int32_t> ranks;               // distinct, ascending
  std::vector<std::string> target_modules;  // distinct last components, sorted
  int32_t layer_count = 0;
  int32_t module_count = 0;
  int64_t parameter_count = 0;
  int64_t original_parameter_count = 0;  // sum of in x out
  int64_t file_bytes = 0;
  double lora_dropout = 0;

  bool operator==(const AdapterDescription&) const = default;
};

AdapterDescription DescriptionOf(const AdapterManifest& manifest);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_ADAPTER_DESCRIPTION_H_
