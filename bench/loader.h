// The registry as a server has it, over one folder.
#ifndef ADAPTERD_BENCH_LOADER_H_
#define ADAPTERD_BENCH_LOADER_H_

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "core/registry/adapter_registry.h"

namespace adapterd::bench {

// Loads one adapter again and again. One thread.
class Loader {
 public:
  // `source` is below `root`; its model is a Llama of 7B.
  static absl::StatusOr<std::unique_ptr<Loader>> Create(const std::filesystem::path& root,
                                                        const std::string& source);

  // From a source to READY, when the first request would be served. REQUIRES: it is not loaded.
  absl::Status Load();
  // Until the load is answered, which also takes the digest of the whole file. After Load.
  absl::Status AwaitAnswer();
  // Until the load is answered and the memory is free.
  absl::Status Unload();

  // What is loaded, as the load's answer tells.
  absl::StatusOr<AdapterSnapshot> Snapshot();
  // Makes every module ready for inputs of `dtype`, as the first requests do, and tells what is
  // reserved for the adapter then.
  absl::StatusOr<int64_t> UseAllModules(DType dtype);

 private:
  Loader(std::shared_ptr<const SourceRoots> roots, std::string source);

  const std::string source_;
  std::unique_ptr<absl::Notification> answered_;  // of the last Load
  absl::Status answer_;
  Kernels kernels_;
  ThreadPool io_pool_;
  AdapterRegistry registry_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_LOADER_H_
