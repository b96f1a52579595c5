#include "core/adapter/gguf_keys.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "core/base/quote.h"

namespace adapterd {
namespace {

class Keys {
 public:
  Keys(const GgufHeader& header, std::string_view file, ProblemList& problems)
      : header_(header), file_(file), problems_(problems) {}

  const GgufValue* Find(std::string_view key) const {
    const auto found = header_.metadata.find(std::string(key));
    return found == header_.metadata.end() ? nullptr : &found->second;
  }

  // nullptr: missing or no text, which is reported.
  const std::string* Text(std::string_view key, std::string_view expected) {
    const GgufValue* value = Find(key);
    const auto* text = value == nullptr ? nullptr : std::get_if<std::string>(value);
    if (text != nullptr) return text;
    Refuse(Reason::kMalformedConfig, key, value == nullptr ? "is missing" : "is not text",
           std::string(expected), value == nullptr ? "nothing" : "another type");
    return nullptr;
  }

  void Refuse(Reason reason, std::string_view key, std::string_view what, std::string expected,
              std::string actual) {
    problems_.Add(Error(reason, fmt::format("{}: key {} {}", Printable(file_), key, what))
                      .With("file", Printable(file_))
                      .With("field", std::string(key))
                      .With("expected", std::move(expected))
                      .With("actual", std::move(actual)));
  }

 private:
  const GgufHeader& header_;
  const std::string_view file_;
  ProblemList& problems_;
};

void CheckTypes(Keys& keys) {
  if (const std::string* type = keys.Text("general.type", "adapter")) {
    if (*type != "adapter") {
      keys.Refuse(Reason::kInvalidAdapter, "general.type",
                  fmt::format("is {}: this is no adapter", Quoted(*type)), "adapter",
                  Printable(*type));
    }
  }
  if (const std::string* type = keys.Text("adapter.type", "lora")) {
    if (*type != "lora") {
      keys.Refuse(Reason::kUnsupportedAdapter, "adapter.type",
                  fmt::format("is {}, which is not supported", Quoted(*type)), "lora",
                  Printable(*type));
    }
  }
  constexpr std::string_view kActivated = "adapter.alora.invocation_tokens";
  if (keys.Find(kActivated) != nullptr) {
    keys.Refuse(Reason::kUnsupportedAdapter, kActivated,
                "makes this an activated LoRA, which works behind its invocation tokens alone: "
                "that is not supported",
                "nothing", "invocation tokens");
  }
}

double ReadAlpha(Keys& keys) {
  constexpr std::string_view kAlpha = "adapter.lora.alpha";
  const GgufValue* value = keys.Find(kAlpha);
  if (value == nullptr) return 0;
  const auto* alpha = std::get_if<float>(value);
  if (alpha == nullptr) {
    keys.Refuse(Reason::kMalformedConfig, kAlpha, "is not an F32", "F32", "another type");
    return 0;
  }
  if (std::isfinite(*alpha)) return *alpha;
  keys.Refuse(Reason::kMalformedConfig, kAlpha, "is not a finite number", "a finite number",
              fmt::format("{}", *alpha));
  return 0;
}

}  // namespace

std::optional<GgufKeys> ReadGgufKeys(const GgufHeader& header, std::string_view file,
                                     ProblemList& problems) {
  Keys keys(header, file, problems);
  CheckTypes(keys);
  GgufKeys read;
  read.alpha = ReadAlpha(keys);
  constexpr std::string_view kArchitecture = "general.architecture";
  const std::string* name = keys.Text(kArchitecture, KnownGgufArchitectures());
  if (name == nullptr) return std::nullopt;
  read.architecture = FindGgufArchitecture(*name);
  if (read.architecture != nullptr) return read;
  keys.Refuse(Reason::kUnsupportedAdapter, kArchitecture,
              fmt::format("is {}: how GGUF names the modules of that architecture, and orders "
                          "their rows, is not known here",
                          Quoted(*name)),
              KnownGgufArchitectures(), Printable(*name));
  return std::nullopt;
}

}  // namespace adapterd
