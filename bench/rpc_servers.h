// A server with one adapter, and the transport alone beside it.
#ifndef ADAPTERD_BENCH_RPC_SERVERS_H_
#define ADAPTERD_BENCH_RPC_SERVERS_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "bench/child_server.h"
#include "bench/data.h"
#include "bench/machine.h"
#include "bench/peft_folder.h"
#include "bench/projection_case.h"

namespace adapterd::bench {

// Both servers are processes of their own on the last core, of which only one is busy at a time;
// the thread that started them has the first core, and so do the threads that it starts. With one
// core only nothing is pinned. One thread.
class RpcServers {
 public:
  static constexpr int64_t kFeatures = 4096;
  static constexpr int64_t kRank = 16;
  static constexpr char kAdapter[] = "bench";  // factors() for each of kPeftModules, BF16

  static absl::StatusOr<std::unique_ptr<RpcServers>> Start();

  const Factors& factors() const { return factors_; }
  const ChildServer& adapterd() const { return *adapterd_; }
  const std::string& echo() const { return echo_->address(); }  // HOST:PORT
  std::string adapterd_unix() const { return "unix:" + Socket("adapterd"); }

  // What a call of so many rows computes, in this process, on as many threads as the server has.
  absl::StatusOr<std::unique_ptr<ProjectionCase>> KernelOf(int64_t rows);
  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return *pool_; }

 private:
  RpcServers() : factors_(DType::kBF16, kFeatures, kRank) {}
  std::string Socket(const std::string& name) const { return folder_->root() / (name + ".sock"); }

  const Factors factors_;
  const Kernels kernels_;
  std::unique_ptr<PeftFolder> folder_;
  std::unique_ptr<ChildServer> adapterd_;
  std::unique_ptr<ChildServer> echo_;
  std::optional<PinnedThread> pinned_;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_RPC_SERVERS_H_
