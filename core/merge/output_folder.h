// A folder that appears at once and complete, or not at all.
#ifndef ADAPTERD_CORE_MERGE_OUTPUT_FOLDER_H_
#define ADAPTERD_CORE_MERGE_OUTPUT_FOLDER_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/formats/disk.h"
#include "core/formats/input_file.h"
#include "core/formats/scoped_fd.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// What is unfinished is called so, in the root that its output is to appear below.
inline constexpr std::string_view kUnfinishedPrefix = ".adapterd-merge-";

// Files are made in an unfinished folder of the root, which holds a lock for as long as its process
// lives. Commit moves it to its place; otherwise the destructor removes it, or, after a crash, the
// next RemoveUnfinished. Folders above the output that are missing come with it.
// Threads: files may be made and written from any; the rest one at a time.
class OutputFolder {
 public:
  // `output` below one of the roots. OUTPUT_EXISTS: there is something. INVALID_FIELD: it lies
  // inside `source` (a folder below one of `source_roots`), on another file system than its root,
  // or has a component that only unfinished folders have; errors of SourceRoots::Locate.
  // PATH_OUTSIDE_ROOT, SOURCE_NOT_FOUND: a component is no folder. STORAGE_FULL,
  // SOURCE_UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<OutputFolder>> Begin(const SourceRoots& roots,
                                                             const std::string& output,
                                                             const SourceRoots& source_roots,
                                                             const std::string& source,
                                                             std::shared_ptr<Disk> disk);
  ~OutputFolder();

  // A new file of `bytes`, to be written at any place of it; the room is taken at once.
  absl::StatusOr<ScopedFd> Create(const std::string& name, int64_t bytes);
  absl::Status Sync(const ScopedFd& file, std::string_view name);
  // A whole small file, synced.
  absl::Status WriteFile(const std::string& name, std::string_view bytes);
  // The same of a file of any size, whose bytes are read block by block.
  absl::Status CopyFile(const std::string& name, const InputFile& from,
                        const Cancellation& cancellation);
  Disk& disk() { return *disk_; }
  // Names of what was made, ascending.
  std::vector<std::string> files() const;

  // When everything is written and synced. OUTPUT_EXISTS: somebody was faster.
  absl::Status Commit();

  // Removes what died processes left in the roots. What cannot be removed is left alone.
  static void RemoveUnfinished(const SourceRoots& roots);

 private:
  OutputFolder(std::shared_ptr<const int> root, std::string output, std::shared_ptr<Disk> disk)
      : root_(std::move(root)), output_(std::move(output)), disk_(std::move(disk)) {}

  absl::Status FindPlace();
  absl::Status CheckPlace(const struct stat& source) const;
  absl::Status MakeUnfinished();
  // Where files go.
  int target() const { return inner_.empty() ? unfinished_.get() : inner_.back().get(); }
  absl::Status WriteAll(const ScopedFd& file, std::string_view name, int64_t offset,
                        std::span<const std::byte> bytes);

  const std::shared_ptr<const int> root_;
  const std::string output_;
  const std::shared_ptr<Disk> disk_;
  ScopedFd place_;                    // the deepest folder of the output's path that is there
  std::vector<std::string> missing_;  // components below it
  std::string name_;                  // of the unfinished folder; empty: none, or moved
  ScopedFd unfinished_;               // locked
  std::vector<ScopedFd> inner_;       // the missing folders but the first, each in the one before
  std::vector<std::string> files_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_OUTPUT_FOLDER_H_
