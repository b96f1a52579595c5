#include "service/tls/certificate_files.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/small_file.h"

namespace adapterd {
namespace {

struct BioFree {
  void operator()(BIO* bio) const { BIO_free(bio); }
};

std::unique_ptr<BIO, BioFree> Source(const std::string& pem) {
  return std::unique_ptr<BIO, BioFree>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// OpenSSL would ask the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

// The certificates of a text; empty when there is none, or one of them is broken.
std::vector<X509Ptr> ParseCertificates(const std::string& pem) {
  std::vector<X509Ptr> found;
  const auto source = Source(pem);
  ERR_clear_error();
  while (X509* next = PEM_read_bio_X509(source.get(), nullptr, NoPassword, nullptr)) {
    found.emplace_back(next);
  }
  // That is how the end of a text is told from something broken in it.
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end) found.clear();
  return found;
}

KeyPtr ParseKey(const std::string& pem) {
  KeyPtr key(PEM_read_bio_PrivateKey(Source(pem).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  return key;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CertificateFiles>> CertificateFiles::Open(CertificatePaths paths,
                                                                         Logger& logger) {
  std::unique_ptr<CertificateFiles> files(new CertificateFiles(std::move(paths), logger));
  absl::MutexLock lock(&files->mutex_);
  RETURN_IF_ERROR(files->Renew());
  return files;
}

absl::Status CertificateFiles::Invalid(const char* flag, const std::string& path,
                                       const std::string& what) const {
  return Error(Reason::kInvalidField,
               fmt::format("--{}-{}: {}: {}", paths_.flags, flag, path, what))
      .With("file", path);
}

absl::StatusOr<CertificateFiles::Texts> CertificateFiles::Read() const {
  Texts texts;
  const std::pair<const char*, std::pair<const std::string&, std::string&>> files[] = {
      {"cert", {paths_.certificate, texts.certificate}},
      {"key", {paths_.key, texts.key}},
      {"client-ca", {paths_.client_ca, texts.client_ca}}};
  for (const auto& [flag, file] : files) {
    if (file.first.empty()) continue;
    absl::StatusOr<std::string> text = ReadSmallFile(file.first, kMaxPemBytes);
    if (!text.ok()) {
      return Error(GetErrorDetails(text.status()).reason,
                   fmt::format("--{}-{}: {}", paths_.flags, flag,
                               static_cast<std::string>(text.status().message())));
    }
    file.second = *std::move(text);
  }
  return texts;
}

absl::StatusOr<std::shared_ptr<const Certificates>> CertificateFiles::Check(
    const Texts& texts) const {
  auto found = std::make_shared<Certificates>();
  found->chain = ParseCertificates(texts.certificate);
  if (found->chain.empty()) {
    return Invalid("cert", paths_.certificate, "expected certificates in PEM, found none");
  }
  found->key = ParseKey(texts.key);
  if (found->key == nullptr) {
    return Invalid("key", paths_.key, "expected a private key in PEM without a password");
  }
  const X509* const own = found->chain.front().get();
  const bool fits = X509_check_private_key(own, found->key.get()) == 1;
  ERR_clear_error();
  if (!fits) return Invalid("key", paths_.key, "is not the key of " + paths_.certificate);
  if (X509_cmp_current_time(X509_get0_notBefore(own)) > 0) {
    return Invalid("cert", paths_.certificate, "the certificate is not valid yet");
  }
  if (X509_cmp_current_time(X509_get0_notAfter(own)) < 0) {
    return Invalid("cert", paths_.certificate, "the certificate has expired");
  }
  if (asks_clients() && ParseCertificates(texts.client_ca).empty()) {
    return Invalid("client-ca", paths_.client_ca, "expected certificates in PEM, found none");
  }
  found->certificate_pem = texts.certificate;
  found->key_pem = texts.key;
  found->client_ca_pem = texts.client_ca;
  return found;
}

absl::Status CertificateFiles::Renew() {
  looked_ = absl::Now();
  ASSIGN_OR_RETURN(Texts texts, Read());
  if (current_ != nullptr && texts == tried_) return absl::OkStatus();
  tried_ = texts;
  error_.clear();
  ASSIGN_OR_RETURN(current_, Check(texts));
  logger_.Log(LogLevel::kInfo, "certificate",
              {{"file", paths_.certificate},
               {"certificates", static_cast<int64_t>(current_->chain.size())}});
  return absl::OkStatus();
}

std::shared_ptr<const Certificates> CertificateFiles::Current() {
  absl::MutexLock lock(&mutex_);
  if (absl::Now() - looked_ < kCertificatePeriod) return current_;
  const absl::Status status = Renew();
  if (!status.ok() && status.message() != error_) {
    error_ = static_cast<std::string>(status.message());
    logger_.Log(LogLevel::kError, "certificate_failed",
                {{"message", error_}, {"hint", "the certificate before it stays in use"}});
  }
  return current_;
}

}  // namespace adapterd
