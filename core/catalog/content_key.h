// What the content store calls a content.
#ifndef ADAPTERD_CORE_CATALOG_CONTENT_KEY_H_
#define ADAPTERD_CORE_CATALOG_CONTENT_KEY_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "core/formats/source_roots.h"

namespace adapterd {

struct StoredFile {
  int64_t size = 0;
  std::string sha256;  // 64 lower-case hex digits
};

// SHA-256 of "adapterd-content-v1\n" followed by one line a file, sorted bytewise by name:
//   name NUL size-in-decimal NUL sha256 LF
// `files`: by name.
std::string ContentKey(const std::map<std::string, StoredFile>& files);

// The key of what `folder` holds now; reads every byte of it. Errors of SourceFolder::OpenFile and
// InputFile::ReadAt.
absl::StatusOr<std::string> ReadContentKey(const SourceFolder& folder);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_CONTENT_KEY_H_
