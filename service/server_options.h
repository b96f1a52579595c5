// Every knob of the program: flags, environment and config file, in one place.
#ifndef ADAPTERD_SERVICE_SERVER_OPTIONS_H_
#define ADAPTERD_SERVICE_SERVER_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/formats/source_roots.h"
#include "core/registry/tenant_quotas.h"
#include "service/host_limits.h"
#include "service/logger.h"

namespace adapterd {

struct ServerOptions {
  std::string grpc_address = "127.0.0.1:50051";
  std::string unix_socket;  // path; empty: none
  std::string admin_address = "127.0.0.1:9464";
  std::vector<SourceRoots::Root> adapter_roots;
  std::vector<SourceRoots::Root> model_roots;
  std::string output_root;  // path; empty: the model roots
  int64_t memory_budget_bytes = 0;
  int64_t max_message_bytes = int64_t{256} << 20;
  int64_t max_inflight_bytes = 0;
  std::string data_dir;    // path; empty: nothing survives the process
  int keep_revisions = 0;  // replaced ones of each adapter
  int64_t max_upload_bytes = int64_t{4} << 30;
  int threads = 1;                                        // compute workers
  std::vector<std::pair<std::string, std::string>> load;  // NAME, SOURCE
  std::string watch_adapters;                             // path of a folder; empty: none
  absl::Duration drain_timeout = absl::Seconds(25);
  std::string public_id_template = "{base}:{name}";
  TenantQuotas tenant_quotas;
  bool insecure = false;        // plain text beyond loopback
  bool admin_insecure = false;  // the same, for admin HTTP alone
  bool debug_pages = false;     // on admin HTTP
  std::string tls_cert;         // path; empty: gRPC is plain text
  std::string tls_key;
  std::string tls_client_ca;   // path; empty: clients show no certificates
  std::string admin_tls_cert;  // path; empty: admin HTTP is plain text
  std::string admin_tls_key;
  std::string access_policy;  // path; empty: everybody may do everything
  std::string audit_log;      // path, "-": standard output; empty: none
  LogFormat log_format = LogFormat::kText;
  LogLevel log_level = LogLevel::kInfo;
};

// What the command line asks for.
struct Command {
  enum class Kind { kServe, kPrintAndExit, kDigest, kValidate };
  Kind kind = Kind::kServe;
  std::string text;             // kPrintAndExit: what; kDigest, kValidate: the path
  std::string base_checkpoint;  // kValidate: a path; empty: none
  ServerOptions options = {};
};

// Command line before environment (ADAPTERD_...) before --config file before defaults, which depend
// on the host. "--flag=" is the empty string. INVALID_FIELD with one clear line when anything is
// off; that includes plain text beyond loopback without --insecure or, of the admin server,
// --admin-insecure.
absl::StatusOr<Command> ParseCommandLine(int argc, const char* const* argv, const HostLimits& host);

// "512MiB", "4GiB", "1GB", "1000": bytes. Nullopt when it is not a size that fits.
std::optional<int64_t> ParseSize(std::string_view text);

struct HostPort {
  std::string host;  // without brackets
  int port = 0;
};

// "127.0.0.1:50051", "[::1]:0", "localhost:80".
std::optional<HostPort> ParseHostPort(std::string_view address);

// 127.0.0.0/8, ::1 and localhost.
bool IsLoopback(std::string_view host);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_SERVER_OPTIONS_H_
