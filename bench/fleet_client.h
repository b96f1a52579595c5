// What changes and watches the adapters of a server.
#ifndef ADAPTERD_BENCH_FLEET_CLIENT_H_
#define ADAPTERD_BENCH_FLEET_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_service.grpc.pb.h"

namespace adapterd::bench {

// The totals of one moment.
struct FleetState {
  int64_t adapters = 0;
  int64_t resident = 0;
  int64_t memory_bytes = 0;
  int64_t budget_bytes = 0;
  int64_t sequence = 0;  // grows by one with every load, unload, eviction, return, ...
};

// One connection for the control plane. Any thread; a call waits for its answer.
class FleetClient {
 public:
  explicit FleetClient(const std::string& address);

  absl::Status Load(const std::string& name, const std::string& source, bool replace = false);
  absl::Status Unload(const std::string& name);
  absl::StatusOr<v1::ListAdaptersResponse> Page(int64_t page_size, const std::string& token);
  absl::StatusOr<FleetState> State();

 private:
  const std::unique_ptr<v1::AdapterService::Stub> stub_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_FLEET_CLIENT_H_
