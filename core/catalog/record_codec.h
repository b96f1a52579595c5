// The parts of a record that are JSON in the catalogue.
//
// Pure functions. What was encoded decodes to an equal value. Encoding fails with INVALID_FIELD for
// what JSON cannot say: text that is not UTF-8, numbers that are not finite. Decoding takes only
// what encoding makes (no key may be missing, added or of another type) and else fails with
// STORE_CORRUPT; `what` is what messages call the value.
#ifndef ADAPTERD_CORE_CATALOG_RECORD_CODEC_H_
#define ADAPTERD_CORE_CATALOG_RECORD_CODEC_H_

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/adapter_description.h"

namespace adapterd {

using StringMap = std::map<std::string, std::string>;

absl::StatusOr<std::string> EncodeMap(std::string_view what, const StringMap& map);
absl::StatusOr<StringMap> DecodeMap(std::string_view what, std::string_view json);

absl::StatusOr<std::string> EncodeList(std::string_view what, const std::vector<std::string>& list);
absl::StatusOr<std::vector<std::string>> DecodeList(std::string_view what, std::string_view json);

absl::StatusOr<std::string> EncodeDescription(std::string_view what,
                                              const AdapterDescription& description);
absl::StatusOr<AdapterDescription> DecodeDescription(std::string_view what, std::string_view json);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_RECORD_CODEC_H_
