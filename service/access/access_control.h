// The one place that decides whether a call may be made.
#ifndef ADAPTERD_SERVICE_ACCESS_ACCESS_CONTROL_H_
#define ADAPTERD_SERVICE_ACCESS_ACCESS_CONTROL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "service/access/access_policy.h"
#include "service/access/method_rules.h"
#include "service/logger.h"
#include "service/metrics.h"

namespace adapterd {

// Longer headers are refused unread.
inline constexpr size_t kMaxAuthorizationBytes = 4096;
// How soon a new policy file is noticed.
inline constexpr absl::Duration kPolicyPeriod = absl::Seconds(1);

// What a call shows of who makes it.
struct Credentials {
  std::vector<std::string> authorization;  // every header of that name
  std::vector<std::string> sans;           // of the client certificate that TLS has verified
};

using CallerPtr = std::shared_ptr<const Caller>;

// Holds the policy of a file and reads it anew when its content changes, on a thread of its own
// ("access"). A file that cannot be read or is no policy changes nothing; the log and a metric
// tell.
//
// Any thread. Admit costs a short lock, one SHA-256 of the token, and a comparison with each token.
class AccessControl {
 public:
  // The error of one line when there is no policy to begin with.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Open(const std::string& path,
                                                             Metrics& metrics, Logger& logger);
  ~AccessControl();
  AccessControl(const AccessControl&) = delete;
  AccessControl& operator=(const AccessControl&) = delete;

  // Who it is, if that caller may call what `rule` is of. UNAUTHENTICATED without saying what was
  // wrong; PERMISSION_DENIED with the role that is needed, also when `rule` is null. `caller` is
  // set once it is known, also when it may not.
  absl::Status Admit(const Credentials& credentials, const MethodRule* rule,
                     CallerPtr& caller) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Rises with each policy that is taken over, and is never 0: who was admitted at another one may
  // have lost the right.
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

  // Reads the file now, whether it has changed or not.
  void Reload() ABSL_LOCKS_EXCLUDED(reading_, mutex_);

 private:
  AccessControl(std::string path, std::string text, AccessPolicy policy, Metrics& metrics,
                Logger& logger);

  CallerPtr Identify(const Credentials& credentials) const ABSL_LOCKS_EXCLUDED(mutex_);
  void Run() ABSL_LOCKS_EXCLUDED(reading_, mutex_);
  void Read() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_) ABSL_LOCKS_EXCLUDED(mutex_);
  void Log(const absl::Status& status, const AccessPolicy* policy);

  const std::string path_;
  Metrics& metrics_;
  Logger& logger_;

  std::atomic<uint64_t> generation_{1};

  absl::Mutex reading_;                          // held while the file is read
  std::string tried_ ABSL_GUARDED_BY(reading_);  // the text, or the error, that was read last

  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(reading_);
  std::shared_ptr<const AccessPolicy> policy_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_ACCESS_CONTROL_H_
