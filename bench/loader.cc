#include "bench/loader.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kIoThreads = 4;  // as the server has
constexpr int64_t kBudgetBytes = int64_t{16} << 30;
constexpr char kName[] = "bench";

// Starts something that answers through a callback, and waits for the answer.
template <typename T, typename Start>
absl::StatusOr<T> Wait(Start start) {
  std::optional<absl::StatusOr<T>> answer;
  absl::Notification done;
  const auto ticket = start([&](absl::StatusOr<T> result) {
    answer = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  return *std::move(answer);
}

using Handles = std::vector<AdapterHandle>;

// Waits for a load that is running.
absl::StatusOr<Handles> Acquire(AdapterRegistry& registry) {
  return Wait<Handles>([&](auto done) {
    return registry.Acquire({{kName, ""}}, /*skip_disabled=*/false, std::move(done));
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Loader>> Loader::Create(const std::filesystem::path& root,
                                                       const std::string& source) {
  ASSIGN_OR_RETURN(SourceRoots roots, SourceRoots::Open({{"", root.string()}}));
  return std::unique_ptr<Loader>(
      new Loader(std::make_shared<const SourceRoots>(std::move(roots)), source));
}

Loader::Loader(std::shared_ptr<const SourceRoots> roots, std::string source)
    : source_(std::move(source)),
      io_pool_("io", kIoThreads, PrepareComputeThread),
      registry_({}, kernels_, OpenFromRoots(roots, roots), MemoryBudget::Create(kBudgetBytes),
                io_pool_) {}

absl::Status Loader::Load() {
  LoadRequest request;
  request.name = kName;
  request.source.source = source_;
  request.source.head_counts = HeadCounts{32, 32};
  answered_ = std::make_unique<absl::Notification>();
  registry_.Load(std::move(request), [this](const absl::StatusOr<LoadResult>& result) {
    answer_ = result.status();
    answered_->Notify();
  });
  return Acquire(registry_).status();
}

absl::Status Loader::AwaitAnswer() {
  answered_->WaitForNotification();
  return answer_;
}

absl::Status Loader::Unload() {
  RETURN_IF_ERROR(AwaitAnswer());
  UnloadRequest request;
  request.name = kName;
  return Wait<UnloadResult>(
             [&](auto done) { return registry_.Unload(std::move(request), std::move(done)); })
      .status();
}

absl::StatusOr<AdapterSnapshot> Loader::Snapshot() {
  RETURN_IF_ERROR(AwaitAnswer());
  return registry_.Get(kName);
}

absl::StatusOr<int64_t> Loader::UseAllModules(DType dtype) {
  ASSIGN_OR_RETURN(const Handles handles, Acquire(registry_));
  const LoadedAdapter& adapter = *handles[0];
  for (size_t i = 0; i < adapter.manifest().modules.size(); ++i) {
    RETURN_IF_ERROR(adapter.Pair(i, /*pair=*/0, dtype).status());
  }
  return adapter.memory_bytes();
}

}  // namespace adapterd::bench
