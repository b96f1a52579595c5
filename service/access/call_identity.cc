#include "service/access/call_identity.h"

#include <grpc/grpc_security_constants.h>

namespace adapterd {
namespace {

constexpr char kAuthorization[] = "authorization";

}  // namespace

Credentials CredentialsOf(const grpc::CallbackServerContext& context) {
  Credentials credentials;
  const auto [begin, end] = context.client_metadata().equal_range(kAuthorization);
  for (auto it = begin; it != end; ++it) {
    credentials.authorization.emplace_back(it->second.data(), it->second.size());
  }
  if (!credentials.authorization.empty()) return credentials;  // it decides alone
  const auto auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) return credentials;
  for (const grpc::string_ref& san : auth->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) {
    credentials.sans.emplace_back(san.data(), san.size());
  }
  return credentials;
}

std::string_view TransportOf(const grpc::CallbackServerContext& context) {
  if (context.peer().rfind("unix", 0) == 0) return "unix";
  const auto auth = context.auth_context();
  if (auth == nullptr) return "plain";
  const auto types = auth->FindPropertyValues(GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
  if (types.empty() || types.front() != GRPC_SSL_TRANSPORT_SECURITY_TYPE) return "plain";
  return auth->IsPeerAuthenticated() ? "mtls" : "tls";
}

}  // namespace adapterd
