#include "core/catalog/content_key.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/formats/input_file.h"

namespace adapterd {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // read at a time

absl::StatusOr<StoredFile> Digest(const InputFile& file) {
  Sha256 sha256;
  std::vector<std::byte> piece(static_cast<size_t>(std::min(file.size(), kPieceBytes)));
  for (int64_t done = 0; done < file.size();) {
    const auto size = static_cast<size_t>(std::min(file.size() - done, kPieceBytes));
    const std::span<std::byte> bytes = std::span(piece).first(size);
    RETURN_IF_ERROR(file.ReadAt(done, bytes));
    sha256.Update(bytes);
    done += static_cast<int64_t>(size);
  }
  return StoredFile{file.size(), sha256.FinishHex()};
}

}  // namespace

std::string ContentKey(const std::map<std::string, StoredFile>& files) {
  Sha256 key;
  key.Update("adapterd-content-v1\n");
  for (const auto& [name, file] : files) {
    key.Update(name);
    key.Update(std::string_view("\0", 1));
    key.Update(std::to_string(file.size));
    key.Update(std::string_view("\0", 1));
    key.Update(file.sha256);
    key.Update("\n");
  }
  return key.FinishHex();
}

absl::StatusOr<std::string> ReadContentKey(const SourceFolder& folder) {
  std::map<std::string, StoredFile> files;
  for (const std::string& name : folder.entries()) {
    ASSIGN_OR_RETURN(const InputFile file, folder.OpenFile(name));
    ASSIGN_OR_RETURN(files[name], Digest(file));
  }
  return ContentKey(files);
}

}  // namespace adapterd
