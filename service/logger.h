// One line an event, on standard error, as text or JSON.
#ifndef ADAPTERD_SERVICE_LOGGER_H_
#define ADAPTERD_SERVICE_LOGGER_H_

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace spdlog {
class logger;
}

namespace adapterd {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };
enum class LogFormat { kText, kJson };

// Values are escaped, so that no name can forge a line. Never pass weights, tokens or request data.
using LogValue = std::variant<std::string, int64_t, double>;
using LogField = std::pair<std::string_view, LogValue>;

// Any thread; lines never mix. A line costs a few microseconds and a write.
class Logger {
 public:
  Logger(LogFormat format, LogLevel level);
  ~Logger();

  void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {}) {
    Log(level, event, std::span<const LogField>(fields.begin(), fields.size()));
  }
  void Log(LogLevel level, std::string_view event, std::span<const LogField> fields);
  bool Enabled(LogLevel level) const { return level >= level_.load(std::memory_order_relaxed); }
  void SetLevel(LogLevel level) { level_.store(level, std::memory_order_relaxed); }

 private:
  const LogFormat format_;
  std::atomic<LogLevel> level_;
  const std::shared_ptr<spdlog::logger> sink_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_LOGGER_H_
