// A content that is still arriving.
#ifndef ADAPTERD_CORE_CATALOG_INCOMING_CONTENT_H_
#define ADAPTERD_CORE_CATALOG_INCOMING_CONTENT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/sha256.h"
#include "core/catalog/content_key.h"
#include "core/catalog/content_store.h"

namespace adapterd {

// Adapters have two files and a few that nobody reads; each costs an inode.
inline constexpr size_t kMaxUploadFiles = 64;
inline constexpr size_t kMaxFileNameBytes = 255;  // NAME_MAX

// INVALID_FIELD unless `name` is one component of a path: 1 to 255 bytes without '/' and NUL, and
// neither "." nor "..".
absl::Status CheckFileName(std::string_view name);

// Made by ContentStore::Begin. Destroyed without Commit, or after any error, it leaves nothing on
// the disk. Used by one thread at a time, which waits for the disk.
class IncomingContent {
 public:
  ~IncomingContent();
  IncomingContent(const IncomingContent&) = delete;
  IncomingContent& operator=(const IncomingContent&) = delete;

  // More bytes of a file, also none. Files come one after the other. INVALID_FIELD: the name, a
  // file that was ended by another one, more than kMaxUploadFiles. MESSAGE_TOO_LARGE: more bytes
  // than Begin allowed. STORAGE_FULL, SOURCE_UNAVAILABLE. After an error only the destructor may
  // follow.
  absl::Status Append(const std::string& file_name, std::string_view bytes);

  // Once all is on disk: the content under its key, which it shares with an equal one that was
  // there before; that is read to be sure of it, and replaced when it was damaged. INVALID_FIELD
  // when no file arrived; errors of Append. Call once.
  absl::StatusOr<StoredContent> Commit();

 private:
  friend class ContentStore;
  IncomingContent(ContentStore& store, std::string name, int64_t max_bytes)
      : store_(store), name_(std::move(name)), max_bytes_(max_bytes) {}

  absl::Status BeginFile(const std::string& file_name);
  absl::Status EndFile();
  absl::Status WriteAll(std::string_view bytes);

  ContentStore& store_;
  const std::string name_;  // below incoming/
  const int64_t max_bytes_;
  ScopedFd folder_;
  std::map<std::string, StoredFile> files_;  // the open one among them
  int64_t bytes_ = 0;

  // The file that bytes are added to; empty name: none yet.
  std::string file_name_;
  ScopedFd file_;
  Sha256 sha256_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_INCOMING_CONTENT_H_
