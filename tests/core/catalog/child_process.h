// A part of a test in a process of its own, which may be killed.
#ifndef ADAPTERD_TESTS_CORE_CATALOG_CHILD_PROCESS_H_
#define ADAPTERD_TESTS_CORE_CATALOG_CHILD_PROCESS_H_

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <functional>
#include <stdexcept>

namespace adapterd {

// Runs `body` in a forked process, where it may use EXPECT_*: its exit code is 1 after a failure,
// else what it returns. The parent must have no other threads and no open catalogue.
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<int(ChildProcess& self)>& body) {
    if (pipe(pipe_.data()) != 0) throw std::runtime_error("pipe");
    std::fflush(nullptr);  // or the child prints it again
    pid_ = fork();
    if (pid_ < 0) throw std::runtime_error("fork");
    if (pid_ > 0) {
      close(pipe_[1]);
      return;
    }
    close(pipe_[0]);
    const int code = body(*this);
    std::fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 1 : code);
  }
  ~ChildProcess() {
    if (pid_ > 0) Kill();
    close(pipe_[0]);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // In the child: one byte to the parent.
  void Tell() const {
    if (write(pipe_[1], "+", 1) != 1) _exit(1);
  }
  // In the child: until it is killed.
  static void WaitForever() {
    while (true) pause();
  }

  // In the parent: the next byte; false when the child is gone.
  bool Hear() const {
    char byte;
    return read(pipe_[0], &byte, 1) == 1;
  }

  pid_t pid() const { return pid_; }

  void Kill() {
    kill(pid_, SIGKILL);
    Wait();
  }
  // The exit code, -1 when it was killed.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  std::array<int, 2> pipe_;
  pid_t pid_ = -1;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_CATALOG_CHILD_PROCESS_H_
