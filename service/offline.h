// What the program tells about adapters without serving any.
#ifndef ADAPTERD_SERVICE_OFFLINE_H_
#define ADAPTERD_SERVICE_OFFLINE_H_

#include <string>

#include "absl/status/statusor.h"
#include "service/server_options.h"

namespace adapterd {

// The revision of the adapter at `path`, any path that the caller may read.
absl::StatusOr<std::string> DigestOf(const std::string& path, int threads);

struct ValidationReport {
  bool valid = false;
  std::string text;  // lines for people
};

// Everything that ValidateAdapter tells about the adapter at command.text: what it is, the memory
// that it needs and whether the budget has it, all errors and warnings.
absl::StatusOr<ValidationReport> ValidateFolder(const Command& command);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_OFFLINE_H_
