#include "service/labels.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adapterd/v1/adapter_service.pb.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

absl::StatusOr<Labels> Read(const std::string& key, const std::string& value) {
  v1::AdapterSpec spec;
  (*spec.mutable_labels())[key] = value;
  return LabelsFromProto(spec.labels(), "labels");
}

const std::string k63(63, 'x');
const std::string k64(64, 'x');

TEST(LabelsTest, KeysAreNamesWithOrWithoutADnsNameBefore) {
  const std::string dns253 = std::string(63, 'a') + "." + std::string(63, 'b') + "." +
                             std::string(63, 'c') + "." + std::string(61, 'd');
  ASSERT_EQ(dns253.size(), 253u);
  for (const std::string& key :
       {std::string("a"), std::string("A"), std::string("0"), std::string("a-b_c.d"),
        std::string("a--b"), k63, std::string("example.com/a"), std::string("a/b"),
        std::string("0.x-y.z/Name_1"), dns253 + "/" + k63}) {
    EXPECT_EQ(Read(key, "v").value_or(Labels()), Labels({{key, "v"}})) << key;
  }
  for (const std::string& key : {std::string(""),
                                 std::string("-a"),
                                 std::string("a-"),
                                 std::string(".a"),
                                 std::string("a."),
                                 std::string("_a"),
                                 std::string("a_"),
                                 k64,
                                 std::string("a b"),
                                 std::string("a\nb"),
                                 std::string("ä"),
                                 std::string("a:b"),
                                 std::string("a\0b", 3),
                                 std::string("/a"),
                                 std::string("a/"),
                                 std::string("/"),
                                 std::string("a/b/c"),
                                 std::string("Example.com/a"),
                                 std::string("ex_ample/a"),
                                 std::string(".com/a"),
                                 std::string("com./a"),
                                 std::string("a..b/c"),
                                 std::string("-a.b/c"),
                                 std::string("a-.b/c"),
                                 std::string("a.-b/c"),
                                 std::string("a.b-/c"),
                                 "a/" + k64,
                                 "a" + dns253 + "/b",
                                 dns253 + "a/b",
                                 dns253}) {
    const absl::Status status = Read(key, "v").status();
    EXPECT_THAT(status, HasReason(Reason::kInvalidField)) << key;
    EXPECT_THAT(status, HasErrorMetadata("field", "labels")) << key;
  }
}

TEST(LabelsTest, ValuesAreEmptyOrAsNames) {
  for (const std::string& value : {std::string(""), std::string("a"), std::string("Z"),
                                   std::string("1.2.3"), std::string("a_b-c.D"), k63}) {
    EXPECT_EQ(Read("k", value).value_or(Labels()), Labels({{"k", value}})) << value;
  }
  for (const std::string& value :
       {k64, std::string("-a"), std::string("a-"), std::string("."), std::string("a."),
        std::string("_"), std::string("a b"), std::string("a/b"), std::string("a=b"),
        std::string("é"), std::string(" ")}) {
    EXPECT_THAT(Read("k", value).status(), HasReason(Reason::kInvalidField)) << value;
  }
}

TEST(LabelsTest, ThereAreAtMost64) {
  v1::AdapterSpec spec;
  for (int i = 0; i < 64; ++i) (*spec.mutable_labels())[fmt::format("k{}", i)] = "v";
  EXPECT_EQ(LabelsFromProto(spec.labels(), "labels").value_or(Labels()).size(), 64u);
  (*spec.mutable_labels())["one-more"] = "v";
  const absl::Status status = LabelsFromProto(spec.labels(), "x.labels").status();
  EXPECT_THAT(status, HasReason(Reason::kInvalidField));
  EXPECT_THAT(status, HasErrorMetadata("field", "x.labels"));
  EXPECT_THAT(status, HasErrorMetadata("actual", "65"));
}

}  // namespace
}  // namespace adapterd
