// An adapter on disk as llama.cpp's converter writes it, for a server to load.
#ifndef ADAPTERD_BENCH_GGUF_FILE_H_
#define ADAPTERD_BENCH_GGUF_FILE_H_

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/peft_folder.h"
#include "bench/temporary_folder.h"
#include "core/formats/gguf.h"

namespace adapterd::bench {

// One file in a temporary folder of its own, of architecture "llama": rows of q and k are reordered
// for 32 heads, as those of the 7B model are.
class GgufFile {
 public:
  // Tensors of random numbers, F16 or Q8_0. REQUIRES: for Q8_0, sizes in whole blocks of 32.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Create(const std::vector<PeftModule>& modules,
                                                          GgufType type, int64_t rank);

  const std::filesystem::path& root() const { return root_->path(); }
  std::string adapter() const { return "bench.gguf"; }  // its name below root()
  std::filesystem::path weights() const { return root() / adapter(); }

 private:
  explicit GgufFile(std::unique_ptr<TemporaryFolder> root) : root_(std::move(root)) {}

  const std::unique_ptr<TemporaryFolder> root_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_GGUF_FILE_H_
