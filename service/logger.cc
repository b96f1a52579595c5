#include "service/logger.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace adapterd {
namespace {

std::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    default:
      return "error";
  }
}

std::string Now() {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
}

nlohmann::ordered_json ToJson(const LogValue& value) {
  return std::visit([](const auto& v) { return nlohmann::ordered_json(v); }, value);
}

// Invalid UTF-8 is replaced, never thrown on.
std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

bool IsPlainWord(std::string_view text) {
  if (text.empty()) return false;
  for (char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("_-./:@+").find(c) != std::string_view::npos;
    if (!plain) return false;
  }
  return true;
}

std::string ToText(const LogValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return std::to_string(*number);
  if (const auto* real = std::get_if<double>(&value)) return fmt::format("{:.6g}", *real);
  const auto& text = std::get<std::string>(value);
  return IsPlainWord(text) ? text : Dump(text);
}

}  // namespace

Logger::Logger(LogFormat format, LogLevel level)
    : format_(format),
      level_(level),
      sink_(std::make_shared<spdlog::logger>("adapterd",
                                             std::make_shared<spdlog::sinks::stderr_sink_mt>())) {
  sink_->set_pattern("%v");
  sink_->set_level(spdlog::level::trace);
}

Logger::~Logger() = default;

void Logger::Log(LogLevel level, std::string_view event, std::span<const LogField> fields) {
  if (!Enabled(level)) return;
  if (format_ == LogFormat::kJson) {
    nlohmann::ordered_json line = {{"time", Now()}, {"level", LevelName(level)}, {"event", event}};
    for (const auto& [key, value] : fields) line[std::string(key)] = ToJson(value);
    sink_->info("{}", Dump(line));
    return;
  }
  std::string line = fmt::format("{} {:<7} {}", Now(), LevelName(level), event);
  for (const auto& [key, value] : fields) line += fmt::format(" {}={}", key, ToText(value));
  sink_->info("{}", line);
}

}  // namespace adapterd
