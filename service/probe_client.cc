#include "service/probe_client.h"

#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "service/small_file.h"

namespace adapterd {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;
constexpr size_t kMaxTokenBytes = 4096;

}  // namespace

void AddConnectionFlags(CLI::App& app, ProbeOptions& options) {
  app.add_option("address", options.address, "HOST:PORT of the server")->capture_default_str();
  auto* ca =
      app.add_option("--tls-ca", options.tls_ca,
                     "TLS: the authorities that the server's certificate must come from, PEM");
  app.add_option("--tls-server-name", options.tls_server_name,
                 "Name in the server's certificate, when it is not the address's host")
      ->needs(ca);
  auto* cert = app.add_option("--tls-cert", options.tls_cert, "A client certificate, PEM");
  auto* key = app.add_option("--tls-key", options.tls_key, "Its key, PEM");
  cert->needs(ca)->needs(key);
  key->needs(cert);
}

void AddTokenFlag(CLI::App& app, ProbeOptions& options) {
  app.add_option("--token-file", options.token_file, "A file with the bearer token to show");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ProbeOptions& options) {
  if (options.tls_ca.empty()) {
    return grpc::CreateChannel(options.address, grpc::InsecureChannelCredentials());
  }
  grpc::SslCredentialsOptions tls;
  const auto read = [](const std::string& path, std::string& content) -> absl::Status {
    if (path.empty()) return absl::OkStatus();
    auto file = ReadSmallFile(path, kMaxPemBytes);
    if (file.ok()) content = *std::move(file);
    return file.status();
  };
  for (const absl::Status& status :
       {read(options.tls_ca, tls.pem_root_certs), read(options.tls_cert, tls.pem_cert_chain),
        read(options.tls_key, tls.pem_private_key)}) {
    if (!status.ok()) return status;
  }
  grpc::ChannelArguments arguments;
  if (!options.tls_server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls_server_name);
  }
  return grpc::CreateCustomChannel(options.address, grpc::SslCredentials(tls), arguments);
}

absl::StatusOr<std::string> ReadAuthorization(const ProbeOptions& options) {
  if (options.token_file.empty()) return "";
  const auto token = ReadSmallFile(options.token_file, kMaxTokenBytes);
  if (!token.ok()) return token.status();
  // Editors and `echo` end a file with a line's end.
  return absl::StrCat("Bearer ", absl::StripAsciiWhitespace(*token));
}

}  // namespace adapterd
