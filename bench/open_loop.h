// A client that sends calls when they are due, whatever became of those before.
#ifndef ADAPTERD_BENCH_OPEN_LOOP_H_
#define ADAPTERD_BENCH_OPEN_LOOP_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/raw_client.h"

namespace adapterd::bench {

struct OpenLoopResult {
  double seconds = 0;               // that calls were sent for
  std::vector<double> accepted_us;  // sorted; from when a call was due to its answer
  int64_t refused = 0;              // UNAVAILABLE
  double answers_per_second = 0;    // right ones, until the last of them
};

// ApplyProjection of one request, at times of a Poisson process of `per_second`, over a few
// connections. Other errors than UNAVAILABLE, and replies that are not `reply_bytes` long, are
// errors. Two threads besides the caller's.
absl::StatusOr<OpenLoopResult> RunOpenLoop(const std::string& address, double per_second,
                                           absl::Duration time, const grpc::ByteBuffer& request,
                                           size_t reply_bytes);

// Asks for the server's health every few milliseconds until it is destroyed.
class HealthProbe {
 public:
  explicit HealthProbe(const std::string& address);
  ~HealthProbe();

  // Ends it. The slowest answer so far, in ms; an error when one was none.
  absl::StatusOr<double> SlowestMs();

 private:
  void Run();

  RawClient client_;
  std::atomic<bool> stop_ = false;
  absl::Status status_;  // these two are the thread's until it has ended
  double slowest_ms_ = 0;
  std::thread thread_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_OPEN_LOOP_H_
