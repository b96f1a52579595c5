#include "service/crash_report.h"

#include <execinfo.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>

#include "absl/debugging/symbolize.h"

namespace adapterd {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
constexpr int kMaxFrames = 64;
constexpr size_t kMaxLine = 512;
// Of the thread that calls ReportCrashes; others report from their own, unless that overflowed.
constexpr size_t kStackBytes = 256 << 10;

void WriteLine(const char* line, int length) {
  const auto size =
      static_cast<size_t>(length) < kMaxLine ? static_cast<size_t>(length) : kMaxLine - 1;
  if (write(STDERR_FILENO, line, size) < 0) return;  // nowhere to tell it
}

// Calls only what works in a signal handler, or has been called before and needs no memory since.
void Report(int number) {
  std::array<char, kMaxLine> line;
  WriteLine(line.data(), std::snprintf(line.data(), line.size(),
                                       "*** SIG%s, stack of the thread:\n", sigabbrev_np(number)));
  std::array<void*, kMaxFrames> frames;
  const int count = backtrace(frames.data(), kMaxFrames);
  for (int i = 0; i < count; ++i) {
    std::array<char, kMaxLine / 2> name;
    // Return addresses lie behind the call.
    auto* const call = static_cast<char*>(frames[i]) - 1;
    const bool is_known = absl::Symbolize(call, name.data(), static_cast<int>(name.size()));
    WriteLine(line.data(), std::snprintf(line.data(), line.size(), "    %p %s\n", frames[i],
                                         is_known ? name.data() : "?"));
  }
}

void OnCrash(int number) {
  Report(number);
  raise(number);  // SA_RESETHAND: ends the process when this returns
}

}  // namespace

void ReportCrashes(const char* program) {
  absl::InitializeSymbolizer(program);
  void* frame;
  backtrace(&frame, 1);  // loads what it needs
  static std::array<char, kStackBytes> stack;
  const stack_t other = {.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
  sigaltstack(&other, nullptr);
  struct sigaction action = {};
  action.sa_handler = OnCrash;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_ONSTACK);
  for (const int number : kSignals) sigaction(number, &action, nullptr);
}

}  // namespace adapterd
