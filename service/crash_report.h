// What a crash leaves behind.
#ifndef ADAPTERD_SERVICE_CRASH_REPORT_H_
#define ADAPTERD_SERVICE_CRASH_REPORT_H_

namespace adapterd {

// From now on, a SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT (also of std::terminate) writes its
// name and the stack of the thread that it hits to standard error, and ends the process as it would
// have without this. `program` is argv[0]. Once, before there are other threads.
void ReportCrashes(const char* program);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_CRASH_REPORT_H_
