#include "bench/child_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr std::string_view kAddressKey = "grpc=";
constexpr int kExecFailed = 127;

// Runs in the child, between fork and exec: only calls that are safe there.
[[noreturn]] void Become(char* const* arguments, int output, const char* log,
                         const cpu_set_t* cores) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (cores != nullptr) sched_setaffinity(0, sizeof(*cores), cores);
  dup2(output, STDOUT_FILENO);
  const int error = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (error >= 0) dup2(error, STDERR_FILENO);
  execv(arguments[0], arguments);
  constexpr std::string_view kMessage = "cannot be executed";
  (void)!write(STDERR_FILENO, kMessage.data(), kMessage.size());
  _exit(kExecFailed);
}

// The address in a complete line, if there is one yet.
std::optional<std::string> FindAddress(std::string_view output) {
  const size_t key = output.find(kAddressKey);
  if (key == std::string_view::npos) return std::nullopt;
  const std::string_view rest = output.substr(key + kAddressKey.size());
  const size_t end = rest.find_first_of(" \n");
  if (end == std::string_view::npos) return std::nullopt;
  return std::string(rest.substr(0, end));
}

// Appends what comes next; false when nothing came, or nothing ever will.
bool ReadMore(int file, absl::Time deadline, std::string& text) {
  const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
  pollfd poll_file = {file, POLLIN, 0};
  if (poll(&poll_file, 1, static_cast<int>(absl::ToInt64Milliseconds(left))) <= 0) return false;
  char buffer[4096];
  const ssize_t count = read(file, buffer, sizeof(buffer));
  if (count > 0) text.append(buffer, static_cast<size_t>(count));
  return count > 0;
}

std::string ContentOf(const std::string& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

absl::StatusOr<std::string> WaitForAddress(int file, const std::string& what,
                                           const std::string& log) {
  const absl::Time deadline = absl::Now() + kStartTimeout;
  std::string output;
  do {
    if (std::optional<std::string> address = FindAddress(output)) return *std::move(address);
  } while (ReadMore(file, deadline, output));
  return absl::UnavailableError(fmt::format("{} did not start: {}", what, ContentOf(log)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildServer>> ChildServer::Start(std::vector<std::string> command,
                                                                const std::string& log,
                                                                std::optional<int> core) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (core) CPU_SET(*core, &cores);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  const pid_t pid = fork();
  if (pid == 0) Become(arguments.data(), ends[1], log.c_str(), core ? &cores : nullptr);
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return absl::ErrnoToStatus(errno, "fork");
  }
  std::unique_ptr<ChildServer> server(new ChildServer(pid, ends[0]));
  ASSIGN_OR_RETURN(server->address_, WaitForAddress(ends[0], command[0], log));
  return server;
}

ChildServer::~ChildServer() {
  kill(pid_, SIGKILL);  // it holds nothing that is worth a graceful end
  waitpid(pid_, nullptr, 0);
  close(output_);
}

absl::StatusOr<absl::Duration> ChildServer::CpuTime() const {
  clockid_t clock;
  timespec time;
  const int error = clock_getcpuclockid(pid_, &clock);
  if (error != 0) return absl::ErrnoToStatus(error, "clock_getcpuclockid");
  if (clock_gettime(clock, &time) != 0) return absl::ErrnoToStatus(errno, "clock_gettime");
  return absl::DurationFromTimespec(time);
}

std::string OwnFolder() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

}  // namespace adapterd::bench
