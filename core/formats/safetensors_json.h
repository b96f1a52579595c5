// The JSON of a safetensors header, read into a table without building a document.
#ifndef ADAPTERD_CORE_FORMATS_SAFETENSORS_JSON_H_
#define ADAPTERD_CORE_FORMATS_SAFETENSORS_JSON_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/error.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// Reads the syntax, the types and everything that one entry tells alone; nothing is said yet about
// how entries lie to each other. Tensors come in header order, with offsets as written (from the
// start of the data); their names may repeat. Needs memory for the table and one JSON string.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsJson(std::string_view header,
                                                       std::string_view file_name);

// MALFORMED_TENSOR_FILE about a file as a whole, or about one of its tensors.
Error MalformedFile(std::string_view file, std::string_view problem);
Error MalformedTensor(std::string_view file, std::string_view tensor, std::string_view problem);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_SAFETENSORS_JSON_H_
