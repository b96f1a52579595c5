// What no loader of a file can go below: reading its bytes, and digesting them.
#ifndef ADAPTERD_BENCH_FILE_FLOOR_H_
#define ADAPTERD_BENCH_FILE_FLOOR_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/thread_pool.h"
#include "core/formats/input_file.h"

namespace adapterd::bench {

// One file, opened once and read before, so that it lies in the page cache. One thread.
class FileFloor {
 public:
  static absl::StatusOr<std::unique_ptr<FileFloor>> Open(const std::filesystem::path& file);

  int64_t bytes() const { return file_.size(); }
  const std::string& sha256() const { return sha256_; }  // of all of it, in hex

  // Copies the file into memory that has no pages yet, in large blocks, on the caller alone or on
  // all threads of `pool`. Free gives the memory back.
  absl::Status Read();
  absl::Status ReadOn(ThreadPool& pool);
  absl::Status Free();

  // Digests a part of the bytes on each thread of `pool`.
  absl::Status DigestOn(ThreadPool& pool) const;

 private:
  explicit FileFloor(InputFile file) : file_(std::move(file)) {}
  absl::Status Map();
  absl::Status ReadPart(int64_t begin, int64_t end) const;

  const InputFile file_;
  std::string sha256_;
  std::vector<std::byte> content_;  // what is digested
  std::span<std::byte> fresh_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_FILE_FLOOR_H_
