#include "service/access/audit_fields.h"

#include <algorithm>
#include <string>
#include <utility>

#include "adapterd/v1/adapter_service.pb.h"
#include "service/status_convert.h"

namespace adapterd {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string Cut(std::string text) { return ClampUtf8(std::move(text), kMaxAuditValueBytes); }

const FieldDescriptor* FindField(const Message& message, const char* name,
                                 FieldDescriptor::CppType type, bool repeated) {
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
  const bool fits =
      field != nullptr && field->cpp_type() == type && field->is_repeated() == repeated;
  return fits ? field : nullptr;
}

// Of a text field; empty when the message has none of that name.
std::string Text(const Message& message, const char* name) {
  const auto* field = FindField(message, name, FieldDescriptor::CPPTYPE_STRING, false);
  return field == nullptr ? "" : message.GetReflection()->GetString(message, field);
}

// The message in a field; null when there is none, or it is not set.
const Message* Member(const Message& message, const char* name) {
  const auto* field = FindField(message, name, FieldDescriptor::CPPTYPE_MESSAGE, false);
  if (field == nullptr || !message.GetReflection()->HasField(message, field)) return nullptr;
  return &message.GetReflection()->GetMessage(message, field);
}

void AddText(const Message& message, const char* name, std::string_view key,
             std::vector<AuditField>& fields) {
  if (std::string text = Text(message, name); !text.empty()) {
    fields.push_back({key, {Cut(std::move(text))}});
  }
}

// The names of a list of messages with names: adapters that are merged, adapters that are desired.
void AddNames(const Message& message, const char* name, std::vector<AuditField>& fields) {
  const auto* field = FindField(message, name, FieldDescriptor::CPPTYPE_MESSAGE, true);
  if (field == nullptr) return;
  AuditField names{name, {}, /*is_list=*/true};
  const int count = std::min(message.GetReflection()->FieldSize(message, field), kMaxAuditValues);
  for (int i = 0; i < count; ++i) {
    names.values.push_back(
        Cut(Text(message.GetReflection()->GetRepeatedMessage(message, field, i), "name")));
  }
  fields.push_back(std::move(names));
}

}  // namespace

std::vector<AuditField> RequestFields(const Message& request) {
  std::vector<AuditField> fields;
  // What LoadBaseModel and UnloadBaseModel name is a base model.
  const bool names_base = request.GetDescriptor()->name().find("BaseModel") != std::string::npos;
  AddText(request, "name", names_base ? "base_model" : "adapter", fields);
  if (!names_base) AddText(request, "base_model", "base_model", fields);
  for (const char* name : {"source", "output", "alias"}) AddText(request, name, name, fields);
  AddText(request, "revision", "requested_revision", fields);
  for (const char* name : {"adapters", "desired"}) AddNames(request, name, fields);
  return fields;
}

std::vector<AuditField> ResponseFields(const Message& response) {
  std::vector<AuditField> fields;
  if (const Message* adapter = Member(response, "adapter")) {
    AddText(*adapter, "revision", "revision", fields);
  }
  AddText(response, "replaced_revision", "replaced_revision", fields);
  if (const Message* result = Member(response, "result")) {
    AddText(*result, "digest", "digest", fields);
  }
  if (const auto* reconciled = dynamic_cast<const v1::ReconcileAdaptersResponse*>(&response)) {
    AuditField changes{"changes", {}, /*is_list=*/true};
    for (const v1::ReconcileChange& change : reconciled->changes()) {
      if (change.action() == v1::RECONCILE_ACTION_UNCHANGED) continue;
      if (changes.values.size() == kMaxAuditValues) break;
      changes.values.push_back(v1::ReconcileAction_Name(change.action()) + " " +
                               Cut(change.name()));
    }
    fields.push_back(std::move(changes));
  }
  return fields;
}

}  // namespace adapterd
