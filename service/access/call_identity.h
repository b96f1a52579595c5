// What gRPC knows of who calls.
#ifndef ADAPTERD_SERVICE_ACCESS_CALL_IDENTITY_H_
#define ADAPTERD_SERVICE_ACCESS_CALL_IDENTITY_H_

#include <grpcpp/grpcpp.h>

#include <string_view>

#include "service/access/access_control.h"

namespace adapterd {

Credentials CredentialsOf(const grpc::CallbackServerContext& context);

// "unix", "plain", "tls", or "mtls" when TLS has verified the client's certificate.
std::string_view TransportOf(const grpc::CallbackServerContext& context);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_CALL_IDENTITY_H_
