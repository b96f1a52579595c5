// TLS for gRPC with certificates that change while it serves.
#ifndef ADAPTERD_SERVICE_TLS_GRPC_TLS_H_
#define ADAPTERD_SERVICE_TLS_GRPC_TLS_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "service/tls/certificate_files.h"

namespace adapterd {

// TLS 1.2 or newer; when `files` asks clients, they must show a certificate of its authorities.
// Every handshake uses what `files` has then. `files` and the result must outlive the server: gRPC
// itself does not hold on to them.
std::shared_ptr<grpc::ServerCredentials> GrpcTlsCredentials(CertificateFiles& files);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TLS_GRPC_TLS_H_
