#include "core/catalog/incoming_content.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

Error InvalidFile(std::string message) {
  return Error(Reason::kInvalidField, std::move(message)).With("field", "chunk.file_name");
}

}  // namespace

absl::Status CheckFileName(std::string_view name) {
  const bool plain = !name.empty() && name.size() <= kMaxFileNameBytes && name != "." &&
                     name != ".." && name.find('/') == std::string_view::npos &&
                     name.find('\0') == std::string_view::npos;
  if (plain) return absl::OkStatus();
  return InvalidFile(
      fmt::format("chunk.file_name: expected the name of a file, 1 to {} bytes and "
                  "no path, found {}",
                  kMaxFileNameBytes, Quoted(name)));
}

IncomingContent::~IncomingContent() { store_.RemoveIncoming(name_); }

absl::Status IncomingContent::Append(const std::string& file_name, std::string_view bytes) {
  RETURN_IF_ERROR(CheckFileName(file_name));
  const auto size = static_cast<int64_t>(bytes.size());
  if (size > max_bytes_ - bytes_) {
    return Error(Reason::kMessageTooLarge,
                 fmt::format("the upload has {} bytes so far, over the limit of {}", bytes_ + size,
                             max_bytes_))
        .With("expected", max_bytes_)
        .With("actual", bytes_ + size);
  }
  if (file_name != file_name_) {
    RETURN_IF_ERROR(EndFile());
    RETURN_IF_ERROR(BeginFile(file_name));
  }
  sha256_.Update(bytes);
  files_[file_name_].size += size;
  bytes_ += size;
  return WriteAll(bytes);
}

absl::Status IncomingContent::BeginFile(const std::string& file_name) {
  if (files_.count(file_name) > 0) {
    return InvalidFile(fmt::format("the file {} was ended by another one and cannot be continued",
                                   Quoted(file_name)));
  }
  if (files_.size() >= kMaxUploadFiles) {
    return InvalidFile(fmt::format("{} is one file too many: at most {} make an adapter",
                                   Quoted(file_name), kMaxUploadFiles));
  }
  const int file = store_.disk_->CreateFile(folder_.get(), file_name);
  if (file < 0) return DiskError(-file, fmt::format("cannot store {}", Quoted(file_name)));
  file_ = ScopedFd(file);
  file_name_ = file_name;
  files_[file_name] = {};
  sha256_ = Sha256();
  return absl::OkStatus();
}

absl::Status IncomingContent::WriteAll(std::string_view bytes) {
  while (!bytes.empty()) {
    const int64_t written = store_.disk_->Write(file_.get(), bytes);
    if (written <= 0) {
      // A file that takes no byte and gives no reason would be tried for ever.
      const int error = written == 0 ? EIO : static_cast<int>(-written);
      return DiskError(error, fmt::format("cannot store {}", Quoted(file_name_)));
    }
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

absl::Status IncomingContent::EndFile() {
  if (file_name_.empty()) return absl::OkStatus();
  files_[file_name_].sha256 = sha256_.FinishHex();
  RETURN_IF_ERROR(store_.Sync(file_.get(), Quoted(file_name_)));
  file_ = ScopedFd();
  return absl::OkStatus();
}

absl::StatusOr<StoredContent> IncomingContent::Commit() {
  if (files_.empty()) return InvalidFile("the upload has no file");
  RETURN_IF_ERROR(EndFile());
  RETURN_IF_ERROR(store_.Sync(folder_.get(), "the folder of the upload"));
  return store_.Adopt(name_, ContentKey(files_));
}

}  // namespace adapterd
