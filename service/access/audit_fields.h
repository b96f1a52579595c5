// What the audit log says of a request and its answer.
#ifndef ADAPTERD_SERVICE_ACCESS_AUDIT_FIELDS_H_
#define ADAPTERD_SERVICE_ACCESS_AUDIT_FIELDS_H_

#include <google/protobuf/message.h>

#include <vector>

#include "service/access/audit_log.h"

namespace adapterd {

// Longer names (which no request may have) and longer lists are cut.
inline constexpr size_t kMaxAuditValueBytes = 512;
inline constexpr int kMaxAuditValues = 1000;

// What is changed, and of what: by the names that all requests use, so that a new RPC needs no code
// here. Never tensors.
std::vector<AuditField> RequestFields(const google::protobuf::Message& request);

// The revision that it ended in; of ReconcileAdapters what it did.
std::vector<AuditField> ResponseFields(const google::protobuf::Message& response);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_AUDIT_FIELDS_H_
