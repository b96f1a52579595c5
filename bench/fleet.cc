#include "bench/fleet.h"

#include <fmt/format.h>

#include <atomic>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "bench/messages.h"
#include "bench/on_threads.h"
#include "bench/peft_folder.h"
#include "bench/raw_client.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kLoaders = 8;  // loads that are under way at one time
constexpr char kJournal[] = "data";
constexpr char kAdapters[] = "adapters";

}  // namespace

std::string Fleet::NameOf(size_t index) { return fmt::format("adapter-{:06}", index); }

Factors Fleet::FactorsOf(size_t index) {
  return Factors(DType::kF32, kFeatures, kRank, /*seed=*/index + 1);
}

Tensor Fleet::InputOf(size_t index) {
  return RandomMatrix(DType::kF32, 1, kFeatures, 1, /*seed=*/index);
}

absl::StatusOr<std::unique_ptr<Fleet>> Fleet::Create(const FleetSize& size,
                                                     std::optional<int> core) {
  std::unique_ptr<Fleet> fleet(new Fleet(size, core));
  ASSIGN_OR_RETURN(fleet->folder_, TemporaryFolder::Create());
  RETURN_IF_ERROR(fleet->WriteFiles());
  ASSIGN_OR_RETURN(const int64_t bytes, fleet->MeasureOne());
  fleet->budget_bytes_ = bytes * static_cast<int64_t>(size.resident);
  RETURN_IF_ERROR(fleet->StartServer(fleet->folder_->path() / kJournal));
  return fleet;
}

absl::Status Fleet::WriteFiles() const {
  const std::filesystem::path root = folder_->path() / kAdapters;
  std::filesystem::create_directory(root);
  for (size_t i = 0; i < size_.adapters + kSpares; ++i) {
    RETURN_IF_ERROR(WritePeftAdapter(root / NameOf(i), FactorsOf(i)));
  }
  return absl::OkStatus();
}

absl::Status Fleet::StartServer(const std::string& data_dir) {
  client_ = nullptr;
  server_ = nullptr;  // two servers may not share a journal
  std::vector<std::string> command = {std::filesystem::path(OwnFolder()) / "adapterd",
                                      "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
                                      "--adapter-root=" + (folder_->path() / kAdapters).string()};
  if (!data_dir.empty()) command.push_back("--data-dir=" + data_dir);
  if (budget_bytes_ > 0) command.push_back(fmt::format("--memory-budget={}", budget_bytes_));
  if (core_) command.emplace_back("--threads=1");
  ASSIGN_OR_RETURN(server_,
                   ChildServer::Start(std::move(command), folder_->path() / "adapterd.log", core_));
  client_ = std::make_unique<FleetClient>(server_->address());
  return absl::OkStatus();
}

// What one adapter takes of the budget once it has been used.
absl::StatusOr<int64_t> Fleet::MeasureOne() {
  RETURN_IF_ERROR(StartServer(/*data_dir=*/""));
  RETURN_IF_ERROR(client_->Load(NameOf(0), NameOf(0)));
  RETURN_IF_ERROR(VerifyOne(0));
  ASSIGN_OR_RETURN(const FleetState state, client_->State());
  return state.memory_bytes;
}

absl::Status Fleet::LoadAll() {
  std::atomic<size_t> next = 0;
  return OnThreads(kLoaders, [&](int /*thread*/) -> absl::Status {
    for (size_t i = next++; i < size_.adapters; i = next++) {
      RETURN_IF_ERROR(client_->Load(NameOf(i), NameOf(i)));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<absl::Duration> Fleet::Restart() {
  client_ = nullptr;
  server_ = nullptr;  // its end is not part of the start
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(StartServer(folder_->path() / kJournal));
  return absl::Now() - start;
}

absl::Status Fleet::VerifyOne(size_t index) const {
  RawClient client(server_->address());
  const Tensor input = InputOf(index);
  grpc::ByteBuffer reply;
  RETURN_IF_ERROR(client.Apply(MakeApplyRequest(NameOf(index), input), 0, reply));
  return VerifyApplyReply(input, FactorsOf(index), reply);
}

}  // namespace adapterd::bench
