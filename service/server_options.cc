#include "service/server_options.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <functional>

#include "absl/strings/str_split.h"
#include "core/base/checked_math.h"
#include "core/base/error.h"

namespace adapterd {
namespace {

constexpr double kBudgetShare = 0.6;  // of memory, for adapters; the rest is requests and headroom
constexpr int64_t kInflightDivisor = 4;  // of memory, for requests and replies
constexpr int kMaxThreads = 1024;
constexpr int kMaxKeptRevisions = 100;
constexpr int kMaxQuotaAdapters = 1'000'000;
constexpr int kMaxQuotaCalls = 1'000'000;  // a second

// Stands for an empty value on its way through CLI11, which would take "--flag=" for "--flag" and
// swallow the next argument.
const std::string kEmptyValue = "\x01";

std::vector<std::string> ProtectEmptyValues(int argc, const char* const* argv) {
  std::vector<std::string> args;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (arg.size() > 3 && arg.rfind("--", 0) == 0 && arg.find('=') == arg.size() - 1) {
      args.push_back(arg.substr(0, arg.size() - 1));
      args.push_back(kEmptyValue);
    } else {
      args.push_back(std::move(arg));
    }
  }
  return args;
}

std::string EnvironmentName(const std::string& flag) {
  std::string name = "ADAPTERD_";
  for (char c : flag) name.push_back(c == '-' ? '_' : static_cast<char>(std::toupper(c)));
  return name;
}

bool IsGiven(const std::vector<std::string>& args, const std::string& flag) {
  return std::any_of(args.begin(), args.end(), [&](const std::string& arg) {
    return arg == "--" + flag || arg.rfind("--" + flag + "=", 0) == 0;
  });
}

// Adds what the environment says of flags that the command line does not name. CLI11 would ask the
// config file first, and could not take the config file's own name from the environment.
void AddEnvironment(const std::vector<std::string>& flags, std::vector<std::string>& args) {
  for (const std::string& flag : flags) {
    const char* value = std::getenv(EnvironmentName(flag).c_str());
    if (value == nullptr || IsGiven(args, flag)) continue;
    args.push_back(fmt::format("--{}={}", flag, *value == '\0' ? kEmptyValue : value));
  }
}

[[noreturn]] void Refuse(const std::string& flag, const std::string& value,
                         const std::string& expected) {
  throw CLI::ValidationError(fmt::format("--{}: expected {}, found \"{}\"", flag, expected, value),
                             2);
}

// Adds options whose values are parsed by a function of ours; a false return refuses the value.
class Flags {
 public:
  using Parse = std::function<bool(const std::string&)>;
  explicit Flags(CLI::App& app) : app_(app) {}

  void Add(const std::string& flag, const std::string& expected, const std::string& help,
           Parse parse) {
    Repeated(flag, expected, help, std::move(parse))
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }

  CLI::Option* Repeated(const std::string& flag, const std::string& expected,
                        const std::string& help, Parse parse) {
    const std::function<void(const std::vector<std::string>&)> apply =
        [flag, expected, parse](const std::vector<std::string>& values) {
          for (const std::string& value : values) {
            const std::string text = value == kEmptyValue ? "" : value;
            if (!parse(text)) Refuse(flag, text, expected);
          }
        };
    names_.push_back(flag);
    CLI::Option* option = app_.add_option_function("--" + flag, apply, help);
    return option->allow_extra_args(false)->expected(1)->type_name("")->multi_option_policy(
        CLI::MultiOptionPolicy::TakeAll);
  }

  void Switch(const std::string& flag, const std::string& help, bool& out) {
    names_.push_back(flag);
    app_.add_flag("--" + flag, out, help);
  }

  // Of the config file itself.
  void Config(const std::string& flag, const std::string& help) {
    names_.push_back(flag);
    app_.set_config("--" + flag, "", help);
    app_.allow_config_extras(CLI::config_extras_mode::error);
  }

  const std::vector<std::string>& names() const { return names_; }

  void Text(const std::string& flag, const std::string& help, std::string& out) {
    Add(flag, "text", help, [&out](const std::string& value) {
      out = value;
      return true;
    });
  }

  void Size(const std::string& flag, const std::string& help, int64_t& out) {
    Add(flag, "a size such as 512MiB", help, [&out](const std::string& value) {
      const auto size = ParseSize(value);
      if (size && *size > 0) out = *size;
      return size && *size > 0;
    });
  }

  template <typename Enum>
  void Choice(const std::string& flag, const std::string& help,
              const std::vector<std::pair<std::string, Enum>>& choices, Enum& out) {
    std::string names;
    for (const auto& [name, unused] : choices) names += (names.empty() ? "" : "|") + name;
    Add(flag, names, help, [choices, &out](const std::string& value) {
      for (const auto& [name, choice] : choices) {
        if (name == value) {
          out = choice;
          return true;
        }
      }
      return false;
    });
  }

 private:
  CLI::App& app_;
  std::vector<std::string> names_;
};

bool ParseRoot(const std::string& value, std::vector<SourceRoots::Root>& roots) {
  const size_t equals = value.find('=');
  SourceRoots::Root root;
  if (equals != std::string::npos && value.find('/') > equals) {
    root = {value.substr(0, equals), value.substr(equals + 1)};
    if (root.name.empty()) return false;
  } else {
    root = {"", value};
  }
  if (root.path.empty()) return false;
  roots.push_back(std::move(root));
  return true;
}

bool ParseInt(const std::string& text, int least, int most, int& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && out >= least && out <= most;
}

bool ParseLoad(const std::string& value, ServerOptions& options) {
  const size_t equals = value.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == value.size()) return false;
  options.load.emplace_back(value.substr(0, equals), value.substr(equals + 1));
  return true;
}

// TENANT=ADAPTERS,SIZE[,CALLS]
bool ParseQuota(const std::string& value, ServerOptions& options) {
  const std::pair<std::string, std::string> sides = absl::StrSplit(value, absl::MaxSplits('=', 1));
  const auto& [tenant, quota] = sides;
  const std::vector<std::string> bounds = absl::StrSplit(quota, ',');
  if (tenant.empty() || bounds.size() < 2 || bounds.size() > 3) return false;
  int adapters = 0;
  if (!ParseInt(bounds[0], 0, kMaxQuotaAdapters, adapters)) return false;
  const auto bytes = ParseSize(bounds[1]);
  if (!bytes) return false;
  int calls = 0;
  if (bounds.size() == 3 && !ParseInt(bounds[2], 1, kMaxQuotaCalls, calls)) return false;
  return options.tenant_quotas.try_emplace(tenant, TenantQuota{adapters, *bytes, calls}).second;
}

void AddServingFlags(Flags& flags, ServerOptions& o) {
  flags.Text("grpc-address", "HOST:PORT for gRPC; port 0 picks one", o.grpc_address);
  flags.Text("unix-socket", "also serve gRPC on a Unix socket at PATH", o.unix_socket);
  flags.Text("admin-address", "HOST:PORT for /metrics, /healthz and /readyz", o.admin_address);
  flags.Repeated("adapter-root", "PATH or NAME=PATH",
                 "folder that adapters are loaded from: PATH or NAME=PATH; repeatable",
                 [&o](const std::string& v) { return ParseRoot(v, o.adapter_roots); });
  flags.Repeated("model-root", "PATH or NAME=PATH",
                 "folder that base checkpoints are read from: PATH or NAME=PATH; repeatable",
                 [&o](const std::string& v) { return ParseRoot(v, o.model_roots); });
  flags.Text("output-root",
             "folder that merged checkpoints are written below, at PATH (default: the model roots)",
             o.output_root);
  flags.Size("memory-budget", "bytes that adapters may hold (default 60 % of memory)",
             o.memory_budget_bytes);
  flags.Size("max-message-size", "largest request or reply (default 256MiB)", o.max_message_bytes);
  flags.Size("max-inflight-bytes",
             "bytes of requests and replies at one time (default 25 % of memory)",
             o.max_inflight_bytes);
  flags.Text("data-dir", "folder for what has to survive a restart, at PATH (default none)",
             o.data_dir);
  flags.Size("max-upload-bytes", "largest adapter that UploadAdapter takes (default 4GiB)",
             o.max_upload_bytes);
  flags.Add("threads", "a whole number from 1 to 1024",
            "compute threads (default: the CPUs that the cgroup allows)",
            [&o](const std::string& v) { return ParseInt(v, 1, kMaxThreads, o.threads); });
  flags.Repeated("load", "NAME=SOURCE", "load an adapter before serving: NAME=SOURCE; repeatable",
                 [&o](const std::string& v) { return ParseLoad(v, o); });
  flags.Add(
      "keep-revisions", "a whole number from 0 to 100",
      "replaced revisions of each adapter to keep for requests and RollbackAdapter (default 0)",
      [&o](const std::string& v) { return ParseInt(v, 0, kMaxKeptRevisions, o.keep_revisions); });
  flags.Repeated("tenant-quota", "TENANT=ADAPTERS,SIZE[,CALLS] such as blue=20,4GiB, once each",
                 "adapters, their bytes, and calls a second to them, that may have the label "
                 "tenant=TENANT; repeatable",
                 [&o](const std::string& v) { return ParseQuota(v, o); });
  flags.Text("watch-adapters", "keep loaded what is in the folder PATH: one adapter a subfolder",
             o.watch_adapters);
  flags.Add("drain-timeout", "a duration such as 25s",
            "how long running requests may take after SIGTERM (default 25s)",
            [&o](const std::string& v) {
              return absl::ParseDuration(v, &o.drain_timeout) &&
                     o.drain_timeout >= absl::ZeroDuration() && o.drain_timeout < absl::Hours(24);
            });
  flags.Text("public-id-template", "public ids of adapters (default {base}:{name})",
             o.public_id_template);
  flags.Choice<LogFormat>("log-format", "text or json",
                          {{"text", LogFormat::kText}, {"json", LogFormat::kJson}}, o.log_format);
  flags.Choice<LogLevel>("log-level", "debug, info, warning, error or off",
                         {{"debug", LogLevel::kDebug},
                          {"info", LogLevel::kInfo},
                          {"warning", LogLevel::kWarning},
                          {"error", LogLevel::kError},
                          {"off", LogLevel::kOff}},
                         o.log_level);
}

void AddSecurityFlags(Flags& flags, ServerOptions& o) {
  flags.Text("tls-cert", "serve gRPC by TLS, with the certificate and its chain at PATH (PEM)",
             o.tls_cert);
  flags.Text("tls-key", "its private key, at PATH (PEM)", o.tls_key);
  flags.Text("tls-client-ca", "ask clients for certificates of the authorities at PATH (PEM)",
             o.tls_client_ca);
  flags.Text("admin-tls-cert", "serve admin HTTP by TLS, with the certificate at PATH (PEM)",
             o.admin_tls_cert);
  flags.Text("admin-tls-key", "its private key, at PATH (PEM)", o.admin_tls_key);
  flags.Text("access-policy", "who may do what, at PATH (JSON); without it everybody everything",
             o.access_policy);
  flags.Text("audit-log", "append a JSON line for each change to PATH; - is standard output",
             o.audit_log);
  flags.Switch("insecure", "allow plain text beyond loopback", o.insecure);
  flags.Switch("admin-insecure", "allow it for admin HTTP alone", o.admin_insecure);
  flags.Switch("debug-pages", "open calls and queues at /debug/ of admin HTTP", o.debug_pages);
}

absl::Status InvalidOption(std::string message) {
  return Error(Reason::kInvalidField, std::move(message));
}

// `allowed`: to listen beyond loopback; `remedy` says how it would be.
absl::Status CheckAddress(const std::string& flag, const std::string& address, bool allowed,
                          const char* remedy) {
  const auto parsed = ParseHostPort(address);
  if (!parsed) {
    return InvalidOption(fmt::format("--{}: expected HOST:PORT, found \"{}\"", flag, address));
  }
  if (!allowed && !IsLoopback(parsed->host)) {
    return InvalidOption(fmt::format("--{}: {} is beyond loopback and would serve plain text; {}",
                                     flag, address, remedy));
  }
  return absl::OkStatus();
}

// `flag` needs `other`, too.
absl::Status CheckPair(const std::string& flag, const std::string& value, const std::string& other,
                       const std::string& other_value) {
  if (value.empty() || !other_value.empty()) return absl::OkStatus();
  return InvalidOption(fmt::format("--{}: needs --{}, too", flag, other));
}

absl::Status CheckSecurity(const ServerOptions& o) {
  absl::Status status =
      CheckAddress("grpc-address", o.grpc_address, o.insecure || !o.tls_cert.empty(),
                   "give --tls-cert, or say --insecure to allow that");
  status.Update(CheckAddress("admin-address", o.admin_address,
                             o.insecure || o.admin_insecure || !o.admin_tls_cert.empty(),
                             "give --admin-tls-cert, or say --admin-insecure (or --insecure, "
                             "for gRPC, too) to allow that"));
  status.Update(CheckPair("tls-cert", o.tls_cert, "tls-key", o.tls_key));
  status.Update(CheckPair("tls-key", o.tls_key, "tls-cert", o.tls_cert));
  status.Update(CheckPair("tls-client-ca", o.tls_client_ca, "tls-cert", o.tls_cert));
  status.Update(CheckPair("admin-tls-cert", o.admin_tls_cert, "admin-tls-key", o.admin_tls_key));
  status.Update(CheckPair("admin-tls-key", o.admin_tls_key, "admin-tls-cert", o.admin_tls_cert));
  return status;
}

absl::Status CheckOptions(const ServerOptions& options) {
  absl::Status status = CheckSecurity(options);
  for (size_t i = 0; i < options.load.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (options.load[i].first != options.load[j].first) continue;
      status.Update(InvalidOption(
          fmt::format("--load: the name \"{}\" is given twice", options.load[i].first)));
    }
  }
  return status;
}

ServerOptions Defaults(const HostLimits& host) {
  ServerOptions options;
  options.memory_budget_bytes =
      static_cast<int64_t>(static_cast<double>(host.memory_bytes) * kBudgetShare);
  options.max_inflight_bytes =
      std::max(host.memory_bytes / kInflightDivisor, options.max_message_bytes);
  options.threads = host.cpus;
  return options;
}

}  // namespace

absl::StatusOr<Command> ParseCommandLine(int argc, const char* const* argv,
                                         const HostLimits& host) {
  Command command;
  command.options = Defaults(host);
  bool version = false;
  CLI::App app(
      "Serves LoRA adapters over gRPC: loads, lists, applies and merges them.\n"
      "Every flag is an environment variable too: ADAPTERD_ and its name in upper case.",
      "adapterd");
  Flags flags(app);
  AddServingFlags(flags, command.options);
  AddSecurityFlags(flags, command.options);
  flags.Config("config", "file with the same keys (key = value)");
  std::vector<std::string> args = ProtectEmptyValues(argc, argv);
  AddEnvironment(flags.names(), args);  // what follows is for the command line alone
  flags.Text("digest", "print the revision of the adapter at PATH and exit", command.text);
  flags.Text("validate",
             "print what the adapter at PATH is and all that is wrong with it, and exit",
             command.text);
  flags.Text("base-checkpoint", "with --validate: check against the base model's folder at PATH",
             command.base_checkpoint);
  app.add_flag("--version", version, "print the version and exit");
  try {
    std::reverse(args.begin(), args.end());  // the order that CLI11 takes a vector in
    app.parse(args);
  } catch (const CLI::CallForHelp&) {
    return Command{Command::Kind::kPrintAndExit, app.help(), ""};
  } catch (const CLI::ParseError& error) {
    return InvalidOption(error.what());
  }
  if (version) return Command{Command::Kind::kPrintAndExit, "adapterd " ADAPTERD_VERSION "\n", ""};
  if (app.count("--digest") > 0) command.kind = Command::Kind::kDigest;
  if (app.count("--validate") > 0) command.kind = Command::Kind::kValidate;
  if (absl::Status status = CheckOptions(command.options); !status.ok()) return status;
  return command;
}

std::optional<int64_t> ParseSize(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  const std::string_view unit = text.substr(end - text.data());
  static constexpr std::pair<std::string_view, int64_t> kUnits[] = {{"", 1},
                                                                    {"B", 1},
                                                                    {"KiB", 1LL << 10},
                                                                    {"MiB", 1LL << 20},
                                                                    {"GiB", 1LL << 30},
                                                                    {"TiB", 1LL << 40},
                                                                    {"kB", 1000},
                                                                    {"KB", 1000},
                                                                    {"MB", 1000'000},
                                                                    {"GB", 1000'000'000},
                                                                    {"TB", 1000'000'000'000}};
  for (const auto& [name, factor] : kUnits) {
    if (name == unit) return CheckedMul(value, factor);
  }
  return std::nullopt;
}

std::optional<HostPort> ParseHostPort(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  std::string_view host = address.substr(0, colon);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return std::nullopt;
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view port = address.substr(colon + 1);
  HostPort result{std::string(host), 0};
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), result.port);
  if (error != std::errc() || end != port.data() + port.size()) return std::nullopt;
  if (result.port < 0 || result.port > 65535) return std::nullopt;
  return result;
}

bool IsLoopback(std::string_view host) {
  in_addr v4;
  in6_addr v6;
  const std::string text(host);
  if (inet_pton(AF_INET, text.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (inet_pton(AF_INET6, text.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

}  // namespace adapterd
