#include "service/access/access_control.h"

#include <fmt/format.h>
#include <pthread.h>

#include <utility>

#include "absl/strings/match.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/small_file.h"

namespace adapterd {
namespace {

constexpr std::string_view kScheme = "bearer ";  // in any case

// The token of a header; empty when it has none.
std::string_view BearerToken(std::string_view header) {
  if (header.size() > kMaxAuthorizationBytes || header.size() <= kScheme.size()) return "";
  if (!absl::EqualsIgnoreCase({header.data(), kScheme.size()}, {kScheme.data(), kScheme.size()})) {
    return "";
  }
  return header.substr(kScheme.size());
}

// The same for every reason, so that guesses learn nothing.
absl::Status Unauthenticated() {
  return Error(Reason::kUnauthenticated,
               "this call needs a valid bearer token or client certificate");
}

absl::Status Denied(const MethodRule* rule, const Caller& caller) {
  if (rule == nullptr) {
    return Error(Reason::kPermissionDenied, "no role may call this method: it has no rule");
  }
  return Error(Reason::kPermissionDenied,
               fmt::format("{} needs the role {}", rule->method, RoleName(rule->role)))
      .With("expected", std::string(RoleName(rule->role)))
      .With("actual", std::string(RoleName(caller.role)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Open(const std::string& path,
                                                                   Metrics& metrics,
                                                                   Logger& logger) {
  ASSIGN_OR_RETURN(std::string text, ReadSmallFile(path, kMaxPolicyBytes));
  absl::StatusOr<AccessPolicy> policy = ParseAccessPolicy(text);
  if (!policy.ok()) {
    return Error(Reason::kInvalidField,
                 fmt::format("{}: {}", path, static_cast<std::string>(policy.status().message())));
  }
  return std::unique_ptr<AccessControl>(
      new AccessControl(path, std::move(text), *std::move(policy), metrics, logger));
}

AccessControl::AccessControl(std::string path, std::string text, AccessPolicy policy,
                             Metrics& metrics, Logger& logger)
    : path_(std::move(path)),
      metrics_(metrics),
      logger_(logger),
      tried_(std::move(text)),
      policy_(std::make_shared<const AccessPolicy>(std::move(policy))) {
  Log(absl::OkStatus(), policy_.get());
  thread_ = std::thread([this] { Run(); });
}

AccessControl::~AccessControl() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

CallerPtr AccessControl::Identify(const Credentials& credentials) const {
  std::shared_ptr<const AccessPolicy> policy;
  {
    absl::MutexLock lock(&mutex_);
    policy = policy_;
  }
  const Caller* caller = nullptr;
  if (!credentials.authorization.empty()) {
    // Of two headers nobody can say which is meant; and a wrong token is never made up for by a
    // certificate or by what everybody may do.
    const std::string_view token =
        credentials.authorization.size() == 1 ? BearerToken(credentials.authorization[0]) : "";
    caller = token.empty() ? nullptr : policy->FindToken(token);
  } else {
    caller = policy->FindCertificate(credentials.sans);
    if (caller == nullptr) caller = policy->anonymous();
  }
  return caller == nullptr ? nullptr : CallerPtr(std::move(policy), caller);
}

absl::Status AccessControl::Admit(const Credentials& credentials, const MethodRule* rule,
                                  CallerPtr& caller) const {
  caller = Identify(credentials);
  if (caller == nullptr) return Unauthenticated();
  if (rule == nullptr || caller->role < rule->role) return Denied(rule, *caller);
  return absl::OkStatus();
}

void AccessControl::Reload() {
  absl::MutexLock lock(&reading_);
  tried_.clear();
  Read();
}

void AccessControl::Run() {
  pthread_setname_np(pthread_self(), "access");
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      const auto stopping = +[](bool* stop) { return *stop; };
      if (mutex_.AwaitWithTimeout(absl::Condition(stopping, &stopping_), kPolicyPeriod)) return;
    }
    absl::MutexLock lock(&reading_);
    Read();
  }
}

void AccessControl::Read() {
  absl::StatusOr<std::string> text = ReadSmallFile(path_, kMaxPolicyBytes);
  std::string read = text.ok() ? *text : static_cast<std::string>(text.status().message());
  if (read == tried_) return;
  tried_ = std::move(read);
  absl::StatusOr<AccessPolicy> policy =
      text.ok() ? ParseAccessPolicy(*text) : absl::StatusOr<AccessPolicy>(text.status());
  Log(policy.status(), policy.ok() ? &*policy : nullptr);
  if (!policy.ok()) return;
  auto next = std::make_shared<const AccessPolicy>(*std::move(policy));
  {
    absl::MutexLock lock(&mutex_);
    policy_ = std::move(next);
  }
  generation_.fetch_add(1, std::memory_order_release);
}

void AccessControl::Log(const absl::Status& status, const AccessPolicy* policy) {
  metrics_.PolicyRead(status.ok());
  if (policy == nullptr) {
    logger_.Log(LogLevel::kError, "access_policy_failed",
                {{"file", path_},
                 {"message", static_cast<std::string>(status.message())},
                 {"hint", "the policy before it stays in force"}});
    return;
  }
  logger_.Log(LogLevel::kInfo, "access_policy",
              {{"file", path_},
               {"tokens", static_cast<int64_t>(policy->token_count())},
               {"certificates", static_cast<int64_t>(policy->certificate_count())}});
}

}  // namespace adapterd
