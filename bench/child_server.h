// A gRPC server in a process of its own.
#ifndef ADAPTERD_BENCH_CHILD_SERVER_H_
#define ADAPTERD_BENCH_CHILD_SERVER_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace adapterd::bench {

// Owns the process: kills it by its id at the end. It also dies with the thread that started it.
class ChildServer {
 public:
  // Runs `command`, whose first word is the path of a binary, and waits until it says on standard
  // output where it listens: "... grpc=HOST:PORT ...". Its standard error goes to `log`. With a
  // core it runs on that one alone.
  static absl::StatusOr<std::unique_ptr<ChildServer>> Start(std::vector<std::string> command,
                                                            const std::string& log,
                                                            std::optional<int> core = std::nullopt);
  ~ChildServer();
  ChildServer(const ChildServer&) = delete;
  ChildServer& operator=(const ChildServer&) = delete;

  const std::string& address() const { return address_; }  // HOST:PORT
  absl::StatusOr<absl::Duration> CpuTime() const;          // of all its threads so far
  pid_t pid() const { return pid_; }

 private:
  ChildServer(pid_t pid, int output) : pid_(pid), output_(output) {}

  const pid_t pid_;
  const int output_;  // read end of its standard output
  std::string address_;
};

// The folder that this binary lies in.
std::string OwnFolder();

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_CHILD_SERVER_H_
