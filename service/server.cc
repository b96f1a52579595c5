#include "service/server.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/field_error.h"
#include "service/server_parts.h"
#include "service/short_work.h"

namespace adapterd {
namespace {

// Requests that were on their way when SIGTERM came still find an open door.
constexpr absl::Duration kDrainNotice = absl::Milliseconds(200);
// For clients to read what was sent before their connection closes. Idle ones may not even look in
// that time (gRPC's do so every 5 s), and lose nothing.
constexpr absl::Duration kCloseTimeout = absl::Seconds(2);
// For watchers to be told, unless they do not read; also no more than half of the drain timeout.
constexpr absl::Duration kWatchersTimeout = absl::Seconds(1);

}  // namespace

Server::Server(std::unique_ptr<ServerParts> parts) : parts_(std::move(parts)) {}

Server::~Server() {
  if (parts_->grpc_server != nullptr) {
    parts_->grpc_server->Shutdown(std::chrono::system_clock::now());
    parts_->grpc_server->Wait();
  }
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  for (const auto& [name, source] : options.load) {
    RETURN_IF_ERROR(CheckAdapterName(name, "--load"));
  }
  ASSIGN_OR_RETURN(ServerStorage storage, ServerStorage::Open(options));
  std::unique_ptr<Server> server(
      new Server(std::make_unique<ServerParts>(options, std::move(storage))));
  ASSIGN_OR_RETURN(server->parts_->data_plane.short_flops,
                   MeasureShortFlops(server->parts_->kernels));
  RETURN_IF_ERROR(server->parts_->OpenSecurity());
  RETURN_IF_ERROR(server->parts_->Listen());
  RETURN_IF_ERROR(server->parts_->LoadAll());
  RETURN_IF_ERROR(server->parts_->LoadFolder());
  // All that is served again is known by now; the rest was left by a crash.
  server->parts_->collector.Request([] {});
  server->parts_->ready = true;
  server->parts_->SetServing(true);
  server->parts_->logger.Log(LogLevel::kInfo, "serving",
                             {{"version", ADAPTERD_VERSION},
                              {"grpc", server->parts_->grpc_address},
                              {"admin", server->parts_->admin_address},
                              {"threads", int64_t{options.threads}},
                              {"memory_budget_bytes", options.memory_budget_bytes},
                              {"isa", server->parts_->kernels.isa()},
                              {"short_flops", server->parts_->data_plane.short_flops},
                              {"onednn", Kernels::OneDnnVersion()}});
  return server;
}

std::string Server::ReadyLine() const {
  return fmt::format("adapterd ready grpc={} admin={}", parts_->grpc_address,
                     parts_->admin_address);
}

void Server::Reload(const absl::StatusOr<ServerOptions>& options) {
  if (parts_->access != nullptr) parts_->access->Reload();
  if (parts_->audit != nullptr) parts_->audit->Reopen();
  if (!options.ok()) {
    parts_->logger.Log(LogLevel::kError, "reload_failed",
                       {{"message", std::string(options.status().message())}});
    return;
  }
  parts_->logger.SetLevel(options->log_level);
  parts_->registry.SetMemoryBudget(options->memory_budget_bytes);
  parts_->logger.Log(LogLevel::kInfo, "reloaded",
                     {{"memory_budget_bytes", options->memory_budget_bytes}});
}

bool Server::Drain() {
  const absl::Time deadline = absl::Now() + parts_->options.drain_timeout;
  parts_->draining = true;
  parts_->SetServing(false);
  parts_->logger.Log(LogLevel::kInfo, "draining");
  parts_->folder_watch.reset();
  absl::SleepFor(std::min(kDrainNotice, parts_->options.drain_timeout));
  parts_->environment.open_calls.Close();
  const absl::Time cut = absl::Now() + std::min(kWatchersTimeout, (deadline - absl::Now()) / 2);
  LongCalls* const long_calls[] = {&parts_->adapter_service.watchers(),
                                   &parts_->projection_service.streams()};
  for (LongCalls* calls : long_calls) calls->End();
  if (!parts_->environment.open_calls.AwaitNone(cut)) {
    for (LongCalls* calls : long_calls) calls->Cut();
  }
  const bool clean = parts_->environment.open_calls.AwaitNone(deadline);
  // Not earlier: once told to shut down, gRPC closes a connection with its last call, and the reply
  // that the client has not read by then is lost. Without calls it waits for the client's word.
  const absl::Time close = std::min(deadline, absl::Now() + kCloseTimeout);
  parts_->grpc_server->Shutdown(absl::ToChronoTime(close));
  parts_->grpc_server->Wait();
  parts_->logger.Log(clean ? LogLevel::kInfo : LogLevel::kWarning,
                     clean ? "drained" : "drain_timeout");
  return clean;
}

}  // namespace adapterd
