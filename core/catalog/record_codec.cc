#include "core/catalog/record_codec.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

using Json = nlohmann::json;

Error Corrupt(std::string_view what, std::string_view expected, std::string_view found) {
  return {Reason::kStoreCorrupt,
          fmt::format("{}: expected {}, found {}", what, expected, Quoted(found))};
}

absl::StatusOr<std::string> Dump(std::string_view what, const Json& json) {
  try {
    return json.dump();
  } catch (const std::exception&) {
    return Error(Reason::kInvalidField, fmt::format("{}: not valid UTF-8", what))
        .With("field", std::string(what));
  }
}

absl::StatusOr<Json> Parse(std::string_view what, std::string_view text, Json::value_t type,
                           std::string_view expected) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.type() != type) return Corrupt(what, expected, text);
  return json;
}

// A switch, so that the compiler asks for the name of a new format. Names are stored: they stay.
std::string_view FormatName(AdapterFormat format) {
  switch (format) {
    case AdapterFormat::kPeft:
      return "peft";
    case AdapterFormat::kGguf:
      return "gguf";
    case AdapterFormat::kMlx:
      return "mlx";
    case AdapterFormat::kKohya:
      return "kohya";
    case AdapterFormat::kDiffusers:
      return "diffusers";
    case AdapterFormat::kCreated:
      return "created";
  }
  return "";
}

constexpr AdapterFormat kFormats[] = {AdapterFormat::kPeft,      AdapterFormat::kGguf,
                                      AdapterFormat::kMlx,       AdapterFormat::kKohya,
                                      AdapterFormat::kDiffusers, AdapterFormat::kCreated};

// One overload a type of field: whether `json` is such a value, which then is in `value`.
bool Read(const Json& json, std::string& value) {
  if (!json.is_string()) return false;
  value = json.get_ref<const std::string&>();
  return true;
}

template <typename Integer>
requires std::is_integral_v<Integer>
bool Read(const Json& json, Integer& value) {  // counts and sizes: none is below zero
  if (!json.is_number_integer()) return false;
  if (!json.is_number_unsigned() && json.get<int64_t>() < 0) return false;
  const auto number = json.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<Integer>::max())) return false;
  value = static_cast<Integer>(number);
  return true;
}

bool Read(const Json& json, double& value) {
  if (!json.is_number()) return false;
  value = json.get<double>();
  return std::isfinite(value);
}

bool Read(const Json& json, AdapterFormat& value) {
  if (!json.is_string()) return false;
  for (const AdapterFormat format : kFormats) {
    if (json.get_ref<const std::string&>() != FormatName(format)) continue;
    value = format;
    return true;
  }
  return false;
}

template <typename Element>
bool Read(const Json& json, std::vector<Element>& value) {
  if (!json.is_array()) return false;
  value.clear();
  for (const Json& item : json) {
    if (!Read(item, value.emplace_back())) return false;
  }
  return true;
}

template <typename Value>
Json Written(const Value& value) {
  return value;
}

Json Written(AdapterFormat format) { return std::string(FormatName(format)); }

// Calls `visit(key, field)` for every field of a description, const or not.
template <typename Description, typename Visitor>
void VisitFields(Description& description, const Visitor& visit) {
  visit("format", description.format);
  visit("method", description.method);
  visit("base_model", description.base_model);
  visit("ranks", description.ranks);
  visit("target_modules", description.target_modules);
  visit("layer_count", description.layer_count);
  visit("module_count", description.module_count);
  visit("parameter_count", description.parameter_count);
  visit("original_parameter_count", description.original_parameter_count);
  visit("file_bytes", description.file_bytes);
  visit("lora_dropout", description.lora_dropout);
}

}  // namespace

absl::StatusOr<std::string> EncodeMap(std::string_view what, const StringMap& map) {
  return map.empty() ? "{}" : Dump(what, Json(map));
}

absl::StatusOr<StringMap> DecodeMap(std::string_view what, std::string_view json) {
  StringMap map;
  if (json == "{}") return map;
  ASSIGN_OR_RETURN(const Json object,
                   Parse(what, json, Json::value_t::object, "an object of strings"));
  for (const auto& [key, value] : object.items()) {
    if (!Read(value, map[key])) return Corrupt(what, "an object of strings", json);
  }
  return map;
}

absl::StatusOr<std::string> EncodeList(std::string_view what,
                                       const std::vector<std::string>& list) {
  return list.empty() ? "[]" : Dump(what, Json(list));
}

absl::StatusOr<std::vector<std::string>> DecodeList(std::string_view what, std::string_view json) {
  std::vector<std::string> list;
  if (json == "[]") return list;
  ASSIGN_OR_RETURN(const Json array,
                   Parse(what, json, Json::value_t::array, "an array of strings"));
  if (!Read(array, list)) return Corrupt(what, "an array of strings", json);
  return list;
}

absl::StatusOr<std::string> EncodeDescription(std::string_view what,
                                              const AdapterDescription& description) {
  Json object = Json::object();
  bool faithful = true;
  std::string fault;
  VisitFields(description, [&](const char* key, const auto& field) {
    object[key] = Written(field);
    std::remove_cvref_t<decltype(field)> back;
    if (faithful && !Read(object[key], back)) {
      faithful = false;
      fault = key;
    }
  });
  if (!faithful) {
    return Error(Reason::kInvalidField,
                 fmt::format("{}.{}: no value that can be kept", what, fault))
        .With("field", fault);
  }
  return Dump(what, object);
}

absl::StatusOr<AdapterDescription> DecodeDescription(std::string_view what, std::string_view json) {
  ASSIGN_OR_RETURN(const Json object, Parse(what, json, Json::value_t::object, "an object"));
  AdapterDescription description;
  absl::Status status;
  size_t fields = 0;
  VisitFields(description, [&](const char* key, auto& field) {
    ++fields;
    const auto found = object.find(key);
    if (!status.ok()) return;
    if (found == object.end()) {
      status = Corrupt(what, fmt::format("a key \"{}\"", key), json);
    } else if (!Read(*found, field)) {
      status = Corrupt(fmt::format("{}.{}", what, key), "a value of its type", found->dump());
    }
  });
  if (status.ok() && object.size() != fields) {
    status = Corrupt(what, fmt::format("{} keys", fields), json);
  }
  if (!status.ok()) return status;
  return description;
}

}  // namespace adapterd
