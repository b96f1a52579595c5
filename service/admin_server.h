// HTTP for operators: /metrics, /healthz, /readyz, the status page at /, and pages below /debug/.
#ifndef ADAPTERD_SERVICE_ADMIN_SERVER_H_
#define ADAPTERD_SERVICE_ADMIN_SERVER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "service/server_options.h"
#include "service/status_page.h"
#include "service/tls/certificate_files.h"

namespace httplib {
class Server;
}

namespace adapterd {

struct AdminPages {
  std::function<std::string()> metrics;  // Prometheus text
  std::function<bool()> ready;           // start-up loads are done and the server is not draining
  std::function<std::string(const StatusQuery&)> status;  // JSON for the status page
  // JSON, by path below /debug/. Empty: there are none.
  std::map<std::string, std::function<std::string()>> debug;
};

// Serves on threads of its own from Start until the destructor.
class AdminServer {
 public:
  // SOURCE_UNAVAILABLE when the port cannot be had. Port 0 picks one. Plain text without
  // `certificates`, which outlive it; else TLS 1.2 or newer, with what they are at each handshake.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(
      const HostPort& address, const AdminPages& pages, CertificateFiles* certificates = nullptr);
  ~AdminServer();

  int port() const { return port_; }

 private:
  explicit AdminServer(CertificateFiles* certificates);

  std::unique_ptr<httplib::Server> server_;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADMIN_SERVER_H_
