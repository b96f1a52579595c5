// What clients of a fleet do.
#ifndef ADAPTERD_BENCH_FLEET_TRAFFIC_H_
#define ADAPTERD_BENCH_FLEET_TRAFFIC_H_

#include <cstdint>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "bench/fleet.h"
#include "bench/raw_client.h"

namespace adapterd::bench {

// Ranks by Zipf's law: rank k, from 0 on, in proportion to 1 / (k + 1)^exponent. The same ones in
// every run.
class Zipf {
 public:
  Zipf(size_t ranks, double exponent);
  size_t Next();

 private:
  std::mt19937_64 random_;
  std::vector<double> cumulative_;
};

// What one client saw. The time in which the client itself waited for its core counts nowhere: it
// says something about the machine, nothing about the server.
struct Traffic {
  double seconds = 0;
  std::vector<double> latencies_us;  // of each call

  double calls() const { return static_cast<double>(latencies_us.size()); }
  double rate() const { return calls() / seconds; }
};

// One client that sends one ApplyProjection after the other, each of one row, on one connection.
class Applier {
 public:
  explicit Applier(const Fleet& fleet);

  // Applies the adapters that `next` names until the time is up.
  absl::StatusOr<Traffic> Run(absl::Duration time, absl::FunctionRef<size_t()> next);

 private:
  RawClient client_;
  std::vector<grpc::ByteBuffer> requests_;
};

// Does something again and again on a thread of its own: every `period`, or as soon as the last
// time is over.
class Beside {
 public:
  Beside(absl::Duration period, std::function<absl::Status()> action);
  ~Beside();
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  // How often it was done; the first error, after which it is not done again. Once.
  absl::StatusOr<int64_t> Stop();

 private:
  void Run(absl::Duration period);

  const std::function<absl::Status()> action_;
  absl::Notification stop_;
  absl::Status status_;  // of the thread, until it is joined
  int64_t count_ = 0;
  std::thread thread_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_FLEET_TRAFFIC_H_
