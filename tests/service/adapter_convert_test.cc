// References, specs and descriptions of adapters on their way in and out.
#include "service/adapter_convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/base/error.h"
#include "tests/testing/fake_sources.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

const std::string kDigest(64, 'a');

v1::AdapterRef NamedRef(const std::string& name) {
  v1::AdapterRef ref;
  ref.set_name(name);
  return ref;
}

TEST(RefFromProtoTest, ANameMayHaveAnAlias) {
  ASSERT_OK_AND_ASSIGN(const AdapterRef plain, RefFromProto(NamedRef("a.b"), "adapter"));
  EXPECT_EQ(plain.name, "a.b");
  EXPECT_EQ(plain.alias, "");
  EXPECT_EQ(plain.revision, "");
  v1::AdapterRef ref = NamedRef("a@prod");
  ref.set_revision(kDigest);
  ASSERT_OK_AND_ASSIGN(const AdapterRef alias, RefFromProto(ref, "adapter"));
  EXPECT_EQ(alias.name, "a");
  EXPECT_EQ(alias.alias, "prod");
  EXPECT_EQ(alias.revision, kDigest);
  const std::string longest(128, 'x');
  EXPECT_THAT(RefFromProto(NamedRef(longest + "@" + longest), "adapter"), IsOk());
}

TEST(RefFromProtoTest, BadNamesAndRevisionsNameTheField) {
  for (const std::string& name :
       {std::string(""), std::string("@"), std::string("a@"), std::string("@b"),
        std::string("a@b@c"), std::string("a@@b"), std::string("a@b/c"), std::string("a b@c"),
        std::string("a@.b"), std::string("-a@b"), "a@" + std::string(129, 'x')}) {
    const absl::Status status = RefFromProto(NamedRef(name), "adapters[3]").status();
    EXPECT_THAT(status, HasReason(Reason::kInvalidField)) << name;
    EXPECT_THAT(status, HasErrorMetadata("field", "adapters[3].name")) << name;
  }
  for (const std::string& revision : {std::string("a"), std::string(63, 'a'), std::string(65, 'a'),
                                      std::string(64, 'A'), std::string(64, 'g')}) {
    v1::AdapterRef ref = NamedRef("a");
    ref.set_revision(revision);
    const absl::Status status = RefFromProto(ref, "adapter").status();
    EXPECT_THAT(status, HasReason(Reason::kInvalidField)) << revision;
    EXPECT_THAT(status, HasErrorMetadata("field", "adapter.revision")) << revision;
  }
}

TEST(LoadRequestTest, ASpecIsALoadThatReplacesNothing) {
  v1::AdapterSpec spec;
  spec.set_name("a");
  spec.set_source("root:path");
  spec.set_base_model("base");
  spec.set_base_checkpoint("checkpoint");
  spec.set_expected_digest(kDigest);
  spec.set_pinned(true);
  (*spec.mutable_labels())["team"] = "red";
  LoadRequest expected;
  expected.name = "a";
  expected.source = {"root:path", "base", "checkpoint"};
  expected.expected_digest = kDigest;
  expected.pinned = true;
  expected.labels = {{"team", "red"}};
  EXPECT_EQ(LoadRequestFromProto(spec, "desired[0]").value_or(LoadRequest()), expected);
  // The same fields have the same numbers in the messages of a load and of an upload.
  v1::LoadAdapterRequest load;
  ASSERT_TRUE(load.ParseFromString(spec.SerializeAsString()));
  load.set_replace(true);
  expected.replace = true;
  EXPECT_EQ(LoadRequestFromProto(load).value_or(LoadRequest()), expected);
  v1::UploadStart start;
  ASSERT_TRUE(start.ParseFromString(load.SerializeAsString()));
  expected.source.source = "";
  EXPECT_EQ(LoadRequestFromProto(start).value_or(LoadRequest()), expected);
}

struct WrongSpec {
  const char* field;
  Reason reason;
  std::function<void(v1::AdapterSpec&)> spoil;
};

TEST(LoadRequestTest, WrongFieldsAreCalledByWhereTheyAre) {
  using Spec = v1::AdapterSpec;
  const WrongSpec cases[] = {
      {"name", Reason::kInvalidField, [](Spec& s) { s.set_name("a@b"); }},
      {"source", Reason::kInvalidField, [](Spec& s) { s.clear_source(); }},
      {"hosted_base", Reason::kInvalidField, [](Spec& s) { s.set_hosted_base("a/b"); }},
      {"head_counts.num_attention_heads", Reason::kInvalidField,
       [](Spec& s) { s.mutable_head_counts(); }},
      {"head_counts.num_attention_heads", Reason::kInvalidField,
       [](Spec& s) { s.mutable_head_counts()->set_num_attention_heads(-1); }},
      {"head_counts.num_key_value_heads", Reason::kInvalidField,
       [](Spec& s) { s.mutable_head_counts()->set_num_attention_heads(4); }},
      {"head_counts.num_key_value_heads", Reason::kInvalidField,
       [](Spec& s) {
         s.mutable_head_counts()->set_num_attention_heads(4);
         s.mutable_head_counts()->set_num_key_value_heads(3);
       }},
      {"labels", Reason::kInvalidField, [](Spec& s) { (*s.mutable_labels())["a/b/c"] = ""; }},
      {"expected_digest", Reason::kInvalidField,
       [](Spec& s) { s.set_expected_digest(std::string(63, 'a')); }},
      {"expected_digest", Reason::kInvalidField,
       [](Spec& s) { s.set_expected_digest(std::string(65, 'a')); }},
      {"expected_digest", Reason::kInvalidField,
       [](Spec& s) { s.set_expected_digest(std::string(64, 'A')); }},
      {"expected_digest", Reason::kInvalidField,
       [](Spec& s) { s.set_expected_digest("sha256:" + std::string(57, 'a')); }},
  };
  for (const WrongSpec& wrong : cases) {
    SCOPED_TRACE(wrong.field);
    Spec spec;
    spec.set_name("a");
    spec.set_source("s");
    wrong.spoil(spec);
    const absl::Status as_spec = LoadRequestFromProto(spec, "desired[7]").status();
    EXPECT_THAT(as_spec, HasReason(wrong.reason));
    EXPECT_THAT(as_spec, HasErrorMetadata("field", std::string("desired[7].") + wrong.field));
    v1::LoadAdapterRequest load;
    ASSERT_TRUE(load.ParseFromString(spec.SerializeAsString()));
    EXPECT_THAT(LoadRequestFromProto(load).status(), HasErrorMetadata("field", wrong.field));
    if (std::string(wrong.field) == "source") continue;
    v1::UploadStart start;
    ASSERT_TRUE(start.ParseFromString(spec.SerializeAsString()));
    EXPECT_THAT(LoadRequestFromProto(start).status(),
                HasErrorMetadata("field", std::string("start.") + wrong.field));
  }
}

AdapterSnapshot Described() {
  AdapterSnapshot snapshot;
  snapshot.name = "a";
  snapshot.state = AdapterState::kReady;
  snapshot.manifest = ManifestOf({});
  snapshot.description =
      std::make_shared<const AdapterDescription>(DescriptionOf(*snapshot.manifest));
  return snapshot;
}

TEST(ToProtoTest, ADescriptionOutlivesTheModules) {
  AdapterSnapshot snapshot = Described();
  v1::Adapter ready;
  ToProto(snapshot, v1::ADAPTER_VIEW_FULL, ready);
  EXPECT_THAT(ready.modules(), SizeIs(1));
  snapshot.state = AdapterState::kEvicted;
  snapshot.manifest = nullptr;
  v1::Adapter evicted;
  ToProto(snapshot, v1::ADAPTER_VIEW_FULL, evicted);
  EXPECT_EQ(evicted.state(), v1::ADAPTER_STATE_EVICTED);
  EXPECT_THAT(evicted.modules(), IsEmpty());
  ready.clear_modules();
  ready.set_state(v1::ADAPTER_STATE_EVICTED);
  EXPECT_EQ(evicted.DebugString(), ready.DebugString());
  EXPECT_EQ(evicted.module_count(), 1);
  EXPECT_THAT(evicted.ranks(), ElementsAre(2));
  EXPECT_EQ(evicted.format(), v1::ADAPTER_FORMAT_PEFT);
}

TEST(ToProtoTest, WithoutADescriptionNothingIsSaidOfTheContent) {
  AdapterSnapshot snapshot = Described();
  snapshot.manifest = nullptr;
  snapshot.description = nullptr;
  v1::Adapter loading;
  ToProto(snapshot, v1::ADAPTER_VIEW_FULL, loading);
  EXPECT_EQ(loading.format(), v1::ADAPTER_FORMAT_UNSPECIFIED);
  EXPECT_EQ(loading.module_count(), 0);
}

TEST(ToProtoTest, AliasesRevisionsSwitchesAndErrors) {
  AdapterSnapshot snapshot = Described();
  snapshot.enabled = false;
  snapshot.aliases = {{"prod", "r1"}, {"next", "r2"}};
  snapshot.kept_revisions = {"r1", "r0"};
  snapshot.draining_revisions = {"r3"};
  snapshot.error = Error(Reason::kSourceChanged, "it changed");
  v1::Adapter out;
  ToProto(snapshot, v1::ADAPTER_VIEW_BASIC, out);
  EXPECT_FALSE(out.enabled());
  EXPECT_THAT(out.aliases(), UnorderedElementsAre(Pair("prod", "r1"), Pair("next", "r2")));
  EXPECT_THAT(out.kept_revisions(), ElementsAre("r1", "r0"));
  EXPECT_THAT(out.draining_revisions(), ElementsAre("r3"));
  EXPECT_EQ(out.error().reason(), "SOURCE_CHANGED");
  EXPECT_EQ(out.error().message(), "it changed");
  EXPECT_THAT(out.modules(), IsEmpty());
}

}  // namespace
}  // namespace adapterd
