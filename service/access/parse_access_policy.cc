#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "service/access/access_policy.h"

namespace adapterd {
namespace {

using Json = nlohmann::json;

// Of no bytes at all: what a hash is made of when the variable with the token was not set.
constexpr char kEmptyHash[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr size_t kHashDigits = 64;

absl::Status Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, field.empty() ? what : field + ": " + what)
      .With("field", field);
}

std::string Member(const std::string& field, std::string_view key) {
  return field.empty() ? std::string(key) : fmt::format("{}.{}", field, key);
}

// Parses, and remembers the first key that an object has twice.
absl::StatusOr<Json> ParseJson(std::string_view text) {
  std::vector<std::set<std::string>> open;
  std::string twice;
  const auto note = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end) open.pop_back();
    if (event != Json::parse_event_t::key) return true;
    const auto key = parsed.get<std::string>();
    if (!open.back().insert(key).second) twice = key;
    return true;
  };
  try {
    Json json = Json::parse(text, note);
    if (!twice.empty()) return Invalid("", fmt::format("the key {} comes twice", Quoted(twice)));
    return json;
  } catch (const Json::parse_error& error) {  // its text would quote the file
    const std::string_view before = text.substr(0, error.byte);
    return Invalid(
        "", fmt::format("line {}: not JSON", 1 + std::count(before.begin(), before.end(), '\n')));
  }
}

// Refuses what is no object, or has keys that are not among `known`.
absl::Status CheckObject(const Json& json, const std::string& field,
                         std::initializer_list<std::string_view> known) {
  if (!json.is_object()) {
    return Invalid(field, std::string("expected an object, found ") + json.type_name());
  }
  for (const auto& [key, unused] : json.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    return Invalid(
        field, fmt::format("expected the keys {}, found {}", fmt::join(known, ", "), Quoted(key)));
  }
  return absl::OkStatus();
}

// A string of 1 to `most` bytes without control characters. Its text is not shown: it may be a
// token that somebody put into the wrong place.
absl::StatusOr<std::string> ReadText(const Json& json, const std::string& field,
                                     std::string_view key, size_t most) {
  const std::string path = Member(field, key);
  const auto it = json.find(key);
  if (it == json.end()) return Invalid(path, "expected text, found nothing");
  if (!it->is_string()) {
    return Invalid(path, std::string("expected text, found ") + it->type_name());
  }
  std::string text = it->get<std::string>();
  const bool printable = std::all_of(text.begin(), text.end(),
                                     [](unsigned char c) { return c >= ' ' && c != '\x7f'; });
  if (text.empty() || text.size() > most || !printable) {
    return Invalid(
        path, fmt::format("expected 1 to {} printable bytes, found {} bytes", most, text.size()));
  }
  return text;
}

absl::StatusOr<std::string> ReadHash(const Json& json, const std::string& field) {
  ASSIGN_OR_RETURN(std::string hash, ReadText(json, field, "sha256", kMaxSanBytes));
  std::transform(hash.begin(), hash.end(), hash.begin(),
                 [](char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c; });
  const std::string path = Member(field, "sha256");
  if (hash.size() != kHashDigits ||
      hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return Invalid(path, fmt::format("expected the {} hex digits of the token's SHA-256, found {} "
                                     "bytes that are not",
                                     kHashDigits, hash.size()));
  }
  if (hash == kEmptyHash) {
    return Invalid(path, "expected the SHA-256 of a token, found that of nothing");
  }
  return hash;
}

absl::StatusOr<Role> ReadRole(const Json& json, const std::string& field, std::string_view key) {
  ASSIGN_OR_RETURN(const std::string name, ReadText(json, field, key, kMaxSubjectBytes));
  const std::optional<Role> role = RoleFromName(name);
  if (role) return *role;
  return Invalid(Member(field, key),
                 fmt::format("expected {}, found {}", fmt::join(kRoleNames, ", "), Quoted(name)));
}

absl::StatusOr<std::string> ReadSubject(const Json& json, const std::string& field) {
  ASSIGN_OR_RETURN(std::string subject, ReadText(json, field, "subject", kMaxSubjectBytes));
  if (subject != kAnonymous) return subject;
  return Invalid(Member(field, "subject"), "expected a name of its own, found \"anonymous\"");
}

absl::StatusOr<PolicyEntry> ReadToken(const Json& json, const std::string& field) {
  RETURN_IF_ERROR(CheckObject(json, field, {"subject", "sha256", "role"}));
  PolicyEntry entry;
  ASSIGN_OR_RETURN(entry.caller.subject, ReadSubject(json, field));
  ASSIGN_OR_RETURN(entry.key, ReadHash(json, field));
  ASSIGN_OR_RETURN(entry.caller.role, ReadRole(json, field, "role"));
  return entry;
}

absl::StatusOr<PolicyEntry> ReadCertificate(const Json& json, const std::string& field) {
  RETURN_IF_ERROR(CheckObject(json, field, {"subject", "san", "role"}));
  PolicyEntry entry;
  ASSIGN_OR_RETURN(entry.key, ReadText(json, field, "san", kMaxSanBytes));
  entry.caller.subject = entry.key;
  if (json.contains("subject")) {
    ASSIGN_OR_RETURN(entry.caller.subject, ReadSubject(json, field));
  }
  ASSIGN_OR_RETURN(entry.caller.role, ReadRole(json, field, "role"));
  return entry;
}

template <typename ReadEntry>
absl::StatusOr<std::vector<PolicyEntry>> ReadEntries(const Json& json, const std::string& field,
                                                     const ReadEntry& read) {
  std::vector<PolicyEntry> entries;
  const auto list = json.find(field);
  if (list == json.end()) return entries;
  if (!list->is_array()) {
    return Invalid(field, std::string("expected a list, found ") + list->type_name());
  }
  if (list->size() > kMaxPolicyEntries) {
    return Invalid(field, fmt::format("expected at most {} entries, found {}", kMaxPolicyEntries,
                                      list->size()));
  }
  std::set<std::string> keys;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", field, i);
    ASSIGN_OR_RETURN(PolicyEntry entry, read((*list)[i], path));
    if (!keys.insert(entry.key).second) {
      return Invalid(path, "expected each token and each certificate once, found it again");
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace

absl::StatusOr<AccessPolicy> ParseAccessPolicy(std::string_view text) {
  if (text.size() > kMaxPolicyBytes) {
    return Invalid("", fmt::format("expected at most {} bytes", kMaxPolicyBytes));
  }
  ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  RETURN_IF_ERROR(CheckObject(json, "", {"tokens", "certificates", "anonymous_role", "$schema"}));
  ASSIGN_OR_RETURN(std::vector<PolicyEntry> tokens, ReadEntries(json, "tokens", ReadToken));
  ASSIGN_OR_RETURN(std::vector<PolicyEntry> certificates,
                   ReadEntries(json, "certificates", ReadCertificate));
  std::optional<Caller> anonymous;
  if (json.contains("anonymous_role")) {
    ASSIGN_OR_RETURN(const Role role, ReadRole(json, "", "anonymous_role"));
    anonymous = Caller{kAnonymous, role};
  }
  return AccessPolicy(std::move(tokens), std::move(certificates), std::move(anonymous));
}

}  // namespace adapterd
