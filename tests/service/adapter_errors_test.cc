// Names, sources and fields that LoadAdapter and its kin refuse.
#include <fmt/format.h>
#include <sys/stat.h>

#include "tests/service/projection_fixture.h"
#include "tests/testing/checkpoint_builder.h"

namespace adapterd {
namespace {

using ::testing::IsEmpty;

class AdapterErrorsTest : public ProjectionFixture {
 protected:
  AdapterErrorsTest() { PeftBuilder(1).Add(kQ0, 2, kIn, kOut).Write(server_.dir(), "good"); }

  static v1::LoadAdapterRequest Valid() {
    v1::LoadAdapterRequest request;
    request.set_name("x");
    request.set_source("good");
    return request;
  }

  // ValidateAdapter with the same fields.
  grpc::Status Validate(const v1::LoadAdapterRequest& load) {
    v1::ValidateAdapterRequest request;
    EXPECT_TRUE(request.ParseFromString(load.SerializeAsString()));
    return server_.Validate(request).status;
  }

  void ExpectNothingLoaded() {
    EXPECT_EQ(server_.used_bytes(), 0);
    EXPECT_THAT(server_.List()->adapters(), IsEmpty());
  }
};

TEST_F(AdapterErrorsTest, NamesThatAreNotNames) {
  const std::string names[] = {
      "",  ".",   "..",  ".hidden", "-dash", "a/b", "/a",  "a\\",  "a b",  "a\n",
      "ä", "a:b", "a@b", "a#",      "{x}",   "a*",  "%41", "\x01", "a\tb", std::string(129, 'a')};
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    v1::LoadAdapterRequest load = Valid();
    load.set_name(name);
    v1::GetAdapterRequest get;
    get.set_name(name);
    for (const grpc::Status& status : {server_.Load(load).status, Validate(load),
                                       server_.Get(get).status, server_.Unload(name).status}) {
      EXPECT_THAT(status, IsRpcError(Reason::kInvalidField));
      EXPECT_THAT(status, HasRpcMetadata("field", "name"));
    }
  }
  ExpectNothingLoaded();
}

TEST_F(AdapterErrorsTest, NamesThatAreNames) {
  for (const std::string& name :
       {std::string("a"), std::string("_"), std::string("0"), std::string("A-b_c.d"),
        std::string("a.."), std::string("other"), std::string(128, 'z')}) {
    v1::LoadAdapterRequest load = Valid();
    load.set_name(name);
    EXPECT_THAT(server_.Load(load).status, IsRpcOk()) << name;
    EXPECT_THAT(server_.Unload(name).status, IsRpcOk()) << name;
  }
}

struct WrongSource {
  std::string source;
  Reason reason;
};

TEST_F(AdapterErrorsTest, SourcesThatLeadNowhereOrOut) {
  const TempDir outside;
  PeftBuilder(1).Add(kQ0, 2, kIn, kOut).Write(outside, "secret");
  const std::filesystem::path& root = server_.dir().path();
  std::filesystem::create_symlink(outside / "secret", root / "escape");
  std::filesystem::create_symlink("loop", root / "loop");
  std::filesystem::create_directory(root / "empty");
  std::filesystem::create_directory(root / "fifo");
  server_.dir().Write("fifo/adapter_config.json", ReadFile(root / "good/adapter_config.json"));
  ASSERT_EQ(mkfifo((root / "fifo/adapter_model.safetensors").c_str(), 0600), 0);
  server_.dir().Write("other/readme.txt", "no adapter here");
  server_.dir().Write("pickle/adapter_config.json", ReadFile(root / "good/adapter_config.json"));
  server_.dir().Write("pickle/adapter_model.bin", "\x80\x02");
  const WrongSource cases[] = {
      {"", Reason::kInvalidField},
      {"..", Reason::kPathOutsideRoot},
      {"../secret", Reason::kPathOutsideRoot},
      {"good/../../secret", Reason::kPathOutsideRoot},
      {"/etc", Reason::kPathOutsideRoot},
      {(outside / "secret").string(), Reason::kPathOutsideRoot},
      {"escape", Reason::kPathOutsideRoot},
      {"nowhere", Reason::kSourceNotFound},
      {"good/deeper", Reason::kSourceNotFound},
      {"loop", Reason::kSourceNotFound},
      {"empty", Reason::kSourceNotFound},
      {"other", Reason::kSourceNotFound},
      {"fifo", Reason::kSourceNotFound},
      {"pickle", Reason::kUnsafeFormat},
      {std::string("a\0b", 3), Reason::kInvalidField},
      {std::string(5000, 'a'), Reason::kInvalidField},
  };
  for (const WrongSource& wrong : cases) {
    SCOPED_TRACE(wrong.source);
    v1::LoadAdapterRequest load = Valid();
    load.set_source(wrong.source);
    EXPECT_THAT(server_.Load(load).status, IsRpcError(wrong.reason));
    if (wrong.reason != Reason::kUnsafeFormat) {
      EXPECT_THAT(Validate(load), IsRpcError(wrong.reason));
    }
  }
  ExpectNothingLoaded();
}

TEST_F(AdapterErrorsTest, ErrorsNeverShowWhereTheRootLies) {
  for (const char* source : {"nowhere", "../x", "empty/x", "good/adapter_config.json/x"}) {
    v1::LoadAdapterRequest load = Valid();
    load.set_source(source);
    const grpc::Status status = server_.Load(load).status;
    EXPECT_FALSE(status.ok());
    EXPECT_EQ((status.error_message() + status.error_details()).find(server_.dir().path()),
              std::string::npos)
        << status.error_message();
  }
}

struct WrongField {
  const char* name;
  Reason reason;
  void (*spoil)(v1::LoadAdapterRequest&);
};

TEST_F(AdapterErrorsTest, FieldsThatAreNotImplementedOrWrong) {
  using Request = v1::LoadAdapterRequest;
  const WrongField cases[] = {
      {"hosted_base", Reason::kInvalidField,
       [](Request& r) {
         r.set_hosted_base("llama");
         r.set_base_checkpoint("llama");
       }},
      {"head_counts.num_attention_heads", Reason::kInvalidField,
       [](Request& r) { r.mutable_head_counts(); }},
      {"expected_digest", Reason::kInvalidField, [](Request& r) { r.set_expected_digest("abc"); }},
      {"expected_digest", Reason::kInvalidField,
       [](Request& r) { r.set_expected_digest(std::string(64, 'x')); }},
      {"labels", Reason::kInvalidField, [](Request& r) { (*r.mutable_labels())[""] = "v"; }},
      {"labels", Reason::kInvalidField, [](Request& r) { (*r.mutable_labels())["a\nb"] = "v"; }},
      {"labels", Reason::kInvalidField, [](Request& r) { (*r.mutable_labels())["k"] = "a b"; }},
      {"labels", Reason::kInvalidField,
       [](Request& r) { (*r.mutable_labels())["k"] = std::string(64, 'v'); }},
      {"labels", Reason::kInvalidField,
       [](Request& r) {
         for (int i = 0; i < 65; ++i) r.mutable_labels()->insert({fmt::format("k{}", i), "v"});
       }},
  };
  for (const WrongField& wrong : cases) {
    SCOPED_TRACE(wrong.name);
    v1::LoadAdapterRequest load = Valid();
    wrong.spoil(load);
    for (const grpc::Status& status : {server_.Load(load).status, Validate(load)}) {
      EXPECT_THAT(status, IsRpcError(wrong.reason));
      EXPECT_THAT(status, HasRpcMetadata("field", wrong.name));
    }
  }
  ExpectNothingLoaded();
}

TEST_F(AdapterErrorsTest, BaseCheckpointsAreCheckedLikeSources) {
  CheckpointBuilder().Add("other.weight", {2, 2}).Write(server_.dir(), "base");
  const std::pair<const char*, Reason> cases[] = {{"nowhere", Reason::kSourceNotFound},
                                                  {"../base", Reason::kPathOutsideRoot},
                                                  {"base", Reason::kBaseModelMismatch}};
  for (const auto& [checkpoint, reason] : cases) {
    v1::LoadAdapterRequest load = Valid();
    load.set_base_checkpoint(checkpoint);
    EXPECT_THAT(server_.Load(load).status, IsRpcError(reason)) << checkpoint;
  }
  ExpectNothingLoaded();
}

TEST_F(AdapterErrorsTest, LabelsAtTheirLimitsAreTaken) {
  v1::LoadAdapterRequest load = Valid();
  (*load.mutable_labels())["example.com/team"] = std::string(63, 'v');
  (*load.mutable_labels())["empty"] = "";
  for (int i = 0; i < 62; ++i) load.mutable_labels()->insert({fmt::format("k{}", i), "v"});
  EXPECT_THAT(server_.Load(load).status, IsRpcOk());
}

TEST_F(AdapterErrorsTest, BadAdaptersAreRefusedWithTheirReason) {
  const TempDir& dir = server_.dir();
  const std::string config = ReadFile(dir / "good/adapter_config.json");
  const std::string weights = ReadFile(dir / "good/adapter_model.safetensors");
  const auto write = [&](const std::string& folder, const std::string& json,
                         const std::string& data) {
    dir.Write(folder + "/adapter_config.json", json);
    dir.Write(folder + "/adapter_model.safetensors", data);
  };
  write("no_json", "{", weights);
  write("truncated", config, weights.substr(0, weights.size() - 1));
  write("pointer", config, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  write("dora", "{\"use_dora\": true, " + config.substr(1), weights);
  PeftBuilder(1)
      .Add(kQ0, 2, kIn, kOut)
      .Poison(std::numeric_limits<float>::infinity())
      .Write(dir, "infinite");
  const std::pair<const char*, Reason> cases[] = {
      {"no_json", Reason::kMalformedConfig},     {"truncated", Reason::kMalformedTensorFile},
      {"pointer", Reason::kMalformedTensorFile}, {"dora", Reason::kInvalidAdapter},
      {"infinite", Reason::kNonFiniteWeights},
  };
  for (const auto& [source, reason] : cases) {
    SCOPED_TRACE(source);
    const auto reply = server_.Load("x", source);
    EXPECT_THAT(reply.status, IsRpcError(reason));
    EXPECT_THAT(reply.status, HasRpcMetadata("adapter", "x"));
    EXPECT_THAT(reply.status, HasRpcMetadata("file", ::testing::_));
  }
  v1::LoadAdapterRequest load = Valid();
  load.set_base_model("another");
  const auto reply = server_.Load(load);
  EXPECT_THAT(reply.status, IsRpcError(Reason::kBaseModelMismatch));
  EXPECT_THAT(reply.status, HasRpcMetadata("expected", "another"));
  EXPECT_THAT(reply.status, HasRpcMetadata("actual", "base"));
  ExpectNothingLoaded();
}

}  // namespace
}  // namespace adapterd
