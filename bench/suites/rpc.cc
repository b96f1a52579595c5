// The real server over loopback TCP and a Unix socket, against raw echoes.
#include "bench/suites/rpc.h"

#include "bench/suite.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {

absl::Status RunRpcSuite(SuiteContext& context) {
  context.report.Begin(
      "rpc", CoreNumbers().size() > 1
                 ? "raw buffers; client and server pinned to a core each, servers with one thread"
                 : "raw buffers; client and server share the one core");
  ASSIGN_OR_RETURN(const auto servers, RpcServers::Start());
  RETURN_IF_ERROR(RunUnaryCalls(context, *servers));
  RETURN_IF_ERROR(RunMergeCalls(context, *servers));
  RETURN_IF_ERROR(RunClients(context, *servers));
  return RunStreams(context, *servers);
}

}  // namespace adapterd::bench
