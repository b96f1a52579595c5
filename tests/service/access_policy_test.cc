#include "service/access/access_policy.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/sha256.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// printf %s TOKEN | sha256sum
constexpr char kHashOfSesame[] = "41ef4bb0b23661e66301aac36066912dac037827b4ae63a7b1165a5aa93ed4eb";
constexpr char kHashOfNothing[] =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string TokenEntry(const std::string& hash, const std::string& rest) {
  return fmt::format(R"({{"tokens": [{{"sha256": "{}"{}}}]}})", hash, rest);
}

TEST(AccessPolicyTest, TokensAndCertificatesHaveTheRolesOfTheirEntries) {
  ASSERT_OK_AND_ASSIGN(const AccessPolicy policy, ParseAccessPolicy(fmt::format(R"({{
    "tokens": [{{"subject": "ci", "sha256": "{}", "role": "admin"}}],
    "certificates": [{{"san": "engine.example", "role": "user"}},
                     {{"san": "spiffe://x/y", "role": "viewer", "subject": "y"}}]
  }})",
                                                                                kHashOfSesame)));
  const Caller* const ci = policy.FindToken("open sesame");
  ASSERT_NE(ci, nullptr);
  EXPECT_EQ(ci->subject, "ci");
  EXPECT_EQ(ci->role, Role::kAdmin);
  for (const char* wrong : {"", "open", "open sesame ", "Open sesame", kHashOfSesame}) {
    EXPECT_EQ(policy.FindToken(wrong), nullptr) << wrong;
  }
  const Caller* const engine = policy.FindCertificate({"other", "engine.example"});
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->subject, "engine.example");
  EXPECT_EQ(engine->role, Role::kUser);
  // The first entry of the policy decides, not the first name of the certificate.
  EXPECT_EQ(policy.FindCertificate({"spiffe://x/y", "engine.example"}), engine);
  EXPECT_EQ(policy.FindCertificate({"spiffe://x/y"})->subject, "y");
  EXPECT_EQ(policy.FindCertificate({"engine", "ENGINE.EXAMPLE", ""}), nullptr);
  EXPECT_EQ(policy.FindCertificate({}), nullptr);
  EXPECT_EQ(policy.anonymous(), nullptr);
}

TEST(AccessPolicyTest, HexDigitsMayBeUpperCase) {
  std::string upper = kHashOfSesame;
  for (char& c : upper) c = static_cast<char>(toupper(c));
  ASSERT_OK_AND_ASSIGN(const AccessPolicy policy,
                       ParseAccessPolicy(TokenEntry(upper, R"(, "subject": "s", "role": "user")")));
  EXPECT_NE(policy.FindToken("open sesame"), nullptr);
}

TEST(AccessPolicyTest, AnEmptyPolicyLetsNobodyIn) {
  ASSERT_OK_AND_ASSIGN(const AccessPolicy policy, ParseAccessPolicy("{}"));
  EXPECT_EQ(policy.FindToken("x"), nullptr);
  EXPECT_EQ(policy.anonymous(), nullptr);
}

TEST(AccessPolicyTest, AnonymousCallersMayHaveARole) {
  ASSERT_OK_AND_ASSIGN(const AccessPolicy policy,
                       ParseAccessPolicy(R"({"anonymous_role": "viewer"})"));
  ASSERT_NE(policy.anonymous(), nullptr);
  EXPECT_EQ(policy.anonymous()->role, Role::kViewer);
  EXPECT_EQ(policy.anonymous()->subject, "anonymous");
}

TEST(AccessPolicyTest, ErrorsNameThePlaceAndNeverWhatMayBeASecret) {
  const std::string rest = R"(, "subject": "s", "role": "user")";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "line 1: not JSON"},
      {"{\n\"tokens\": [\n", "line 3: not JSON"},
      {"[]", "expected an object, found array"},
      {R"({"token": []})",
       "expected the keys tokens, certificates, anonymous_role, $schema, found \"token\""},
      {R"({"tokens": {}})", "tokens: expected a list, found object"},
      {R"({"tokens": ["secret"]})", "tokens[0]: expected an object, found string"},
      {R"({"tokens": [], "tokens": []})", "the key \"tokens\" comes twice"},
      {TokenEntry(kHashOfSesame, R"(, "role": "user")"), "tokens[0].subject: expected text"},
      {TokenEntry(kHashOfSesame, R"(, "subject": "", "role": "user")"), "tokens[0].subject"},
      {TokenEntry(kHashOfSesame, R"(, "subject": "a\nb", "role": "user")"), "tokens[0].subject"},
      {TokenEntry(kHashOfSesame, R"(, "subject": "anonymous", "role": "user")"),
       "tokens[0].subject"},
      {TokenEntry(kHashOfSesame, R"(, "subject": "s")"), "tokens[0].role: expected text"},
      {TokenEntry(kHashOfSesame, R"(, "subject": "s", "role": "Admin")"),
       "tokens[0].role: expected viewer, user, admin, found \"Admin\""},
      {TokenEntry(kHashOfSesame, R"(, "subject": "s", "role": 3)"),
       "tokens[0].role: expected text, found number"},
      {TokenEntry(kHashOfSesame, rest + R"(, "tenant": "t")"), "found \"tenant\""},
      {TokenEntry("secret", rest), "tokens[0].sha256: expected the 64 hex digits"},
      {TokenEntry(std::string(kHashOfSesame) + "0", rest), "tokens[0].sha256"},
      {TokenEntry(std::string(64, 'g'), rest), "tokens[0].sha256"},
      {TokenEntry(kHashOfNothing, rest), "tokens[0].sha256: expected the SHA-256 of a token"},
      {R"({"certificates": [{"san": "x", "role": "user"}, {"san": "x", "role": "admin"}]})",
       "certificates[1]"},
      {R"({"certificates": [{"role": "user"}]})", "certificates[0].san: expected text"},
      {R"({"anonymous_role": "root"})", "anonymous_role: expected viewer, user, admin"},
      {std::string(kMaxPolicyBytes + 1, ' '), "expected at most 1048576 bytes"},
  };
  for (const auto& [text, message] : cases) {
    SCOPED_TRACE(text.substr(0, 200));
    const absl::StatusOr<AccessPolicy> policy = ParseAccessPolicy(text);
    EXPECT_THAT(policy, HasReason(Reason::kInvalidField));
    EXPECT_THAT(policy, HasMessage(HasSubstr(message)));
    EXPECT_THAT(policy, HasMessage(Not(HasSubstr("secret"))));
    EXPECT_THAT(policy, HasMessage(Not(HasSubstr("\n"))));
  }
}

TEST(AccessPolicyTest, HasAtMostAThousandEntries) {
  nlohmann::json policy;
  for (size_t i = 0; i < kMaxPolicyEntries; ++i) {
    Sha256 hash;
    hash.Update(std::to_string(i));
    policy["tokens"].push_back({{"subject", "s"}, {"sha256", hash.FinishHex()}, {"role", "user"}});
  }
  ASSERT_OK_AND_ASSIGN(const AccessPolicy most, ParseAccessPolicy(policy.dump()));
  EXPECT_NE(most.FindToken("999"), nullptr);
  policy["tokens"].push_back(policy["tokens"][0]);
  EXPECT_THAT(ParseAccessPolicy(policy.dump()), HasMessage(HasSubstr("found 1001")));
}

// The schema is for editors and CI of operators; both describe the same keys.
TEST(AccessPolicyTest, TheSchemaHasTheKeysThatAreRead) {
  const auto schema = nlohmann::json::parse(std::ifstream(ADAPTERD_POLICY_SCHEMA));
  const auto keys = [](const nlohmann::json& object) {
    std::vector<std::string> names;
    for (const auto& [key, unused] : object["properties"].items()) names.push_back(key);
    EXPECT_EQ(object["additionalProperties"], false);
    return names;
  };
  using ::testing::UnorderedElementsAre;
  EXPECT_THAT(keys(schema),
              UnorderedElementsAre("$schema", "tokens", "certificates", "anonymous_role"));
  EXPECT_THAT(keys(schema["$defs"]["token"]), UnorderedElementsAre("subject", "sha256", "role"));
  EXPECT_THAT(keys(schema["$defs"]["certificate"]), UnorderedElementsAre("subject", "san", "role"));
  EXPECT_EQ(schema["$defs"]["role"]["enum"], nlohmann::json(kRoleNames));
  EXPECT_THAT(ParseAccessPolicy(R"({"$schema": "access-policy.schema.json"})"), IsOk());
}

}  // namespace
}  // namespace adapterd
