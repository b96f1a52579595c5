// adapterd: the server, and the few things its binary does without serving.
#include <fmt/format.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <functional>

#include "absl/synchronization/mutex.h"
#include "service/crash_report.h"
#include "service/offline.h"
#include "service/server.h"
#include "service/server_options.h"
#include "service/status_convert.h"

namespace adapterd {
namespace {

constexpr int kExitFailed = 2;
constexpr int kExitInvalid = 1;  // --validate found errors
constexpr int kExitCutOff = 1;   // requests were still running when the drain timeout ended

// Buffers of request size stay mapped between requests: page faults cost more than the copies.
constexpr int kMmapThreshold = 32 << 20;
constexpr int kTrimThreshold = 1 << 30;

int Fail(const absl::Status& status) {
  std::string line = ClampUtf8(std::string(status.message()), kMaxErrorMessageBytes);
  for (char& c : line) c = c == '\n' ? ' ' : c;
  fmt::print(stderr, "adapterd: {}\n", line);
  return kExitFailed;
}

void DropGrpcLog(gpr_log_func_args*) {}

int PrintDigest(const std::string& path, int threads) {
  const absl::StatusOr<std::string> revision = DigestOf(path, threads);
  if (!revision.ok()) return Fail(revision.status());
  fmt::print("{}\n", *revision);
  return EXIT_SUCCESS;
}

int PrintValidation(const Command& command) {
  const absl::StatusOr<ValidationReport> report = ValidateFolder(command);
  if (!report.ok()) return Fail(report.status());
  fmt::print("{}", report->text);
  return report->valid ? EXIT_SUCCESS : kExitInvalid;
}

// Blocks the signals on every thread that is started afterwards, so that only sigwait sees them.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGHUP);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a write beyond the limit of file sizes fails instead
  return signals;
}

// gRPC 1.51 never accepts again once it has found no descriptor left, so there should be as many as
// the system allows.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// `read_options` reads flags, environment and config file anew.
int Serve(const ServerOptions& options,
          const std::function<absl::StatusOr<Command>()>& read_options) {
  const sigset_t signals = BlockSignals();
  RaiseDescriptorLimit();
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) return Fail(server.status());
  fmt::print("{}\n", (*server)->ReadyLine());
  std::fflush(stdout);
  int received = SIGHUP;
  while (sigwait(&signals, &received) == 0 && received == SIGHUP) {
    const absl::StatusOr<Command> command = read_options();
    (*server)->Reload(command.ok() ? absl::StatusOr<ServerOptions>(command->options)
                                   : command.status());
  }
  return (*server)->Drain() ? EXIT_SUCCESS : kExitCutOff;
}

int Main(int argc, char** argv) {
  ReportCrashes(argv[0]);
  mallopt(M_MMAP_THRESHOLD, kMmapThreshold);
  mallopt(M_TRIM_THRESHOLD, kTrimThreshold);
  // Debian's Abseil looks for deadlocks at every lock, which costs more than the lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // What gRPC would print about a port or a peer, our own errors say in one line.
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function(DropGrpcLog);
  const auto read_options = [&] { return ParseCommandLine(argc, argv, ReadHostLimits()); };
  const absl::StatusOr<Command> command = read_options();
  if (!command.ok()) return Fail(command.status());
  switch (command->kind) {
    case Command::Kind::kPrintAndExit:
      fmt::print("{}", command->text);
      return EXIT_SUCCESS;
    case Command::Kind::kDigest:
      return PrintDigest(command->text, command->options.threads);
    case Command::Kind::kValidate:
      return PrintValidation(*command);
    default:
      return Serve(command->options, read_options);
  }
}

}  // namespace
}  // namespace adapterd

int main(int argc, char** argv) { return adapterd::Main(argc, argv); }
