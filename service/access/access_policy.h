// Who has which role: what the policy file says (docs/access-policy.schema.json describes it).
#ifndef ADAPTERD_SERVICE_ACCESS_ACCESS_POLICY_H_
#define ADAPTERD_SERVICE_ACCESS_ACCESS_POLICY_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "service/access/caller.h"

namespace adapterd {

inline constexpr size_t kMaxPolicyBytes = 1 << 20;
// Of tokens, and of certificates. All tokens are compared for every call: 1,000 cost about 20 us.
inline constexpr size_t kMaxPolicyEntries = 1000;
inline constexpr size_t kMaxSubjectBytes = 128;
inline constexpr size_t kMaxSanBytes = 1024;

struct PolicyEntry {
  std::string key;  // the token's SHA-256 in lower-case hex, or the certificate's SAN
  Caller caller;
};

// A value; constant once it is made.
class AccessPolicy {
 public:
  AccessPolicy(std::vector<PolicyEntry> tokens, std::vector<PolicyEntry> certificates,
               std::optional<Caller> anonymous)
      : tokens_(std::move(tokens)),
        certificates_(std::move(certificates)),
        anonymous_(std::move(anonymous)) {}

  // Null when no entry has the SHA-256 of `token`. Takes as long whichever entry it is.
  const Caller* FindToken(std::string_view token) const;
  // The first entry whose subject alternative name is one of `sans`; null when there is none.
  const Caller* FindCertificate(const std::vector<std::string>& sans) const;
  // Of calls without credentials; null: they are refused.
  const Caller* anonymous() const { return anonymous_ ? &*anonymous_ : nullptr; }

  size_t token_count() const { return tokens_.size(); }
  size_t certificate_count() const { return certificates_.size(); }

 private:
  std::vector<PolicyEntry> tokens_;
  std::vector<PolicyEntry> certificates_;
  std::optional<Caller> anonymous_;
};

// INVALID_FIELD names the first thing that is not as the schema says, by its path in the file,
// without showing what may be a secret. Keys that are unknown or come twice are such things.
absl::StatusOr<AccessPolicy> ParseAccessPolicy(std::string_view text);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_ACCESS_POLICY_H_
