#include "bench/load_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/status/status.h"
#include "bench/loader.h"
#include "bench/machine.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr char kOwnBinary[] = "/proc/self/exe";

absl::StatusOr<LoadMemory> LoadOnce(const std::string& root, const std::string& adapter) {
  ASSIGN_OR_RETURN(const auto loader, Loader::Create(root, adapter));
  LoadMemory memory;
  ASSIGN_OR_RETURN(const int64_t before, AnonymousBytes());
  RETURN_IF_ERROR(loader->Load());
  ASSIGN_OR_RETURN(memory.reserved_bytes, loader->UseAllModules(DType::kBF16));
  ASSIGN_OR_RETURN(const int64_t after, AnonymousBytes());
  memory.anonymous_bytes = after - before;
  RETURN_IF_ERROR(loader->Unload());
  return memory;
}

// Runs the binary with its standard output on `output`.
absl::StatusOr<pid_t> Spawn(const PeftFolder& folder, int output) {
  std::string flag = kLoadMemoryFlag;
  std::string root = folder.root();
  std::string adapter = folder.adapter();
  std::string name = kOwnBinary;
  char* const arguments[] = {name.data(), flag.data(), root.data(), adapter.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  pid_t child = 0;
  const int error = posix_spawn(&child, kOwnBinary, &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return absl::ErrnoToStatus(error, "posix_spawn");
  return child;
}

}  // namespace

int RunLoadMemory(const std::string& root, const std::string& adapter) {
  const absl::StatusOr<LoadMemory> memory = LoadOnce(root, adapter);
  if (!memory.ok()) {
    fmt::print(stderr, "{}\n", std::string(memory.status().message()));
    return EXIT_FAILURE;
  }
  fmt::print("{} {}\n", memory->reserved_bytes, memory->anonymous_bytes);
  return EXIT_SUCCESS;
}

absl::StatusOr<LoadMemory> MeasureLoadMemory(const PeftFolder& folder) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> answer(fdopen(ends[0], "r"), std::fclose);
  const absl::StatusOr<pid_t> child = Spawn(folder, ends[1]);
  close(ends[1]);
  RETURN_IF_ERROR(child.status());
  LoadMemory memory;
  const int numbers =
      std::fscanf(answer.get(), "%ld %ld", &memory.reserved_bytes, &memory.anonymous_bytes);
  int exit_status = 0;
  waitpid(*child, &exit_status, 0);
  if (numbers != 2 || exit_status != 0) return absl::InternalError("the measuring process failed");
  return memory;
}

}  // namespace adapterd::bench
