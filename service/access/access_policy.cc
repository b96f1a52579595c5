#include "service/access/access_policy.h"

#include <openssl/crypto.h>

#include <algorithm>

#include "core/base/sha256.h"

namespace adapterd {

const Caller* AccessPolicy::FindToken(std::string_view token) const {
  Sha256 digest;
  digest.Update(token);
  const std::string hash = digest.FinishHex();
  const Caller* found = nullptr;
  for (const PolicyEntry& entry : tokens_) {
    if (CRYPTO_memcmp(entry.key.data(), hash.data(), hash.size()) == 0) found = &entry.caller;
  }
  return found;
}

const Caller* AccessPolicy::FindCertificate(const std::vector<std::string>& sans) const {
  const auto it =
      std::find_if(certificates_.begin(), certificates_.end(), [&](const PolicyEntry& entry) {
        return std::find(sans.begin(), sans.end(), entry.key) != sans.end();
      });
  return it == certificates_.end() ? nullptr : &it->caller;
}

}  // namespace adapterd
