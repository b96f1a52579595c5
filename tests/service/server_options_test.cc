#include "service/server_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;
using ::testing::SizeIs;

constexpr int64_t kGiB = int64_t{1} << 30;

absl::StatusOr<Command> Parse(const std::vector<std::string>& args) {
  std::vector<const char*> argv = {"adapterd"};
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data(), HostLimits{10 * kGiB, 3});
}

// An environment variable while it lives.
class ScopedEnv {
 public:
  ScopedEnv(std::string name, const std::string& value) : name_(std::move(name)) {
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~ScopedEnv() { unsetenv(name_.c_str()); }
  ScopedEnv(const ScopedEnv&) = delete;
  ScopedEnv& operator=(const ScopedEnv&) = delete;

 private:
  std::string name_;
};

std::string EnvironmentNameOf(const std::string& flag) {
  std::string name = "ADAPTERD_";
  for (const char c : flag) name.push_back(c == '-' ? '_' : static_cast<char>(toupper(c)));
  return name;
}

struct Knob {
  std::string flag;
  std::string value;
  std::function<bool(const ServerOptions&)> is_set;
};

std::vector<Knob> Knobs() {
  using O = ServerOptions;
  return {
      {"grpc-address", "127.0.0.1:7", [](const O& o) { return o.grpc_address == "127.0.0.1:7"; }},
      {"unix-socket", "/run/a.sock", [](const O& o) { return o.unix_socket == "/run/a.sock"; }},
      {"admin-address", "localhost:8", [](const O& o) { return o.admin_address == "localhost:8"; }},
      {"adapter-root", "/adapters",
       [](const O& o) {
         return o.adapter_roots.size() == 1 && o.adapter_roots[0].name.empty() &&
                o.adapter_roots[0].path == "/adapters";
       }},
      {"adapter-root", "team=/adapters",
       [](const O& o) {
         return o.adapter_roots.size() == 1 && o.adapter_roots[0].name == "team" &&
                o.adapter_roots[0].path == "/adapters";
       }},
      {"memory-budget", "512MiB", [](const O& o) { return o.memory_budget_bytes == 512 << 20; }},
      {"max-message-size", "1MiB", [](const O& o) { return o.max_message_bytes == 1 << 20; }},
      {"max-inflight-bytes", "3GB",
       [](const O& o) { return o.max_inflight_bytes == 3'000'000'000; }},
      {"keep-revisions", "2", [](const O& o) { return o.keep_revisions == 2; }},
      {"tenant-quota", "blue=3,2GiB",
       [](const O& o) {
         return o.tenant_quotas == TenantQuotas{{"blue", TenantQuota{3, 2 * kGiB, 0}}};
       }},
      {"tenant-quota", "blue=3,2GiB,50",
       [](const O& o) {
         return o.tenant_quotas == TenantQuotas{{"blue", TenantQuota{3, 2 * kGiB, 50}}};
       }},
      {"data-dir", "/data", [](const O& o) { return o.data_dir == "/data"; }},
      {"max-upload-bytes", "2GiB", [](const O& o) { return o.max_upload_bytes == 2 * kGiB; }},
      {"threads", "5", [](const O& o) { return o.threads == 5; }},
      {"watch-adapters", "/adapters", [](const O& o) { return o.watch_adapters == "/adapters"; }},
      {"load", "x=team:folder/x",
       [](const O& o) {
         return o.load.size() == 1 && o.load[0].first == "x" && o.load[0].second == "team:folder/x";
       }},
      {"drain-timeout", "1500ms",
       [](const O& o) { return o.drain_timeout == absl::Milliseconds(1500); }},
      {"public-id-template", "{name}", [](const O& o) { return o.public_id_template == "{name}"; }},
      {"log-format", "json", [](const O& o) { return o.log_format == LogFormat::kJson; }},
      {"log-level", "error", [](const O& o) { return o.log_level == LogLevel::kError; }},
      {"access-policy", "/p.json", [](const O& o) { return o.access_policy == "/p.json"; }},
      {"audit-log", "-", [](const O& o) { return o.audit_log == "-"; }},
      {"insecure", "true", [](const O& o) { return o.insecure; }},
      {"admin-insecure", "true", [](const O& o) { return o.admin_insecure; }},
      {"debug-pages", "true", [](const O& o) { return o.debug_pages; }},
  };
}

TEST(ServerOptionsTest, DefaultsFollowTheHost) {
  ASSERT_OK_AND_ASSIGN(const Command command, Parse({}));
  EXPECT_EQ(command.kind, Command::Kind::kServe);
  const ServerOptions& options = command.options;
  EXPECT_EQ(options.grpc_address, "127.0.0.1:50051");
  EXPECT_EQ(options.admin_address, "127.0.0.1:9464");
  EXPECT_EQ(options.unix_socket, "");
  EXPECT_THAT(options.adapter_roots, SizeIs(0));
  EXPECT_EQ(options.memory_budget_bytes, 6 * kGiB);
  EXPECT_EQ(options.max_message_bytes, 256 << 20);
  EXPECT_EQ(options.max_inflight_bytes, 10 * kGiB / 4);
  EXPECT_EQ(options.data_dir, "");
  EXPECT_EQ(options.max_upload_bytes, 4 * kGiB);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.drain_timeout, absl::Seconds(25));
  EXPECT_EQ(options.public_id_template, "{base}:{name}");
  EXPECT_FALSE(options.insecure);
  EXPECT_FALSE(options.admin_insecure);
  EXPECT_FALSE(options.debug_pages);
  EXPECT_EQ(options.tls_cert, "");
  EXPECT_EQ(options.access_policy, "");
  EXPECT_EQ(options.log_format, LogFormat::kText);
  EXPECT_EQ(options.log_level, LogLevel::kInfo);
}

TEST(ServerOptionsTest, OnASmallHostOneMessageStillFits) {
  const char* const argv[] = {"adapterd"};
  ASSERT_OK_AND_ASSIGN(const Command command, ParseCommandLine(1, argv, {512 << 20, 1}));
  EXPECT_EQ(command.options.max_inflight_bytes, command.options.max_message_bytes);
}

TEST(ServerOptionsTest, EveryKnobIsAFlag) {
  ASSERT_OK_AND_ASSIGN(const Command nothing, Parse({}));
  for (const Knob& knob : Knobs()) {
    SCOPED_TRACE(knob.flag);
    EXPECT_FALSE(knob.is_set(nothing.options));
    ASSERT_OK_AND_ASSIGN(const Command joined, Parse({"--" + knob.flag + "=" + knob.value}));
    EXPECT_TRUE(knob.is_set(joined.options));
    if (knob.value == "true") continue;  // a switch
    ASSERT_OK_AND_ASSIGN(const Command apart, Parse({"--" + knob.flag, knob.value}));
    EXPECT_TRUE(knob.is_set(apart.options));
  }
}

TEST(ServerOptionsTest, EveryKnobIsAnEnvironmentVariable) {
  for (const Knob& knob : Knobs()) {
    SCOPED_TRACE(knob.flag);
    const ScopedEnv env(EnvironmentNameOf(knob.flag), knob.value);
    ASSERT_OK_AND_ASSIGN(const Command command, Parse({}));
    EXPECT_TRUE(knob.is_set(command.options));
  }
}

TEST(ServerOptionsTest, EveryKnobIsAKeyOfTheConfigFile) {
  const TempDir dir;
  for (const Knob& knob : Knobs()) {
    SCOPED_TRACE(knob.flag);
    const std::string file = dir.Write("c.ini", knob.flag + " = \"" + knob.value + "\"\n");
    ASSERT_OK_AND_ASSIGN(const Command command, Parse({"--config", file}));
    EXPECT_TRUE(knob.is_set(command.options));
    const ScopedEnv env("ADAPTERD_CONFIG", file);
    ASSERT_OK_AND_ASSIGN(const Command by_env, Parse({}));
    EXPECT_TRUE(knob.is_set(by_env.options));
  }
}

TEST(ServerOptionsTest, FlagsComeBeforeEnvironmentBeforeConfigFile) {
  const TempDir dir;
  const std::string file = dir.Write("c.ini", "threads = 1\nlog-level = error\nlog-format=json\n");
  const ScopedEnv threads("ADAPTERD_THREADS", "2");
  const ScopedEnv level("ADAPTERD_LOG_LEVEL", "debug");
  ASSERT_OK_AND_ASSIGN(const Command command, Parse({"--config", file, "--threads", "7"}));
  EXPECT_EQ(command.options.threads, 7);
  EXPECT_EQ(command.options.log_level, LogLevel::kDebug);
  EXPECT_EQ(command.options.log_format, LogFormat::kJson);
}

TEST(ServerOptionsTest, AFlagWithoutAValueAfterTheEqualsSignIsEmpty) {
  const ScopedEnv env("ADAPTERD_UNIX_SOCKET", "/from/env");
  ASSERT_OK_AND_ASSIGN(const Command command,
                       Parse({"--unix-socket=", "--threads", "2", "--public-id-template="}));
  EXPECT_EQ(command.options.unix_socket, "");
  EXPECT_EQ(command.options.threads, 2);
  EXPECT_EQ(command.options.public_id_template, "");
}

TEST(ServerOptionsTest, RepeatableFlagsAddUpAndOthersTakeTheLast) {
  ASSERT_OK_AND_ASSIGN(const Command command,
                       Parse({"--adapter-root", "/a", "--load", "x=1", "--adapter-root", "b=/b",
                              "--load", "y=2", "--threads", "1", "--threads", "2"}));
  ASSERT_THAT(command.options.adapter_roots, SizeIs(2));
  EXPECT_EQ(command.options.adapter_roots[1].name, "b");
  EXPECT_THAT(command.options.load, ElementsAre(Pair("x", "1"), Pair("y", "2")));
  EXPECT_EQ(command.options.threads, 2);
}

TEST(ServerOptionsTest, RepeatableKeysOfTheConfigFileAreLists) {
  const TempDir dir;
  const std::string file =
      dir.Write("c.ini", "adapter-root = [\"/a\", \"b=/b\"]\nload = [\"x=1\", \"y=2\"]\n");
  ASSERT_OK_AND_ASSIGN(const Command command, Parse({"--config", file}));
  EXPECT_THAT(command.options.adapter_roots, SizeIs(2));
  EXPECT_THAT(command.options.load, ElementsAre(Pair("x", "1"), Pair("y", "2")));
}

TEST(ServerOptionsTest, ARootsPathMayHoldAnEqualsSign) {
  ASSERT_OK_AND_ASSIGN(const Command command, Parse({"--adapter-root", "/data/run=1/adapters"}));
  EXPECT_EQ(command.options.adapter_roots[0].name, "");
  EXPECT_EQ(command.options.adapter_roots[0].path, "/data/run=1/adapters");
}

TEST(ServerOptionsTest, WrongValuesAreRefusedInOneLine) {
  const std::vector<std::vector<std::string>> cases = {
      {"--threads", "0"},
      {"--threads", "1025"},
      {"--threads", "-1"},
      {"--threads", "2x"},
      {"--threads="},
      {"--threads", "99999999999999999999"},
      {"--memory-budget", "0"},
      {"--memory-budget", "-1"},
      {"--memory-budget", "1.5GiB"},
      {"--memory-budget", "12XB"},
      {"--memory-budget="},
      {"--memory-budget", "9999999TiB"},
      {"--max-message-size", "lots"},
      {"--max-inflight-bytes", ""},
      {"--drain-timeout", "25"},
      {"--drain-timeout", "-1s"},
      {"--drain-timeout", "inf"},
      {"--log-format", "xml"},
      {"--log-level", "INFO"},
      {"--adapter-root="},
      {"--adapter-root", "=/path"},
      {"--adapter-root", "name="},
      {"--load", "x"},
      {"--load", "=source"},
      {"--load", "x="},
      {"--load", "x=1", "--load", "x=2"},
      {"--load", "x=1", "--load", "x=1"},
      {"--grpc-address", "nowhere"},
      {"--grpc-address="},
      {"--grpc-address", ":50051"},
      {"--grpc-address", "127.0.0.1:65536"},
      {"--grpc-address", "127.0.0.1:"},
      {"--admin-address", "127.0.0.1:x"},
      {"--insecure=maybe"},
      {"--unknown", "1"},
      {"--config", "/no/such/file"},
      {"positional"},
      {"--threads"},
      {"-x"},
  };
  for (const std::vector<std::string>& args : cases) {
    SCOPED_TRACE(::testing::PrintToString(args));
    const absl::StatusOr<Command> command = Parse(args);
    EXPECT_THAT(command, HasReason(Reason::kInvalidField));
    EXPECT_THAT(command, HasMessage(Not(HasSubstr("\n"))));
    EXPECT_THAT(command, HasMessage(Not("")));
  }
}

TEST(ServerOptionsTest, ErrorsNameTheFlagAndTheValue) {
  EXPECT_THAT(Parse({"--threads", "many"}),
              HasMessage(::testing::AllOf(HasSubstr("--threads"), HasSubstr("many"))));
  EXPECT_THAT(Parse({"--load", "x=1", "--load", "x=2"}),
              HasMessage(::testing::AllOf(HasSubstr("--load"), HasSubstr("x"))));
}

TEST(ServerOptionsTest, AnUnknownKeyOfTheConfigFileIsRefused) {
  const TempDir dir;
  for (const char* text : {"thread = 1\n", "[section]\nthreads = 1\n", "threads 1\n"}) {
    EXPECT_THAT(Parse({"--config", dir.Write("c.ini", text)}), HasReason(Reason::kInvalidField))
        << text;
  }
}

TEST(ServerOptionsTest, TheFilesOfTlsComeTogether) {
  ASSERT_OK_AND_ASSIGN(const Command command,
                       Parse({"--tls-cert=c", "--tls-key=k", "--tls-client-ca=a",
                              "--admin-tls-cert=C", "--admin-tls-key=K"}));
  const ServerOptions& options = command.options;
  EXPECT_EQ(options.tls_cert + options.tls_key + options.tls_client_ca, "cka");
  EXPECT_EQ(options.admin_tls_cert + options.admin_tls_key, "CK");
  for (const char* alone : {"--tls-cert=c", "--tls-key=k", "--tls-client-ca=a",
                            "--admin-tls-cert=C", "--admin-tls-key=K"}) {
    EXPECT_THAT(Parse({alone}), HasMessage(HasSubstr("needs --"))) << alone;
  }
}

TEST(ServerOptionsTest, TlsOrAWordOpensEachPortForItself) {
  const std::vector<std::string> grpc_tls = {"--tls-cert=c", "--tls-key=k"};
  const std::vector<std::string> admin_tls = {"--admin-tls-cert=c", "--admin-tls-key=k"};
  const auto parse = [](std::vector<std::string> args, const std::string& more) {
    args.push_back(more);
    return Parse(args);
  };
  EXPECT_THAT(parse(grpc_tls, "--grpc-address=0.0.0.0:1"), IsOk());
  EXPECT_THAT(parse(grpc_tls, "--admin-address=0.0.0.0:1"), HasReason(Reason::kInvalidField));
  EXPECT_THAT(parse(admin_tls, "--admin-address=0.0.0.0:1"), IsOk());
  EXPECT_THAT(parse(admin_tls, "--grpc-address=0.0.0.0:1"), HasReason(Reason::kInvalidField));
  EXPECT_THAT(Parse({"--admin-insecure", "--admin-address=0.0.0.0:1"}), IsOk());
  EXPECT_THAT(Parse({"--admin-insecure", "--grpc-address=0.0.0.0:1"}),
              HasReason(Reason::kInvalidField));
}

TEST(ServerOptionsTest, PlainTextBeyondLoopbackNeedsAWord) {
  for (const char* flag : {"--grpc-address", "--admin-address"}) {
    for (const char* address :
         {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1", "[::ffff:10.0.0.1]:1"}) {
      EXPECT_THAT(Parse({flag, address}), HasReason(Reason::kInvalidField)) << address;
      EXPECT_THAT(Parse({flag, address}), HasMessage(HasSubstr("--insecure"))) << address;
      EXPECT_THAT(Parse({flag, address, "--insecure"}), IsOk()) << address;
    }
    for (const char* address : {"127.0.0.1:1", "127.9.9.9:0", "localhost:1", "[::1]:1"}) {
      EXPECT_THAT(Parse({flag, address}), IsOk()) << address;
    }
  }
}

TEST(ServerOptionsTest, VersionHelpAndDigestDoNotServe) {
  ASSERT_OK_AND_ASSIGN(const Command version, Parse({"--version"}));
  EXPECT_EQ(version.kind, Command::Kind::kPrintAndExit);
  EXPECT_THAT(version.text, HasSubstr("adapterd "));
  ASSERT_OK_AND_ASSIGN(const Command help, Parse({"--help"}));
  EXPECT_EQ(help.kind, Command::Kind::kPrintAndExit);
  for (const Knob& knob : Knobs()) EXPECT_THAT(help.text, HasSubstr("--" + knob.flag));
  ASSERT_OK_AND_ASSIGN(const Command digest, Parse({"--digest", "some/path"}));
  EXPECT_EQ(digest.kind, Command::Kind::kDigest);
  EXPECT_EQ(digest.text, "some/path");
}

TEST(ParseSizeTest, UnitsAreBinaryOrDecimal) {
  const std::pair<const char*, int64_t> cases[] = {
      {"0", 0},
      {"1000", 1000},
      {"1B", 1},
      {"2KiB", 2048},
      {"512MiB", 512 << 20},
      {"4GiB", 4 * kGiB},
      {"1TiB", kGiB << 10},
      {"1kB", 1000},
      {"1KB", 1000},
      {"3MB", 3'000'000},
      {"2GB", 2'000'000'000},
      {"9223372036854775807", INT64_MAX},
  };
  for (const auto& [text, bytes] : cases) EXPECT_EQ(ParseSize(text), bytes) << text;
  for (const char* text : {"", "MiB", "-1", "+1", " 1", "1 ", "1 MiB", "1mib", "1.5GiB", "0x10",
                           "9223372036854775808", "9007199254740992KiB", "1GiBB"}) {
    EXPECT_EQ(ParseSize(text), std::nullopt) << text;
  }
}

TEST(ParseHostPortTest, HostsMayBeNamesAndAddresses) {
  const std::tuple<const char*, const char*, int> cases[] = {
      {"127.0.0.1:50051", "127.0.0.1", 50051},
      {"[::1]:0", "::1", 0},
      {"localhost:80", "localhost", 80},
      {"a.b-c:65535", "a.b-c", 65535}};
  for (const auto& [text, host, port] : cases) {
    const auto parsed = ParseHostPort(text);
    ASSERT_TRUE(parsed.has_value()) << text;
    EXPECT_EQ(parsed->host, host);
    EXPECT_EQ(parsed->port, port);
  }
  for (const char* text : {"", ":", "host", ":80", "host:", "host:-1", "host:65536", "host:1x",
                           "::1:80", "[]:80", "[::1:80", "[::1]80", "host: 80"}) {
    EXPECT_FALSE(ParseHostPort(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace adapterd
