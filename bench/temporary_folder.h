// A place for files that nobody needs afterwards.
#ifndef ADAPTERD_BENCH_TEMPORARY_FOLDER_H_
#define ADAPTERD_BENCH_TEMPORARY_FOLDER_H_

#include <filesystem>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

namespace adapterd::bench {

// A folder of its own below the temporary one; removed, with everything in it, at the end.
class TemporaryFolder {
 public:
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Create();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path path_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_TEMPORARY_FOLDER_H_
