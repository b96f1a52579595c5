// How adapterd_health and adapterd_smoke reach the server that they look at: address, TLS, and a
// token as clients show it.
#ifndef ADAPTERD_SERVICE_PROBE_CLIENT_H_
#define ADAPTERD_SERVICE_PROBE_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace CLI {
class App;
}

namespace adapterd {

struct ProbeOptions {
  std::string address = "127.0.0.1:50051";
  std::string tls_ca;  // empty: plain text
  std::string tls_server_name;
  std::string tls_cert;
  std::string tls_key;
  std::string token_file;
};

// The address as the first argument, and the TLS flags.
void AddConnectionFlags(CLI::App& app, ProbeOptions& options);

// Only for RPCs that have a role: health checks have none.
void AddTokenFlag(CLI::App& app, ProbeOptions& options);

// A channel, which connects when it is used. SOURCE_UNAVAILABLE when a file cannot be read.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ProbeOptions& options);

// The value of `authorization` metadata; empty without a token file. SOURCE_UNAVAILABLE as above.
absl::StatusOr<std::string> ReadAuthorization(const ProbeOptions& options);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROBE_CLIENT_H_
