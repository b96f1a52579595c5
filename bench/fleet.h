// A server with many adapters.
#ifndef ADAPTERD_BENCH_FLEET_H_
#define ADAPTERD_BENCH_FLEET_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/child_server.h"
#include "bench/data.h"
#include "bench/fleet_client.h"
#include "bench/temporary_folder.h"

namespace adapterd::bench {

struct FleetSize {
  size_t adapters = 0;  // that the server knows
  size_t resident = 0;  // that its budget has room for
};

// Small adapters of one shape (one module 64 x 64, rank 8, F32), each with weights of its own, and
// the server beside this binary in a process of its own, with a journal. One thread.
class Fleet {
 public:
  // On disk there are this many more than the server is told of.
  static constexpr size_t kSpares = 128;
  static constexpr int64_t kFeatures = 64;
  static constexpr int64_t kRank = 8;

  // Writes the adapters and starts the server, which knows none of them yet. With a core it runs
  // on that one alone.
  static absl::StatusOr<std::unique_ptr<Fleet>> Create(const FleetSize& size,
                                                       std::optional<int> core);

  // Loads all but the spares, several at a time.
  absl::Status LoadAll();
  // Kills the server and starts another on the same journal; tells how long that took until the
  // ready line.
  absl::StatusOr<absl::Duration> Restart();
  // One ApplyProjection over a new connection, held against the oracle.
  absl::Status VerifyOne(size_t index) const;

  const FleetSize& size() const { return size_; }
  const ChildServer& server() const { return *server_; }
  FleetClient& client() { return *client_; }
  int64_t budget_bytes() const { return budget_bytes_; }

  static std::string NameOf(size_t index);  // also its folder below the adapter root
  static Factors FactorsOf(size_t index);   // what is in that folder
  static Tensor InputOf(size_t index);      // one row to apply it to

 private:
  Fleet(const FleetSize& size, std::optional<int> core) : size_(size), core_(core) {}

  absl::Status WriteFiles() const;
  // With the budget as it is; 0: the server's default.
  absl::Status StartServer(const std::string& data_dir);
  absl::StatusOr<int64_t> MeasureOne();

  const FleetSize size_;
  const std::optional<int> core_;
  std::unique_ptr<TemporaryFolder> folder_;
  int64_t budget_bytes_ = 0;
  std::unique_ptr<ChildServer> server_;
  std::unique_ptr<FleetClient> client_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_FLEET_H_
