#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <limits>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/server_parts.h"
#include "service/tls/grpc_tls.h"

namespace adapterd {
namespace {

// gRPC's own limit lies above ours, so that a message somewhat too large gets our error.
constexpr int64_t kMessageHeadroom = int64_t{64} << 20;
constexpr int kMaxStreamsPerConnection = 1024;
// Of all headers of a call: a token, a trace and a few words more.
constexpr int kMaxMetadataBytes = 16 << 10;
// Whoever connects has to speak TLS and HTTP/2 within it; gRPC's own limit is two minutes.
constexpr int kHandshakeMs = 10'000;
// Clients that are gone without a word are found by pings, and their streams ended.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// Theirs may come no more often, or they are hung up on.
constexpr int kMinPingIntervalMs = 10'000;
const char* const kServices[] = {"adapterd.v1.AdapterService", "adapterd.v1.ProjectionService",
                                 "adapterd.v1.MergeService", "adapterd.v1.BaseModelService"};

int GrpcMessageLimit(int64_t max_message_bytes) {
  const int64_t limit = 2 * max_message_bytes + kMessageHeadroom;
  return static_cast<int>(std::min<int64_t>(limit, std::numeric_limits<int>::max()));
}

std::string JoinHostPort(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

// Whether a process listens on the socket file at `path`.
bool IsListening(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return false;
  path.copy(address.sun_path, path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool listens =
      fd >= 0 && connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  if (fd >= 0) close(fd);
  return listens;
}

// A socket file that a dead process left behind would make the bind fail; anything else is kept.
absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) return absl::OkStatus();
  const bool is_socket = S_ISSOCK(status.st_mode);
  if (is_socket && !IsListening(path) && unlink(path.c_str()) == 0) return absl::OkStatus();
  return Error(Reason::kSourceUnavailable,
               fmt::format("--unix-socket: {} {}", path,
                           is_socket ? "belongs to a process that listens there"
                                     : "exists and is not a socket"));
}

void AddLimits(int64_t max_message_bytes, grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.SetMaxReceiveMessageSize(GrpcMessageLimit(max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
}

}  // namespace

absl::Status ServerParts::OpenSecurity() {
  if (!options.access_policy.empty()) {
    absl::StatusOr<std::unique_ptr<AccessControl>> opened =
        AccessControl::Open(options.access_policy, metrics, logger);
    if (!opened.ok()) {
      return Error(GetErrorDetails(opened.status()).reason,
                   fmt::format("--access-policy: {}", std::string(opened.status().message())));
    }
    access = *std::move(opened);
  }
  if (!options.audit_log.empty()) {
    ASSIGN_OR_RETURN(audit, AuditLog::Open(options.audit_log, metrics, logger));
  }
  credentials = grpc::InsecureServerCredentials();
  if (!options.tls_cert.empty()) {
    ASSIGN_OR_RETURN(
        grpc_certificates,
        CertificateFiles::Open({"tls", options.tls_cert, options.tls_key, options.tls_client_ca},
                               logger));
    credentials = GrpcTlsCredentials(*grpc_certificates);
  }
  if (!options.admin_tls_cert.empty()) {
    ASSIGN_OR_RETURN(admin_certificates,
                     CertificateFiles::Open(
                         {"admin-tls", options.admin_tls_cert, options.admin_tls_key, ""}, logger));
  }
  environment.access = access.get();
  environment.audit = audit.get();
  return absl::OkStatus();
}

absl::Status ServerParts::Listen() {
  const HostPort address = *ParseHostPort(options.grpc_address);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(JoinHostPort(address.host, address.port), credentials, &port);
  if (!options.unix_socket.empty()) {
    RETURN_IF_ERROR(RemoveStaleSocket(options.unix_socket));
    builder.AddListeningPort("unix:" + options.unix_socket, grpc::InsecureServerCredentials());
  }
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  AddLimits(options.max_message_bytes, builder);
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  builder.RegisterService(&adapter_service);
  builder.RegisterService(&projection_service);
  builder.RegisterService(&merge_service);
  builder.RegisterService(&base_model_service);
  grpc_server = builder.BuildAndStart();
  if (grpc_server == nullptr || port == 0) {
    return Error(
        Reason::kSourceUnavailable,
        fmt::format("cannot listen on {} for gRPC; is the port taken?", options.grpc_address));
  }
  SetServing(false);
  grpc_address = JoinHostPort(address.host, port);

  const HostPort admin_host = *ParseHostPort(options.admin_address);
  ASSIGN_OR_RETURN(admin, AdminServer::Start(admin_host, MakePages(), admin_certificates.get()));
  admin_address = JoinHostPort(admin_host.host, admin->port());
  return absl::OkStatus();
}

void ServerParts::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = grpc_server->GetHealthCheckService();
  health->SetServingStatus(true);  // "": the process lives, which is all that liveness asks
  for (const char* service : kServices) health->SetServingStatus(service, serving);
}

}  // namespace adapterd
