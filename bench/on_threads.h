// The same call on several threads at once.
#ifndef ADAPTERD_BENCH_ON_THREADS_H_
#define ADAPTERD_BENCH_ON_THREADS_H_

#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {

// call(0) ... call(threads - 1), each on a thread of its own; the first error of any.
template <typename Call>
absl::Status OnThreads(int threads, Call call) {
  std::vector<absl::Status> results(threads);
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) running.emplace_back([&, i] { results[i] = call(i); });
  for (std::thread& thread : running) thread.join();
  for (absl::Status& status : results) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ON_THREADS_H_
