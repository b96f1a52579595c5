// Clients that each send the next call once the last one is answered.
#ifndef ADAPTERD_BENCH_CLOSED_LOOP_H_
#define ADAPTERD_BENCH_CLOSED_LOOP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/raw_client.h"

namespace adapterd::bench {

// As many threads as clients, each with a connection of its own. One caller.
class ClosedLoop {
 public:
  ClosedLoop(const std::string& address, int clients);

  // Sends `request` until the time is up and adds what it saw.
  absl::Status Run(absl::Duration time, const grpc::ByteBuffer& request, size_t reply_bytes);
  // Sends so many calls in all, each client in turns from the requests; records nothing.
  absl::Status Send(int64_t calls, const std::vector<grpc::ByteBuffer>& requests);

  // Of all Runs.
  std::vector<double> SortedLatenciesUs() const;
  double seconds() const { return seconds_; }

 private:
  std::vector<std::unique_ptr<RawClient>> clients_;
  std::vector<std::vector<double>> latencies_us_;  // of each client
  double seconds_ = 0;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_CLOSED_LOOP_H_
