// Files that operators write: policies, certificates, keys.
#ifndef ADAPTERD_SERVICE_SMALL_FILE_H_
#define ADAPTERD_SERVICE_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace adapterd {

// The whole file. SOURCE_UNAVAILABLE when it cannot be read or has more than `max_bytes`. Follows
// symlinks, which is how Kubernetes swaps a mounted secret. One whose content has changed is
// another file or was written in place: then this may be half of it.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_SMALL_FILE_H_
