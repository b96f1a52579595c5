#include "service/admin_server.h"

#include <fmt/format.h>
#include <httplib.h>

#include "core/base/error.h"

namespace adapterd {
namespace {

// A scraper and a probe need two; whoever is slow holds one for kTimeoutSeconds a read.
constexpr size_t kThreads = 16;
constexpr size_t kMaxRequestBytes = 64 << 10;
constexpr time_t kTimeoutSeconds = 5;
constexpr char kMetricsType[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr char kTextType[] = "text/plain; charset=utf-8";

void ReuseAddressOnly(socket_t socket) {
  // The library's default also sets SO_REUSEPORT, which would let two servers share a port unseen.
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

void SetPage(httplib::Response& response, const std::string& text, const char* type) {
  response.set_content(text, type);
  response.set_header("Content-Security-Policy", StatusPagePolicy());
  response.set_header("X-Content-Type-Options", "nosniff");
  response.set_header("Referrer-Policy", "no-referrer");
  response.set_header("Cache-Control", "no-store");
}

void ServeStatusPage(const AdminPages& pages, httplib::Server& server) {
  server.Get("/", [](const httplib::Request&, httplib::Response& response) {
    SetPage(response, StatusPageHtml(), "text/html; charset=utf-8");
  });
  server.Get("/status.json", [pages](const httplib::Request& request, httplib::Response& response) {
    const absl::StatusOr<StatusQuery> query = ReadStatusQuery(request.params);
    if (query.ok()) {
      SetPage(response, pages.status(*query), "application/json");
    } else {
      response.status = 400;
      SetPage(response, std::string(query.status().message()) + "\n", kTextType);
    }
  });
}

// Puts the certificates of now into a handshake.
int UseCertificates(SSL* ssl, void* files) {
  const auto current = static_cast<CertificateFiles*>(files)->Current();
  bool ok = SSL_use_certificate(ssl, current->chain.front().get()) == 1 &&
            SSL_use_PrivateKey(ssl, current->key.get()) == 1;
  for (size_t i = 1; i < current->chain.size(); ++i) {
    ok = ok && SSL_add1_chain_cert(ssl, current->chain[i].get()) == 1;
  }
  return ok ? 1 : 0;
}

std::unique_ptr<httplib::Server> MakeServer(CertificateFiles* certificates) {
  if (certificates == nullptr) return std::make_unique<httplib::Server>();
  return std::make_unique<httplib::SSLServer>([certificates](SSL_CTX& context) {
    SSL_CTX_set_cert_cb(&context, UseCertificates, certificates);
    return SSL_CTX_set_min_proto_version(&context, TLS1_2_VERSION) == 1;
  });
}

}  // namespace

AdminServer::AdminServer(CertificateFiles* certificates) : server_(MakeServer(certificates)) {}

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const HostPort& address,
                                                                const AdminPages& pages,
                                                                CertificateFiles* certificates) {
  std::unique_ptr<AdminServer> admin(new AdminServer(certificates));
  httplib::Server& server = *admin->server_;
  server.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  server.set_socket_options(ReuseAddressOnly);
  server.set_payload_max_length(kMaxRequestBytes);
  server.set_read_timeout(kTimeoutSeconds);
  server.set_write_timeout(kTimeoutSeconds);
  // One request a connection: an idle one would hold a thread, and the shutdown, for seconds.
  server.set_keep_alive_max_count(1);
  server.Get("/metrics", [pages](const httplib::Request&, httplib::Response& response) {
    response.set_content(pages.metrics(), kMetricsType);
  });
  server.Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("ok\n", kTextType);
  });
  server.Get("/readyz", [pages](const httplib::Request&, httplib::Response& response) {
    const bool ready = pages.ready();
    response.status = ready ? 200 : 503;
    response.set_content(ready ? "ready\n" : "not ready\n", kTextType);
  });
  ServeStatusPage(pages, server);
  for (const auto& [name, page] : pages.debug) {
    server.Get("/debug/" + name, [page = page](const httplib::Request&, httplib::Response& reply) {
      SetPage(reply, page(), "application/json");
    });
  }
  admin->port_ = address.port;
  if (address.port == 0) {
    admin->port_ = server.bind_to_any_port(address.host);
  } else if (!server.bind_to_port(address.host, address.port)) {
    admin->port_ = -1;
  }
  if (admin->port_ <= 0) {
    return Error(Reason::kSourceUnavailable,
                 fmt::format("cannot listen on {}:{} for the admin server; is the port taken?",
                             address.host, address.port));
  }
  admin->thread_ = std::thread([&server] { server.listen_after_bind(); });
  while (!server.is_running()) std::this_thread::yield();  // stop() works from here on
  return admin;
}

AdminServer::~AdminServer() {
  server_->stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace adapterd
