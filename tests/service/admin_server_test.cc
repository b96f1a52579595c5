#include "service/admin_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "tests/testing/http_client.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

class AdminServerTest : public ::testing::Test {
 protected:
  AdminPages Pages() {
    AdminPages pages;
    pages.metrics = [this] { return "scrapes_total " + std::to_string(++scrapes_) + "\n"; };
    pages.ready = [this] { return ready_.load(); };
    pages.status = [](const StatusQuery& query) {
      return "{\"page\":" + std::to_string(query.page) + "}";
    };
    return pages;
  }

  std::atomic<int> scrapes_{0};
  std::atomic<bool> ready_{false};
};

TEST_F(AdminServerTest, MetricsAreMadeForEachScrape) {
  ASSERT_OK_AND_ASSIGN(const auto admin, AdminServer::Start({"127.0.0.1", 0}, Pages()));
  ASSERT_GT(admin->port(), 0);
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/metrics").body, "scrapes_total 1\n");
  const HttpReply second = HttpRequest(admin->port(), "GET", "/metrics");
  EXPECT_EQ(second.status, 200);
  EXPECT_EQ(second.body, "scrapes_total 2\n");
  EXPECT_THAT(second.head, HasSubstr("text/plain; version=0.0.4"));
}

TEST_F(AdminServerTest, HealthIsAliveAndReadinessIsToldByThePages) {
  ASSERT_OK_AND_ASSIGN(const auto admin, AdminServer::Start({"127.0.0.1", 0}, Pages()));
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/healthz").status, 200);
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/readyz").status, 503);
  ready_ = true;
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/readyz").status, 200);
  ready_ = false;
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/readyz").status, 503);
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/healthz").status, 200);
}

TEST_F(AdminServerTest, OtherPathsAndMethodsAreNotFound) {
  ASSERT_OK_AND_ASSIGN(const auto admin, AdminServer::Start({"127.0.0.1", 0}, Pages()));
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/index.html").status, 404);
  EXPECT_EQ(HttpRequest(admin->port(), "GET", "/metrics/../etc").status, 404);
  EXPECT_EQ(HttpRequest(admin->port(), "POST", "/metrics").status, 404);
  EXPECT_EQ(HttpRequest(admin->port(), "DELETE", "/healthz").status, 404);
  EXPECT_EQ(scrapes_, 0);
}

TEST_F(AdminServerTest, TheStatusPageAndItsDataCarryThePolicy) {
  ASSERT_OK_AND_ASSIGN(const auto admin, AdminServer::Start({"127.0.0.1", 0}, Pages()));
  const HttpReply page = HttpRequest(admin->port(), "GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.body, StatusPageHtml());
  EXPECT_THAT(page.head, HasSubstr("Content-Type: text/html; charset=utf-8"));
  const HttpReply data = HttpRequest(admin->port(), "GET", "/status.json?page=3&filter=%3Cx");
  EXPECT_EQ(data.status, 200);
  EXPECT_EQ(data.body, "{\"page\":3}");
  EXPECT_THAT(data.head, HasSubstr("Content-Type: application/json"));
  const HttpReply bad = HttpRequest(admin->port(), "GET", "/status.json?page=%3Cscript%3E");
  EXPECT_EQ(bad.status, 400);
  EXPECT_THAT(bad.head, HasSubstr("Content-Type: text/plain"));
  for (const HttpReply& reply : {page, data, bad}) {
    EXPECT_THAT(reply.head, HasSubstr("Content-Security-Policy: " + StatusPagePolicy()));
    EXPECT_THAT(reply.head, HasSubstr("X-Content-Type-Options: nosniff"));
    EXPECT_THAT(reply.head, HasSubstr("Cache-Control: no-store"));
  }
}

TEST_F(AdminServerTest, ScrapesMayComeAtOnce) {
  ASSERT_OK_AND_ASSIGN(const auto admin, AdminServer::Start({"127.0.0.1", 0}, Pages()));
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back(
        [&] { EXPECT_EQ(HttpRequest(admin->port(), "GET", "/metrics").status, 200); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(scrapes_, 8);
}

TEST_F(AdminServerTest, APortThatIsTakenIsAnError) {
  for (const bool share : {false, true}) {
    LoopbackSocket taken;
    const int port = taken.Listen(share);
    const auto admin = AdminServer::Start({"127.0.0.1", port}, Pages());
    EXPECT_THAT(admin, HasReason(Reason::kSourceUnavailable)) << share;
    EXPECT_THAT(admin.status(), HasMessage(HasSubstr(std::to_string(port))));
  }
  ASSERT_OK_AND_ASSIGN(const auto first, AdminServer::Start({"127.0.0.1", 0}, Pages()));
  EXPECT_THAT(AdminServer::Start({"127.0.0.1", first->port()}, Pages()),
              HasReason(Reason::kSourceUnavailable));
}

TEST_F(AdminServerTest, ItsPortIsFreeOnceItIsGone) {
  int port = 0;
  {
    ASSERT_OK_AND_ASSIGN(const auto admin, AdminServer::Start({"127.0.0.1", 0}, Pages()));
    port = admin->port();
    EXPECT_EQ(HttpRequest(port, "GET", "/healthz").status, 200);
  }
  ASSERT_OK_AND_ASSIGN(const auto again, AdminServer::Start({"127.0.0.1", port}, Pages()));
  EXPECT_EQ(again->port(), port);
}

}  // namespace
}  // namespace adapterd
