#include "service/status_convert.h"

#include "core/base/error.h"
#include "service/rpc_status.pb.h"

namespace adapterd {
namespace {

constexpr char kDomain[] = "adapterd";
constexpr char kTypePrefix[] = "type.googleapis.com/google.rpc.";
constexpr int64_t kRetryDelayMs = 200;

void AddDetail(const std::string& type, const google::protobuf::Message& detail,
               google::rpc::Status& status) {
  google::protobuf::Any* any = status.add_details();
  any->set_type_url(kTypePrefix + type);
  detail.SerializeToString(any->mutable_value());
}

// Bytes of the UTF-8 sequence at `text`[at], or 0 when there is none.
size_t Utf8Length(const std::string& text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xc2 && lead < 0xe0 ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  if (length == 0 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[at + i]) & 0xc0) != 0x80) return 0;
  }
  if (length == 1) return 1;
  const auto second = static_cast<unsigned char>(text[at + 1]);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool outside = (lead == 0xed && second >= 0xa0) || (lead == 0xf4 && second >= 0x90);
  return overlong || outside ? 0 : length;
}

}  // namespace

std::string ClampUtf8(std::string text, size_t max_bytes) {
  constexpr char kEllipsis[] = "...";
  std::string out;
  out.reserve(std::min(text.size(), max_bytes));
  const bool cut = text.size() > max_bytes;
  const size_t room = cut ? max_bytes - (sizeof(kEllipsis) - 1) : max_bytes;
  for (size_t at = 0; at < text.size();) {
    const size_t length = Utf8Length(text, at);
    const size_t step = length == 0 ? 1 : length;
    if (out.size() + step > room) break;
    out.append(length == 0 ? "?" : text.substr(at, length));
    at += step;
  }
  if (cut) out.append(kEllipsis);
  return out;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const ErrorDetails details = GetErrorDetails(status);
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(ReasonName(details.reason)));
  info.set_domain(kDomain);
  const std::string message = ClampUtf8(std::string(status.message()), kMaxErrorMessageBytes);
  size_t budget = kMaxErrorBytes - 2 * message.size();  // the message travels twice
  for (const auto& [key, value] : details.metadata) {
    std::string clamped = ClampUtf8(value, kMaxMetadataValueBytes);
    if (key.size() + clamped.size() + 16 > budget) break;
    budget -= key.size() + clamped.size() + 16;
    (*info.mutable_metadata())[key] = std::move(clamped);
  }
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(status.code()));
  proto.set_message(message);
  AddDetail("ErrorInfo", info, proto);
  if (details.reason == Reason::kOverloaded || details.reason == Reason::kDraining) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_nanos(kRetryDelayMs * 1'000'000);
    AddDetail("RetryInfo", retry, proto);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      proto.SerializeAsString());
}

}  // namespace adapterd
