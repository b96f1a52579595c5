#include "service/tls/grpc_tls.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {
namespace {

// gRPC's stable C interface asks a function of ours for the certificates of each handshake.
class ReloadingCredentials final : public grpc::ServerCredentials {
 public:
  explicit ReloadingCredentials(CertificateFiles& files)
      : files_(files),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                files.asks_clients() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                     : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
                &Fetch, this))) {}
  ~ReloadingCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<ReloadingCredentials*>(self)->Next(config);
  }

  grpc_ssl_certificate_config_reload_status Next(grpc_ssl_server_certificate_config** config) {
    std::shared_ptr<const Certificates> current = files_.Current();
    absl::MutexLock lock(&mutex_);
    if (current == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair{current->key_pem.c_str(),
                                          current->certificate_pem.c_str()};
    // gRPC insists on authorities, also where clients are not asked and nothing is held against
    // them.
    const std::string& authorities =
        files_.asks_clients() ? current->client_ca_pem : current->certificate_pem;
    *config = grpc_ssl_server_certificate_config_create(authorities.c_str(), &pair, 1);
    given_ = std::move(current);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  CertificateFiles& files_;
  grpc_server_credentials* const credentials_;
  absl::Mutex mutex_;
  std::shared_ptr<const Certificates> given_ ABSL_GUARDED_BY(mutex_);  // to gRPC, last
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> GrpcTlsCredentials(CertificateFiles& files) {
  return std::make_shared<ReloadingCredentials>(files);
}

}  // namespace adapterd
