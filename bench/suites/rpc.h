// The parts of the rpc suite. Each adds its rows.
#ifndef ADAPTERD_BENCH_SUITES_RPC_H_
#define ADAPTERD_BENCH_SUITES_RPC_H_

#include "absl/status/status.h"
#include "bench/rpc_servers.h"
#include "bench/suite.h"

namespace adapterd::bench {

absl::Status RunUnaryCalls(SuiteContext& context, RpcServers& servers);
absl::Status RunMergeCalls(SuiteContext& context, RpcServers& servers);
absl::Status RunClients(SuiteContext& context, RpcServers& servers);
absl::Status RunStreams(SuiteContext& context, RpcServers& servers);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_SUITES_RPC_H_
