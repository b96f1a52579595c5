// Labels of adapters, in Kubernetes' syntax.
#ifndef ADAPTERD_SERVICE_LABELS_H_
#define ADAPTERD_SERVICE_LABELS_H_

#include <google/protobuf/map.h>

#include <string>

#include "absl/status/statusor.h"
#include "core/registry/journal.h"

namespace adapterd {

// Labels are few and short: they travel with every listing.
inline constexpr int kMaxLabels = 64;
inline constexpr size_t kMaxLabelPrefixBytes = 253;
inline constexpr size_t kMaxLabelNameBytes = 63;
inline constexpr size_t kMaxLabelValueBytes = 63;

// INVALID_FIELD unless every key is [PREFIX/]NAME, NAME has 1 to 63 of [A-Za-z0-9._-] between a
// letter or digit at each end, PREFIX is a lower-case DNS subdomain of at most 253, and every value
// is empty or as NAME. `field` is what errors call them.
absl::StatusOr<Labels> LabelsFromProto(
    const google::protobuf::Map<std::string, std::string>& labels, const std::string& field);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_LABELS_H_
