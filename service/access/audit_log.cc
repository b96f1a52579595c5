#include "service/access/audit_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

constexpr char kStandardOutput[] = "-";
constexpr mode_t kMode = 0640;  // names of subjects and adapters are not for everybody

std::string Line(const AuditRecord& record) {
  nlohmann::ordered_json json = {
      {"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone())},
      {"subject", record.subject}};
  if (!record.role.empty()) json["role"] = record.role;
  json["peer"] = record.peer;
  json["transport"] = record.transport;
  json["method"] = record.method;
  for (const AuditField& field : record.fields) {
    nlohmann::ordered_json& value = json[std::string(field.key)];
    if (field.is_list) {
      value = field.values;
    } else {
      value = field.values.at(0);
    }
  }
  json["code"] = record.code;
  if (!record.reason.empty()) json["reason"] = record.reason;
  json["request_id"] = record.request_id;
  // Invalid UTF-8 is replaced; ASCII alone, so that no reader sees a line break in a name.
  return json.dump(-1, ' ', /*ensure_ascii=*/true,
                   nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace

absl::StatusOr<std::unique_ptr<AuditLog>> AuditLog::Open(const std::string& path, Metrics& metrics,
                                                         Logger& logger) {
  std::unique_ptr<AuditLog> log(new AuditLog(path, metrics, logger));
  absl::MutexLock lock(&log->mutex_);
  RETURN_IF_ERROR(log->OpenFile());
  return log;
}

absl::Status AuditLog::OpenFile() {
  ScopedFd file(path_ == kStandardOutput
                    ? dup(STDOUT_FILENO)
                    : open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, kMode));
  if (!file.valid()) {
    return Error(Reason::kSourceUnavailable,
                 fmt::format("--audit-log: {}: {}", path_, std::strerror(errno)));
  }
  file_ = std::move(file);
  torn_ = false;
  return absl::OkStatus();
}

bool AuditLog::WasRotated() const {
  if (path_ == kStandardOutput) return false;
  struct stat named;
  struct stat opened;
  return stat(path_.c_str(), &named) != 0 || fstat(file_.get(), &opened) != 0 ||
         named.st_dev != opened.st_dev || named.st_ino != opened.st_ino;
}

absl::Status AuditLog::Append(const std::string& line) {
  const std::string text = torn_ ? "\n" + line : line;
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = write(file_.get(), text.data() + written, text.size() - written);
    if (count > 0) {
      written += static_cast<size_t>(count);
    } else if (count < 0 && errno != EINTR) {
      torn_ = torn_ || written > 0;
      return Error(Reason::kStorageFull, fmt::format("{}: {}", path_, std::strerror(errno)));
    }
  }
  torn_ = false;
  return absl::OkStatus();
}

void AuditLog::Write(const AuditRecord& record) {
  const std::string line = Line(record);
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    if (WasRotated()) status = OpenFile();
    status.Update(Append(line));
  }
  if (!status.ok()) Failed(status);
}

void AuditLog::Reopen() {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    status = OpenFile();
  }
  if (!status.ok()) Failed(status);
}

void AuditLog::Failed(const absl::Status& status) {
  metrics_.AuditFailed();
  logger_.Log(LogLevel::kError, "audit_failed",
              {{"message", static_cast<std::string>(status.message())}});
}

}  // namespace adapterd
