// An adapter on disk as PEFT saves it, for a server to load.
#ifndef ADAPTERD_BENCH_PEFT_FOLDER_H_
#define ADAPTERD_BENCH_PEFT_FOLDER_H_

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "bench/data.h"

namespace adapterd::bench {

// The one module that the adapter has.
inline constexpr char kPeftModule[] = "model.layers.0.self_attn.q_proj";

// A folder of its own below the temporary one; removed, with everything in it, at the end.
class PeftFolder {
 public:
  static absl::StatusOr<std::unique_ptr<PeftFolder>> Create(const Factors& factors);
  ~PeftFolder();
  PeftFolder(const PeftFolder&) = delete;
  PeftFolder& operator=(const PeftFolder&) = delete;

  const std::filesystem::path& root() const { return root_; }  // holds the adapter's folder
  std::string adapter() const { return "bench"; }              // its name below root()

 private:
  explicit PeftFolder(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path root_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_PEFT_FOLDER_H_
