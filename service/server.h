// The process: every part in its place, from options to a clean drain.
#ifndef ADAPTERD_SERVICE_SERVER_H_
#define ADAPTERD_SERVICE_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "service/server_options.h"

namespace adapterd {

class ServerParts;

// Listens from Start on, and is ready when Start returns. Drain, then destroy.
class Server {
 public:
  // Opens the roots, takes the ports and loads what --load names and --watch-adapters holds;
  // adapters are served while that goes on, but health and /readyz wait for it. Any failure but
  // that of a watched adapter is an error of one line.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  ~Server();

  // "adapterd ready grpc=HOST:PORT admin=HOST:PORT"
  std::string ReadyLine() const;

  // Takes over what can change while it runs, the memory budget and the log level, from options
  // that were read anew; an error leaves all as it is. Logs either. The access policy is read and
  // the audit log opened anew, whatever the options say.
  void Reload(const absl::StatusOr<ServerOptions>& options);

  // Turns health and readiness off, refuses new requests, lets running ones end within the drain
  // timeout, then cuts them off. True when none had to be cut.
  bool Drain();

 private:
  explicit Server(std::unique_ptr<ServerParts> parts);

  std::unique_ptr<ServerParts> parts_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_SERVER_H_
