// A server's certificate, its key, and the authorities of its clients: PEM files that are replaced
// while it runs.
#ifndef ADAPTERD_SERVICE_TLS_CERTIFICATE_FILES_H_
#define ADAPTERD_SERVICE_TLS_CERTIFICATE_FILES_H_

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "service/logger.h"

namespace adapterd {

inline constexpr size_t kMaxPemBytes = 1 << 20;
// Files are looked at when a handshake needs them, but not more often than this.
inline constexpr absl::Duration kCertificatePeriod = absl::Seconds(1);

struct CertificatePaths {
  std::string flags;        // "tls": what --tls-cert, --tls-key, --tls-client-ca begin with
  std::string certificate;  // with its chain, the server's own first
  std::string key;
  std::string client_ca;  // empty: clients show no certificates
};

struct X509Free {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
struct KeyFree {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using X509Ptr = std::unique_ptr<X509, X509Free>;
using KeyPtr = std::unique_ptr<EVP_PKEY, KeyFree>;

// Whole and valid when they were read: the key is the certificate's, and it is in its time.
struct Certificates {
  std::string certificate_pem;
  std::string key_pem;
  std::string client_ca_pem;
  std::vector<X509Ptr> chain;  // at least one
  KeyPtr key;
};

// The files' newest content that is whole and valid; what is not leaves the one before in use, with
// an error in the log. So files may be replaced one after the other.
//
// Any thread. Current reads three small files at most once a period, else it costs a lock.
class CertificateFiles {
 public:
  // SOURCE_UNAVAILABLE or INVALID_FIELD, in one line that names flag and file.
  static absl::StatusOr<std::unique_ptr<CertificateFiles>> Open(CertificatePaths paths,
                                                                Logger& logger);

  std::shared_ptr<const Certificates> Current() ABSL_LOCKS_EXCLUDED(mutex_);
  bool asks_clients() const { return !paths_.client_ca.empty(); }

 private:
  struct Texts {
    std::string certificate, key, client_ca;
    bool operator==(const Texts&) const = default;
  };

  CertificateFiles(CertificatePaths paths, Logger& logger)
      : paths_(std::move(paths)), logger_(logger) {}

  absl::StatusOr<Texts> Read() const;
  absl::StatusOr<std::shared_ptr<const Certificates>> Check(const Texts& texts) const;
  absl::Status Renew() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Invalid(const char* flag, const std::string& path, const std::string& what) const;

  const CertificatePaths paths_;
  Logger& logger_;

  absl::Mutex mutex_;
  absl::Time looked_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  Texts tried_ ABSL_GUARDED_BY(mutex_);
  std::string error_ ABSL_GUARDED_BY(mutex_);  // that was logged last
  std::shared_ptr<const Certificates> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TLS_CERTIFICATE_FILES_H_
