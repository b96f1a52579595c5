#include "core/adapter/peft_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <random>

#include "core/base/sha256.h"
#include "tests/core/adapter/adapter_folder.h"

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

TEST(PeftReaderTest, BytesArriveAsStored) {
  AdapterFolder folder;
  const std::string a = FloatBytesOf({1, -2, 3.5, 1e-45f, 0, -0.0f, 7, 8});
  folder.AddBytes(kA, {2, 4}, DType::kF32, a);
  folder.Add("base_model.model.m.0.q_proj.lora_B.weight", {3, 2}, DType::kBF16);
  folder.AddPair("m.1.v_proj", 2, 5, 6, DType::kF16);
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  ASSERT_OK_AND_ASSIGN(const auto adapter, reader->Read({}, folder.problems()));
  EXPECT_EQ(adapter->shared_manifest(), reader->manifest());
  const ModuleFactors& q = adapter->factors(0);
  EXPECT_EQ(AsText(q.lora_a.bytes()), a);
  EXPECT_EQ(q.lora_a.dtype(), DType::kF32);
  EXPECT_THAT(q.lora_a.shape(), ElementsAre(2, 4));
  EXPECT_EQ(q.lora_b.dtype(), DType::kBF16);
  EXPECT_THAT(q.lora_b.shape(), ElementsAre(3, 2));
  EXPECT_EQ(BF16ToF32(0x3c80), 1.0f / 64);
  EXPECT_EQ(AsText(q.lora_b.bytes()).substr(0, 2), "\x80\x3c");
  const ModuleFactors& v = adapter->factors(1);
  EXPECT_THAT(v.lora_a.shape(), ElementsAre(2, 5));
  EXPECT_THAT(v.lora_b.shape(), ElementsAre(6, 2));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(v.lora_b.bytes().data()) % kBufferAlignment, 0u);
}

// Tensors that take several pieces, and one that ends within a piece.
TEST(PeftReaderTest, LargeTensorsAreReadInPieces) {
  AdapterFolder folder;
  const int64_t in = kReadBytes / 4 + 3;
  folder.AddPair("m.0.q_proj", 2, in, 5).AddPair("m.1.v_proj", 2, kReadBytes / 8, 7);
  const auto reader = folder.WriteAndOpen();
  ASSERT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  ASSERT_OK_AND_ASSIGN(const auto adapter, reader->Read({}, folder.problems()));
  const std::span<const std::byte> a = adapter->factors(0).lora_a.bytes();
  ASSERT_EQ(static_cast<int64_t>(a.size()), 2 * in * 4);
  for (const int64_t i : {int64_t{0}, in - 1, in, 2 * in - 1}) {
    float value = 0;
    std::memcpy(&value, a.data() + 4 * i, 4);
    EXPECT_EQ(value, static_cast<float>(i % 256 + 1) / 64) << i;
  }
  Sha256 file;
  file.Update(ReadFile(folder.dir() / AdapterFolder::kWeights));
  EXPECT_EQ(adapter->digest().weights_sha256, file.FinishHex());
  ASSERT_OK_AND_ASSIGN(const ContentDigest digest, reader->Digest({}, folder.problems()));
  EXPECT_EQ(digest, adapter->digest());
}

TEST(PeftReaderTest, ReadMayBeRepeated) {
  AdapterFolder folder;
  const auto reader = folder.AddPair("m.0.q_proj").WriteAndOpen();
  ASSERT_OK_AND_ASSIGN(const auto first, reader->Read({}, folder.problems()));
  ASSERT_OK_AND_ASSIGN(const auto second, reader->Read({}, folder.problems()));
  EXPECT_EQ(first->digest(), second->digest());
}

TEST(PeftReaderTest, NonFiniteElementsAreAllNamed) {
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
    EXPECT_THAT(reader->Read({}, folder.problems()).status(),
                AllOf(HasReason(reason), HasErrorMetadata("tensor", p + "q_proj.lora_A.weight"),
                      HasErrorMetadata("module", "q_proj")));
    EXPECT_THAT(folder.problems().items(),
                ElementsAre(IsError(reason, p + "q_proj.lora_A.weight"),
                            IsError(reason, p + "v_proj.lora_B.weight")));
    ProblemList problems;
    EXPECT_THAT(reader->Digest({}, problems), HasReason(reason));
    EXPECT_EQ(problems.items().size(), 2u);
  }
}

TEST(PeftReaderTest, NonFiniteHalvesAreSeenInTheirOwnFormat) {
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
    EXPECT_EQ(reader->Read({}, folder.problems()).ok(), finite) << DTypeName(dtype) << bits;
  }
}

TEST(PeftReaderTest, CancellationStopsTheReading) {
  AdapterFolder folder;
  const auto reader = folder.AddPair("m.0.q_proj").WriteAndOpen();
  Cancellation cancellation;
  cancellation.Cancel();
  EXPECT_THAT(reader->Read(cancellation, folder.problems()),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(reader->Digest(cancellation, folder.problems()),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(folder.problems().has_errors());  // nothing is wrong with the adapter
}

TEST(PeftReaderTest, FilesThatMovedOnAreNotServed) {
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
    EXPECT_THAT(reader->Read({}, folder.problems()), HasReason(Reason::kSourceChanged));
    EXPECT_THAT(reader->Digest({}, folder.problems()), HasReason(Reason::kSourceChanged));
  }
}

// Random damage to a real adapter: a reason or a whole adapter, never a crash, and never the
// revision of the original over other content.
TEST(PeftReaderTest, DamagedFilesAreRefusedOrReadWhole) {
  const std::filesystem::path original =
      std::filesystem::path(ADAPTERD_FIXTURES) / "peft/cases/llama-qv";
  ProblemList none;
  const auto intact = OpenerAt(original.parent_path())({"llama-qv", ""}, none)->Read({}, none);
  ASSERT_THAT(intact, IsOk());
  std::mt19937 random(20230901);
  TempDir dir;
  int loaded = 0;
  for (int round = 0; round < 400; ++round) {
    std::string config = ReadFile(original / "adapter_config.json");
    std::string weights = ReadFile(original / "adapter_model.safetensors");
    std::string& victim = round % 2 == 0 ? config : weights;
    const size_t damage = std::min<size_t>(victim.size(), 1600);  // config or header
    for (int i = 0; i <= round % 3; ++i) {
      victim[random() % damage] = round % 5 == 0 ? static_cast<char>(random() % 256)
                                                 : "0123456789{}[],:\"- ntfaQq._"[random() % 28];
    }
    dir.Write("a/adapter_config.json", config);
    dir.Write("a/adapter_model.safetensors", weights);
    ProblemList problems;
    const auto reader = OpenerAt(dir.path())({"a", ""}, problems);
    ASSERT_EQ(reader == nullptr, problems.has_errors());
    if (reader == nullptr) continue;
    const auto adapter = reader->Read({}, problems);
    if (!adapter.ok()) continue;
    ++loaded;
    if ((*adapter)->digest().revision != (*intact)->digest().revision) continue;
    for (size_t i = 0; i < (*intact)->manifest().modules.size(); ++i) {
      EXPECT_EQ((*adapter)->manifest().modules[i].scale, (*intact)->manifest().modules[i].scale);
      EXPECT_EQ(AsText((*adapter)->factors(i).lora_b.bytes()),
                AsText((*intact)->factors(i).lora_b.bytes()));
    }
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 400);
}

TEST(PeftReaderTest, IdentityIsThatOfBothFiles) {
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

}  // namespace
}  // namespace adapterd
