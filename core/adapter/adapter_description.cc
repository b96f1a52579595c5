#include "core/adapter/adapter_description.h"

namespace adapterd {

AdapterDescription DescriptionOf(const AdapterManifest& manifest) {
  AdapterDescription description;
  description.format = manifest.format;
  description.method = manifest.method;
  description.base_model = manifest.base_model;
  description.ranks = manifest.ranks();
  description.target_modules = manifest.target_modules();
  description.layer_count = manifest.layer_count();
  description.module_count = static_cast<int32_t>(manifest.modules.size());
  description.parameter_count = manifest.parameter_count();
  description.original_parameter_count = manifest.original_parameter_count();
  description.file_bytes = manifest.file_bytes;
  description.lora_dropout = manifest.lora_dropout;
  return description;
}

}  // namespace adapterd
