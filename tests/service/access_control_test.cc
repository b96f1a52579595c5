#include "service/access/access_control.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "adapterd/v1/adapter_service.pb.h"
#include "adapterd/v1/base_model_service.pb.h"
#include "adapterd/v1/merge_service.pb.h"
#include "adapterd/v1/projection_service.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

// Of "open sesame".
constexpr char kPolicy[] = R"({
  "tokens": [{"subject": "s", "role": "user",
    "sha256": "41ef4bb0b23661e66301aac36066912dac037827b4ae63a7b1165a5aa93ed4eb"}],
  "certificates": [{"san": "engine", "role": "admin"}]})";
constexpr char kService[] = "adapterd.v1.AdapterService";

// "service.method" of every RPC that the protos define.
std::set<std::string> EveryRpc() {
  std::set<std::string> names;
  for (const google::protobuf::FileDescriptor* file :
       {v1::LoadAdapterRequest::descriptor()->file(),
        v1::LoadBaseModelRequest::descriptor()->file(), v1::MergeRequest::descriptor()->file(),
        v1::ApplyProjectionRequest::descriptor()->file()}) {
    for (int i = 0; i < file->service_count(); ++i) {
      for (int j = 0; j < file->service(i)->method_count(); ++j) {
        names.insert(file->service(i)->method(j)->full_name());
      }
    }
  }
  return names;
}

TEST(MethodRulesTest, EveryRpcHasOneRule) {
  std::set<std::string> ruled;
  for (const MethodRule& rule : MethodRules()) {
    const std::string name = std::string(rule.service) + "." + std::string(rule.method);
    EXPECT_TRUE(ruled.insert(name).second) << name << " has two rules";
    EXPECT_EQ(FindMethodRule(rule.service, rule.method), &rule);
  }
  EXPECT_EQ(ruled, EveryRpc());
  EXPECT_EQ(FindMethodRule(kService, "Other"), nullptr);
  EXPECT_EQ(FindMethodRule("adapterd.v1.MergeService", "LoadAdapter"), nullptr);
}

TEST(MethodRulesTest, WhatChangesTheServerIsForAdminsAlone) {
  for (const MethodRule& rule : MethodRules()) {
    EXPECT_EQ(rule.changes, rule.role == Role::kAdmin) << rule.method;
  }
}

class AccessControlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = dir_.Write("policy.json", kPolicy);
    ASSERT_OK_AND_ASSIGN(access_, AccessControl::Open(path_, metrics_, logger_));
  }

  absl::Status Admit(std::vector<std::string> authorization, std::vector<std::string> sans,
                     const MethodRule* rule) {
    return access_->Admit({std::move(authorization), std::move(sans)}, rule, caller_);
  }

  const MethodRule* const list_ = FindMethodRule(kService, "ListAdapters");
  const MethodRule* const load_ = FindMethodRule(kService, "LoadAdapter");
  TempDir dir_;
  std::string path_;
  Metrics metrics_;
  Logger logger_{LogFormat::kText, LogLevel::kOff};
  std::unique_ptr<AccessControl> access_;
  CallerPtr caller_;
};

TEST_F(AccessControlTest, ACallerMayDoWhatItsRoleAllows) {
  EXPECT_THAT(Admit({"Bearer open sesame"}, {}, list_), IsOk());
  ASSERT_NE(caller_, nullptr);
  EXPECT_EQ(caller_->subject, "s");
  EXPECT_THAT(Admit({}, {"engine"}, load_), IsOk());
  EXPECT_EQ(caller_->subject, "engine");
}

TEST_F(AccessControlTest, ADenialNamesTheRoleThatIsMissing) {
  const absl::Status denied = Admit({"Bearer open sesame"}, {}, load_);
  EXPECT_THAT(denied, HasReason(Reason::kPermissionDenied));
  EXPECT_THAT(denied, HasMessage("LoadAdapter needs the role admin"));
  EXPECT_NE(caller_, nullptr) << "who was denied is known";
}

TEST_F(AccessControlTest, AMethodWithoutARuleIsForNobody) {
  EXPECT_THAT(Admit({}, {"engine"}, nullptr), HasReason(Reason::kPermissionDenied));
  EXPECT_THAT(Admit({}, {}, nullptr), HasReason(Reason::kUnauthenticated));
}

TEST_F(AccessControlTest, EveryFailureToProveWhoOneIsHasTheSameAnswer) {
  const absl::Status none = Admit({}, {}, list_);
  EXPECT_THAT(none, HasReason(Reason::kUnauthenticated));
  const std::vector<std::vector<std::string>> headers = {
      {""},
      {"Bearer"},
      {"Bearer "},
      {"open sesame"},
      {"Basic open sesame"},
      {"Bearer wrong"},
      {"Bearer open sesame", "Bearer open sesame"},
      {"Bearer " + std::string(kMaxAuthorizationBytes, 'x')}};
  for (const auto& header : headers) {
    // A certificate does not make up for a wrong token.
    EXPECT_EQ(Admit(header, {"engine"}, list_), none) << header[0].substr(0, 50);
    EXPECT_EQ(caller_, nullptr);
  }
  EXPECT_EQ(Admit({}, {"other"}, list_), none);
}

TEST_F(AccessControlTest, AReloadTakesOverAPolicyOrLeavesTheOldOne) {
  const uint64_t first = access_->generation();
  dir_.Write("policy.json", "{");
  access_->Reload();
  EXPECT_THAT(Admit({"Bearer open sesame"}, {}, list_), IsOk());
  EXPECT_EQ(access_->generation(), first);
  std::filesystem::remove(path_);
  access_->Reload();
  EXPECT_THAT(Admit({"Bearer open sesame"}, {}, list_), IsOk());
  dir_.Write("policy.json", "{}");
  access_->Reload();
  EXPECT_THAT(Admit({"Bearer open sesame"}, {}, list_), HasReason(Reason::kUnauthenticated));
  EXPECT_GT(access_->generation(), first);
}

TEST_F(AccessControlTest, AFileThatIsNoPolicyOrNotThereIsAnError) {
  EXPECT_THAT(AccessControl::Open(dir_ / "none", metrics_, logger_),
              HasReason(Reason::kSourceUnavailable));
  const std::string broken = dir_.Write("broken", "x");
  EXPECT_THAT(AccessControl::Open(broken, metrics_, logger_), HasMessage(HasSubstr(broken)));
}

}  // namespace
}  // namespace adapterd
