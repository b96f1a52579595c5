// Who changed what: one JSON line for each call that may change something.
#ifndef ADAPTERD_SERVICE_ACCESS_AUDIT_LOG_H_
#define ADAPTERD_SERVICE_ACCESS_AUDIT_LOG_H_

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/formats/scoped_fd.h"
#include "service/logger.h"
#include "service/metrics.h"

namespace adapterd {

// What a line says of the request and its answer: {"adapter", {"x"}}. Lists stay lists in the line.
struct AuditField {
  std::string_view key;
  std::vector<std::string> values;
  bool is_list = false;
};

struct AuditRecord {
  std::string subject;
  std::string_view role;  // empty without a policy
  std::string peer;       // "ipv4:10.0.0.7:41234", "unix:"
  std::string_view transport;
  std::string method;  // "adapterd.v1.AdapterService/LoadAdapter"
  std::vector<AuditField> fields;
  std::string code;
  std::string_view reason;  // of an error
  std::string request_id;
};

// Appends whole lines to a file, which is opened anew when another one has taken its place: log
// rotation only has to rename it. A line that cannot be written is an error in the log and counts
// in a metric; the call it is about is not undone, and the next ones are not refused.
//
// Any thread. A line costs a write, under a lock.
class AuditLog {
 public:
  // `path`: "-" is standard output. SOURCE_UNAVAILABLE when it cannot be opened.
  static absl::StatusOr<std::unique_ptr<AuditLog>> Open(const std::string& path, Metrics& metrics,
                                                        Logger& logger);

  void Write(const AuditRecord& record) ABSL_LOCKS_EXCLUDED(mutex_);

  // Opens the file anew; when that fails the open one stays in use.
  void Reopen() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  AuditLog(std::string path, Metrics& metrics, Logger& logger)
      : path_(std::move(path)), metrics_(metrics), logger_(logger) {}

  absl::Status OpenFile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WasRotated() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Append(const std::string& line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Failed(const absl::Status& status);

  const std::string path_;
  Metrics& metrics_;
  Logger& logger_;

  absl::Mutex mutex_;
  ScopedFd file_ ABSL_GUARDED_BY(mutex_);
  bool torn_ ABSL_GUARDED_BY(mutex_) = false;  // the last line was written in part
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_AUDIT_LOG_H_
