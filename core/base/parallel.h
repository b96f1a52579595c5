// A loop whose iterations are shared between the caller and a thread pool.
#ifndef ADAPTERD_CORE_BASE_PARALLEL_H_
#define ADAPTERD_CORE_BASE_PARALLEL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"

namespace adapterd {

// Runs body(0) ... body(count - 1), each once, in no order, on at most pool.threads() threads of
// which the caller is one. Returns when no call is running any more. After the first call that
// fails, and once `cancellation` is set, no further call begins; the answer is that first error, or
// CANCELLED. What a call throws, on whatever thread, is such an error: it is thrown to the caller.
//
// Threads: may be called from any thread, also from a job of `pool` and from all of its threads at
// once: the caller can do all of the work itself, and a helper that starts late finds nothing to
// do. Cost: waking helpers up, some microseconds; none when count < 2. Allocates nothing.
absl::Status ParallelFor(ThreadPool& pool, int64_t count, const Cancellation& cancellation,
                         absl::FunctionRef<absl::Status(int64_t)> body);

// The same by the caller alone, in order.
absl::Status RunInTurn(int64_t count, const Cancellation& cancellation,
                       absl::FunctionRef<absl::Status(int64_t)> body);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_PARALLEL_H_
