// The whole server, on ports that the system picks.
#include "service/server.h"

#include <gmock/gmock.h>
#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <optional>

#include "adapterd/v1/adapter_service.grpc.pb.h"
#include "tests/testing/http_client.h"
#include "tests/testing/peft_builder.h"
#include "tests/testing/rpc_matchers.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
    options_.grpc_address = "127.0.0.1:0";
    options_.admin_address = "127.0.0.1:0";
    options_.adapter_roots = {{"", dir_.path().string()}};
    options_.memory_budget_bytes = 1 << 30;
    options_.max_inflight_bytes = 1 << 30;
    options_.threads = 2;
    options_.drain_timeout = absl::Seconds(60);
    options_.log_level = LogLevel::kOff;
    PeftBuilder(1).Add("q_proj", 2, 8, 4).Write(dir_, "a");
  }

  // What gRPC prints about ports that are taken is meant to happen here.
  static void SetUpTestSuite() {
    gpr_set_log_function(+[](gpr_log_func_args*) {});
  }

  // The port that the ready line names: "grpc" or "admin".
  static int PortOf(const Server& server, const std::string& what) {
    const std::string line = server.ReadyLine();
    const size_t at = line.find(what + "=127.0.0.1:");
    return std::stoi(line.substr(at + what.size() + 11));
  }

  static std::shared_ptr<grpc::Channel> ChannelTo(const Server& server) {
    return grpc::CreateChannel("127.0.0.1:" + std::to_string(PortOf(server, "grpc")),
                               grpc::InsecureChannelCredentials());
  }

  static grpc::Status List(const std::shared_ptr<grpc::Channel>& channel,
                           v1::ListAdaptersResponse& response) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    return v1::AdapterService::NewStub(channel)->ListAdapters(&context, {}, &response);
  }

  TempDir dir_;
  ServerOptions options_;
};

TEST_F(ServerTest, ItServesOnThePortsThatItNames) {
  options_.load = {{"x", "a"}};
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options_));
  EXPECT_THAT(server->ReadyLine(), MatchesRegex("adapterd ready grpc=127\\.0\\.0\\.1:[0-9]+ "
                                                "admin=127\\.0\\.0\\.1:[0-9]+"));
  v1::ListAdaptersResponse listed;
  EXPECT_THAT(List(ChannelTo(*server), listed), IsRpcOk());
  ASSERT_EQ(listed.adapters_size(), 1);
  EXPECT_EQ(listed.adapters(0).name(), "x");
  EXPECT_EQ(HttpRequest(PortOf(*server, "admin"), "GET", "/readyz").status, 200);
  EXPECT_THAT(HttpRequest(PortOf(*server, "admin"), "GET", "/metrics").body,
              HasSubstr("adapterd_adapters{state=\"ready\"} 1"));
}

TEST_F(ServerTest, ItSaysWhatItIs) {
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options_));
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_THAT(v1::AdapterService::NewStub(ChannelTo(*server))->GetServerInfo(&context, {}, &info),
              IsRpcOk());
  EXPECT_EQ(info.version(), ADAPTERD_VERSION);
  EXPECT_NE(info.instance_id(), "");
  EXPECT_NE(info.onednn_version(), "");
  EXPECT_NE(info.isa(), "");
  EXPECT_EQ(info.threads(), 2);
  EXPECT_THAT(info.adapter_roots(), ::testing::ElementsAre(""));
  EXPECT_THAT(info.formats(), ::testing::Contains("peft"));
  EXPECT_EQ(info.limits().max_message_bytes(), options_.max_message_bytes);
  EXPECT_GT(info.limits().max_rows(), 0);
  EXPECT_EQ(info.limits().max_segments(), 1024);
  EXPECT_EQ(info.limits().max_adapters_per_segment(), 16);
  EXPECT_EQ(info.memory_budget_bytes(), options_.memory_budget_bytes);
  EXPECT_GT(info.start_time().seconds(), 0);
}

// Leaves a socket file at `path` on which nobody listens.
void LeaveStaleSocket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(fd);
}

TEST_F(ServerTest, ItServesOnAUnixSocketAndReplacesAStaleOne) {
  options_.unix_socket = (dir_.path() / "s").string();
  LeaveStaleSocket(options_.unix_socket);
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options_));
  v1::ListAdaptersResponse listed;
  const auto channel =
      grpc::CreateChannel("unix:" + options_.unix_socket, grpc::InsecureChannelCredentials());
  EXPECT_THAT(List(channel, listed), IsRpcOk());
}

TEST_F(ServerTest, AUnixSocketThatIsInUseEndsTheStart) {
  options_.unix_socket = (dir_.path() / "s").string();
  ASSERT_OK_AND_ASSIGN(const auto first, Server::Start(options_));
  EXPECT_THAT(Server::Start(options_), HasReason(Reason::kSourceUnavailable));
  v1::ListAdaptersResponse listed;
  const auto channel =
      grpc::CreateChannel("unix:" + options_.unix_socket, grpc::InsecureChannelCredentials());
  EXPECT_THAT(List(channel, listed), IsRpcOk());
}

TEST_F(ServerTest, AFileInTheWayOfAUnixSocketIsKept) {
  options_.unix_socket = dir_.Write("file", "precious").string();
  EXPECT_THAT(Server::Start(options_), HasReason(Reason::kSourceUnavailable));
  EXPECT_EQ(ReadFile(dir_ / "file"), "precious");
}

TEST_F(ServerTest, ALoadThatFailsEndsTheStart) {
  options_.load = {{"x", "a"}, {"y", "nowhere"}};
  const auto failed = Server::Start(options_);
  EXPECT_THAT(failed, HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(failed.status(), HasMessage(HasSubstr("--load y=nowhere")));
  options_.load = {{"../x", "a"}};
  EXPECT_THAT(Server::Start(options_), HasReason(Reason::kInvalidField));
}

TEST_F(ServerTest, ARootThatIsNotThereEndsTheStart) {
  options_.adapter_roots = {{"", (dir_.path() / "missing").string()}};
  EXPECT_THAT(Server::Start(options_), HasReason(Reason::kSourceNotFound));
  options_.adapter_roots = {{"", dir_.path().string()}, {"", dir_.path().string()}};
  EXPECT_THAT(Server::Start(options_), HasReason(Reason::kInvalidField));
}

TEST_F(ServerTest, APortThatIsTakenEndsTheStart) {
  for (const bool share : {false, true}) {
    LoopbackSocket taken;
    const std::string address = "127.0.0.1:" + std::to_string(taken.Listen(share));
    ServerOptions grpc_taken = options_;
    grpc_taken.grpc_address = address;
    EXPECT_THAT(Server::Start(grpc_taken), HasReason(Reason::kSourceUnavailable)) << share;
    EXPECT_THAT(Server::Start(grpc_taken).status(), HasMessage(HasSubstr(address)));
    ServerOptions admin_taken = options_;
    admin_taken.admin_address = address;
    EXPECT_THAT(Server::Start(admin_taken), HasReason(Reason::kSourceUnavailable)) << share;
  }
  ASSERT_OK_AND_ASSIGN(const auto first, Server::Start(options_));
  options_.grpc_address = "127.0.0.1:" + std::to_string(PortOf(*first, "grpc"));
  EXPECT_THAT(Server::Start(options_), HasReason(Reason::kSourceUnavailable));
}

TEST_F(ServerTest, AnIdleServerDrainsCleanly) {
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options_));
  EXPECT_TRUE(server->Drain());
  EXPECT_EQ(HttpRequest(PortOf(*server, "admin"), "GET", "/readyz").status, 503);
  EXPECT_EQ(HttpRequest(PortOf(*server, "admin"), "GET", "/healthz").status, 200);
}

}  // namespace
}  // namespace adapterd
