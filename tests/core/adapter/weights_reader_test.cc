#include "core/adapter/weights_reader.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <set>

#include "core/base/sha256.h"
#include "tests/core/adapter/adapter_folder.h"
#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/module_collector.h"
#include "tests/testing/peft_builder.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::NotNull;

constexpr char kA[] = "base_model.model.m.0.q_proj.lora_A.weight";

std::string FloatBytesOf(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(WeightsReaderTest, BytesArriveAsStored) {
  AdapterFolder folder;
  const std::string a = FloatBytesOf({1, -2, 3.5, 1e-45f, 0, -0.0f, 7, 8});
  folder.AddBytes(kA, {2, 4}, DType::kF32, a);
  folder.Add("base_model.model.m.0.q_proj.lora_B.weight", {3, 2}, DType::kBF16);
  folder.AddPair("m.1.v_proj", 2, 5, 6, DType::kF16);
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  ModuleCollector modules;
  ASSERT_THAT(folder.Read(*reader, &modules), IsOk());
  ASSERT_EQ(modules.size(), 2u);
  const ModuleTensors& q = modules.at(0);
  EXPECT_EQ(AsText(q.lora_a.bytes()), a);
  EXPECT_EQ(q.lora_a.dtype(), DType::kF32);
  EXPECT_THAT(q.lora_a.shape(), ElementsAre(2, 4));
  EXPECT_EQ(q.lora_b.dtype(), DType::kBF16);
  EXPECT_THAT(q.lora_b.shape(), ElementsAre(3, 2));
  EXPECT_EQ(BF16ToF32(0x3c80), 1.0f / 64);
  EXPECT_EQ(AsText(q.lora_b.bytes()).substr(0, 2), "\x80\x3c");
  const ModuleTensors& v = modules.at(1);
  EXPECT_THAT(v.lora_a.shape(), ElementsAre(2, 5));
  EXPECT_THAT(v.lora_b.shape(), ElementsAre(6, 2));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(v.lora_b.bytes().data()) % kBufferAlignment, 0u);
}

// Tensors that take several pieces, and one that ends within a piece.
TEST(WeightsReaderTest, LargeTensorsAreReadInPieces) {
  AdapterFolder folder;
  const int64_t in = kReadBytes / 4 + 3;
  folder.AddPair("m.0.q_proj", 2, in, 5).AddPair("m.1.v_proj", 2, kReadBytes / 8, 7);
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  ModuleCollector modules;
  ASSERT_OK_AND_ASSIGN(const std::string revision, folder.Read(*reader, &modules));
  const std::span<const std::byte> a = modules.at(0).lora_a.bytes();
  ASSERT_EQ(static_cast<int64_t>(a.size()), 2 * in * 4);
  for (const int64_t i : {int64_t{0}, in - 1, in, 2 * in - 1}) {
    float value = 0;
    std::memcpy(&value, a.data() + 4 * i, 4);
    EXPECT_EQ(value, static_cast<float>(i % 256 + 1) / 64) << i;
  }
  EXPECT_EQ(folder.Read(*reader).value(), revision);  // without keeping anything
  Sha256 file;
  file.Update(ReadFile(folder.dir() / AdapterFolder::kWeights));
  EXPECT_EQ(reader->WeightsDigest({}).value(), file.FinishHex());
}

// What is digested is named by path and role, whatever reads it when.
TEST(WeightsReaderTest, ManyThreadsReadWhatOneReads) {
  AdapterFolder folder;
  TestRandom random(7);
  for (int layer = 0; layer < 40; ++layer) {
    const std::string module = fmt::format("base_model.model.m.{}.q_proj", layer);
    folder.AddBytes(module + ".lora_A.weight", {2, 9}, DType::kF16,
                    BytesOf(DType::kF16, random.Floats(DType::kF16, 18)));
    folder.AddBytes(module + ".lora_B.weight", {5, 2}, DType::kF32,
                    BytesOf(DType::kF32, random.Floats(DType::kF32, 10)));
  }
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  std::set<std::string> revisions;
  for (const int threads : {1, 3, 8}) {
    ThreadPool pool("io", threads);
    ModuleCollector modules;
    ASSERT_OK_AND_ASSIGN(const std::string revision,
                         reader->Read(pool, {}, &modules, folder.problems()));
    revisions.insert(revision);
    TestRandom again(7);
    ASSERT_EQ(modules.size(), 40u);
    for (int layer = 0; layer < 40; ++layer) {
      const auto found =
          reader->manifest()->index.Find({fmt::format("m.{}.q_proj", layer), "", {}});
      const ModuleTensors& tensors = modules.at(found.value());
      EXPECT_EQ(FloatsOf(tensors.lora_a), again.Floats(DType::kF16, 18)) << layer;
      EXPECT_EQ(FloatsOf(tensors.lora_b), again.Floats(DType::kF32, 10)) << layer;
    }
  }
  EXPECT_EQ(revisions.size(), 1u);
}

TEST(WeightsReaderTest, RevisionsFollowContentAndNotItsOrderOrNames) {
  const auto revision_of = [](const std::function<void(AdapterFolder&)>& make) {
    AdapterFolder folder;
    make(folder);
    const auto reader = folder.WriteAndOpen();
    EXPECT_THAT(reader, NotNull()) << folder.problems().ToStatus();
    return folder.Read(*reader).value();
  };
  const std::string plain = revision_of([](AdapterFolder& f) {
    f.AddPair("m.0.q_proj").AddPair("m.1.v_proj", 2, 6, 5, DType::kF16);
  });
  // Files hold the widest dtypes first: widening the second pair's order is another file order.
  const std::string renamed = revision_of([](AdapterFolder& f) {
    f.Add("_orig_mod.m.1.v_proj.lora_B.x.weight", {5, 2}, DType::kF16);
    f.Add("m.0.q_proj.lora_B.x.weight", {3, 2}).Add("m.0.q_proj.lora_A.x.weight", {2, 4});
    f.Add("_orig_mod.m.1.v_proj.lora_A.x.weight", {2, 6}, DType::kF16);
  });
  EXPECT_EQ(plain, renamed);
  using Make = std::function<void(AdapterFolder&)>;
  const std::vector<std::pair<std::string, Make>> others = {
      {"path",
       [](AdapterFolder& f) {
         f.AddPair("m.0.q_proj").AddPair("m.2.v_proj", 2, 6, 5, DType::kF16);
       }},
      {"scale",
       [](AdapterFolder& f) {
         f.AddPair("m.0.q_proj").AddPair("m.1.v_proj", 2, 6, 5, DType::kF16);
         f.Config({{"lora_alpha", "5"}});
       }},
      {"dtype",
       [](AdapterFolder& f) {
         f.AddPair("m.0.q_proj").AddPair("m.1.v_proj", 2, 6, 5, DType::kBF16);
       }},
      {"shape",
       [](AdapterFolder& f) {
         f.AddPair("m.0.q_proj").AddPair("m.1.v_proj", 2, 5, 6, DType::kF16);
       }},
      {"bytes", [](AdapterFolder& f) {
         f.AddPair("m.0.q_proj").Add("m.1.v_proj.lora_A.weight", {2, 6}, DType::kF16);
         f.AddBytes("m.1.v_proj.lora_B.weight", {5, 2}, DType::kF16, std::string(20, '\1'));
       }}};
  for (const auto& [what, make] : others) EXPECT_NE(revision_of(make), plain) << what;
}

// One row of other tokens means another embedding.
TEST(WeightsReaderTest, RevisionsKnowWhichTokensRowsReplace) {
  AdapterFolder folder;
  folder.AddPair("m.q_proj").Add("e.token_adapter.trainable_tokens_delta", {2, 4});
  std::set<std::string> revisions;
  for (const char* ids : {"[1, 2]", "[2, 1]", "[1, 3]"}) {
    const auto reader = folder.Config({{"trainable_token_indices", ids}}).WriteAndOpen();
    ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
    revisions.insert(folder.Read(*reader).value());
  }
  EXPECT_EQ(revisions.size(), 3u);
}

TEST(WeightsReaderTest, ReadMayBeRepeated) {
  AdapterFolder folder;
  const auto reader = folder.AddPair("m.0.q_proj").WriteAndOpen();
  ASSERT_OK_AND_ASSIGN(const std::string first, folder.Read(*reader));
  EXPECT_EQ(folder.Read(*reader).value(), first);
}

TEST(WeightsReaderTest, AnErrorOfTheSinkEndsTheReading) {
  class Full : public ModuleSink {
   public:
    absl::Status Take(size_t, ModuleTensors&) override {
      return Error(Reason::kMemoryBudgetExceeded, "full");
    }
  };
  AdapterFolder folder;
  const auto reader = folder.AddPair("m.0.q_proj").AddPair("m.1.q_proj").WriteAndOpen();
  Full full;
  EXPECT_THAT(folder.Read(*reader, &full), HasReason(Reason::kMemoryBudgetExceeded));
}

TEST(WeightsReaderTest, NonFiniteElementsAreAllNamed) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string zeros = FloatBytesOf({0, 0, 0, 0});
  for (const float bad : {inf, -inf, nan}) {
    AdapterFolder folder;
    const std::string last_bad = FloatBytesOf({0, 0, 0, bad});
    const std::string p = "base_model.model.";
    folder.AddBytes(p + "q_proj.lora_A.weight", {2, 2}, DType::kF32, last_bad);
    folder.AddBytes(p + "q_proj.lora_B.weight", {2, 2}, DType::kF32, zeros);
    folder.AddBytes(p + "v_proj.lora_A.weight", {2, 2}, DType::kF32, zeros);
    folder.AddBytes(p + "v_proj.lora_B.weight", {2, 2}, DType::kF32, last_bad);
    const auto reader = folder.WriteAndOpen();
    ASSERT_THAT(reader, NotNull());
    const Reason reason = Reason::kNonFiniteWeights;
    EXPECT_THAT(folder.Read(*reader).status(),
                AllOf(HasReason(reason), HasErrorMetadata("tensor", p + "q_proj.lora_A.weight"),
                      HasErrorMetadata("module", "q_proj")));
    const auto errors = [&folder] {
      std::vector<Problem> found = folder.problems().items();
      std::erase_if(found, [](const Problem& it) { return it.severity != Severity::kError; });
      return found;
    };
    EXPECT_THAT(errors(), ElementsAre(IsError(reason, p + "q_proj.lora_A.weight"),
                                      IsError(reason, p + "v_proj.lora_B.weight")));
    ModuleCollector modules;  // what is kept is judged alike
    folder.problems() = ProblemList();
    EXPECT_THAT(folder.Read(*reader, &modules), HasReason(reason));
    EXPECT_EQ(errors().size(), 2u);
  }
}

TEST(WeightsReaderTest, NonFiniteHalvesAreSeenInTheirOwnFormat) {
  struct Case {
    DType dtype;
    uint16_t bits;
    bool finite;
  };
  for (const auto& [dtype, bits, finite] : {Case{DType::kF16, 0x7c00, false},
                                            {DType::kF16, 0xfbff, true},
                                            {DType::kBF16, 0x7c00, true},
                                            {DType::kBF16, 0xff80, false}}) {
    AdapterFolder folder;
    const std::string bytes = {0, 0, static_cast<char>(bits & 0xff), static_cast<char>(bits >> 8)};
    folder.AddBytes("q_proj.lora_A.weight", {2, 1}, dtype, bytes);
    folder.Add("q_proj.lora_B.weight", {3, 2});
    const auto reader = folder.WriteAndOpen();
    ASSERT_THAT(reader, NotNull());
    EXPECT_EQ(folder.Read(*reader).ok(), finite) << DTypeName(dtype) << bits;
  }
}

TEST(WeightsReaderTest, CancellationStopsTheReading) {
  AdapterFolder folder;
  const auto reader = folder.AddPair("m.0.q_proj").WriteAndOpen();
  Cancellation cancellation;
  cancellation.Cancel();
  ModuleCollector modules;
  for (ModuleCollector* sink : {&modules, static_cast<ModuleCollector*>(nullptr)}) {
    EXPECT_THAT(folder.Read(*reader, sink, cancellation), StatusIs(absl::StatusCode::kCancelled));
  }
  EXPECT_THAT(reader->WeightsDigest(cancellation), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(folder.problems().has_errors());  // nothing is wrong with the adapter
}

TEST(WeightsReaderTest, FilesThatMovedOnAreNotServed) {
  const std::string config = AdapterFolder::kConfig;
  const std::string weights = AdapterFolder::kWeights;
  using Change = std::function<void(const AdapterFolder&)>;
  const std::vector<std::pair<std::string, Change>> changes = {
      {"weights rewritten in place",
       [&](const AdapterFolder& f) { f.dir().Write(weights, ReadFile(f.dir() / weights)); }},
      {"weights cut",
       [&](const AdapterFolder& f) { std::filesystem::resize_file(f.dir() / weights, 100); }},
      {"weights grown",
       [&](const AdapterFolder& f) {
         f.dir().Write(weights, ReadFile(f.dir() / weights) + "tail");
       }},
      {"weights replaced",
       [&](const AdapterFolder& f) {
         f.dir().Write("new", ReadFile(f.dir() / weights));
         std::filesystem::rename(f.dir() / "new", f.dir() / weights);
       }},
      {"config rewritten",
       [&](const AdapterFolder& f) { f.dir().Write(config, ReadFile(f.dir() / config)); }},
      {"config replaced",
       [&](const AdapterFolder& f) {
         f.dir().Write("new", "{}");
         std::filesystem::rename(f.dir() / "new", f.dir() / config);
       }},
  };
  for (const auto& [what, change] : changes) {
    SCOPED_TRACE(what);
    AdapterFolder folder;
    const auto reader = folder.AddPair("m.0.q_proj").WriteAndOpen();
    ASSERT_THAT(reader, NotNull());
    usleep(20'000);  // kernels stamp files with the time of the last tick
    change(folder);
    ModuleCollector modules;
    EXPECT_THAT(folder.Read(*reader, &modules), HasReason(Reason::kSourceChanged));
    EXPECT_THAT(folder.Read(*reader), HasReason(Reason::kSourceChanged));
    if (what.starts_with("weights")) {
      EXPECT_THAT(reader->WeightsDigest({}), HasReason(Reason::kSourceChanged));
    }
  }
}

TEST(WeightsReaderTest, IdentityIsThatOfBothFiles) {
  AdapterFolder folder;
  folder.AddPair("m.0.q_proj").Write();
  const SourceIdentity first = folder.Open()->identity();
  ASSERT_EQ(first.files.size(), 2u);
  EXPECT_EQ(first.files[0].first, AdapterFolder::kConfig);
  EXPECT_EQ(first.files[1].first, AdapterFolder::kWeights);
  EXPECT_EQ(folder.Open()->identity(), first);
  usleep(20'000);
  folder.dir().Write(AdapterFolder::kConfig, ReadFile(folder.dir() / AdapterFolder::kConfig));
  EXPECT_NE(folder.Open()->identity(), first);
}

TEST(WeightsReaderTest, ABaseIsPartOfWhatIsReadAndOfTheIdentity) {
  AdapterFolder folder;
  folder.AddPair("m.0.q_proj").Write();
  CheckpointBuilder().Add("m.0.q_proj.weight", {3, 4}).Write(folder.dir(), "base");
  folder.dir().Write("base/config.json", "{}");
  const auto reader = folder.Open("", "base");
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  ASSERT_THAT(reader->base(), NotNull());
  ASSERT_EQ(reader->base()->bindings.size(), 1u);
  EXPECT_EQ(reader->base()->bindings[0].weight->tensor, "m.0.q_proj.weight");
  EXPECT_EQ(reader->identity().files.size(), 4u);
  EXPECT_EQ(folder.Open()->base(), nullptr);
  usleep(20'000);
  folder.dir().Write("base/config.json", "{ }");
  EXPECT_THAT(folder.Read(*reader), HasReason(Reason::kSourceChanged));
  EXPECT_NE(folder.Open("", "base")->identity(), reader->identity());
}

TEST(WeightsReaderTest, ABaseThatDoesNotFitIsRefused) {
  AdapterFolder folder;
  folder.AddPair("m.0.q_proj").Write();
  CheckpointBuilder().Add("m.0.q_proj.weight", {3, 5}).Write(folder.dir(), "wide");
  CheckpointBuilder().Add("x.weight", {3, 4}).Write(folder.dir(), "other");
  for (const char* base : {"wide", "other"}) {
    EXPECT_EQ(folder.Open("", base), nullptr);
    EXPECT_THAT(folder.problems().ToStatus(), HasReason(Reason::kBaseModelMismatch)) << base;
  }
  EXPECT_EQ(folder.Open("", "nowhere"), nullptr);
  EXPECT_THAT(folder.problems().ToStatus(), HasReason(Reason::kSourceNotFound));
  EXPECT_EQ(folder.Open("", "../x"), nullptr);
  EXPECT_THAT(folder.problems().ToStatus(), HasReason(Reason::kPathOutsideRoot));
}

}  // namespace
}  // namespace adapterd
