// A content store in a folder of its own, and what lies in it.
#ifndef ADAPTERD_TESTS_CORE_CATALOG_STORE_FOLDER_H_
#define ADAPTERD_TESTS_CORE_CATALOG_STORE_FOLDER_H_

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/catalog/content_store.h"
#include "core/catalog/incoming_content.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {

using FileList = std::vector<std::pair<std::string, std::string>>;  // name, bytes

// More than any test writes.
inline constexpr int64_t kPlenty = int64_t{1} << 20;

// The paths of all that is below `folder`, relative to it, with the bytes of files.
inline std::map<std::string, std::string> TreeOf(const std::filesystem::path& folder) {
  std::map<std::string, std::string> tree;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder);
    tree[name] = entry.is_regular_file() ? ReadFile(entry.path()) : "";
  }
  return tree;
}

// Each file in pieces of `piece` bytes.
inline absl::StatusOr<StoredContent> Store(ContentStore& store, const FileList& files,
                                           size_t piece = kPlenty) {
  ASSIGN_OR_RETURN(const auto incoming, store.Begin(kPlenty));
  for (const auto& [name, bytes] : files) {
    size_t done = 0;
    do {
      RETURN_IF_ERROR(incoming->Append(name, std::string_view(bytes).substr(done, piece)));
      done += piece;
    } while (done < bytes.size());
  }
  return incoming->Commit();
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_CATALOG_STORE_FOLDER_H_
