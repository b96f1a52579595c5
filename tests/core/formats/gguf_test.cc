// The container: what is read, and every way in which it can be broken.
#include "core/formats/gguf.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include "tests/testing/gguf_builder.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<GgufHeader> Parse(std::string_view file) {
  return ParseGguf(
      [file](int64_t offset, std::span<std::byte> out) {
        EXPECT_LE(offset + out.size(), file.size());
        std::memcpy(out.data(), file.data() + offset, out.size());
        return absl::OkStatus();
      },
      static_cast<int64_t>(file.size()), "a.gguf");
}

TEST(GgufTest, KeysOfEveryTypeAndTensorsAreRead) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder builder = SmallGguf();
    builder.version = version;
    builder.Raw("u8", 0, RawBytes<uint8_t>(200)).Raw("i8", 1, RawBytes<int8_t>(-3));
    builder.Raw("u16", 2, RawBytes<uint16_t>(60000)).Raw("i16", 3, RawBytes<int16_t>(-300));
    builder.Raw("u32", 4, RawBytes<uint32_t>(1u << 31)).Raw("i32", 5, RawBytes<int32_t>(-70000));
    builder.Raw("bool", 7, RawBytes<uint8_t>(1)).Raw("u64", 10, RawBytes<uint64_t>(1ull << 63));
    builder.Raw("i64", 11, RawBytes<int64_t>(-5)).Raw("f64", 12, RawBytes<double>(0.5));
    builder.Raw("array", 9, RawBytes<uint32_t>(4) + RawBytes<uint64_t>(2) + RawBytes<uint64_t>(77));
    builder.Raw("texts", 9,
                RawBytes<uint32_t>(8) + RawBytes<uint64_t>(2) + GgufText("a") + GgufText(""));
    ASSERT_OK_AND_ASSIGN(const GgufHeader header, Parse(builder.Build()));
    EXPECT_EQ(header.version, version);
    const auto& keys = header.metadata;
    EXPECT_EQ(std::get<std::string>(keys.at("general.architecture")), "qwen2");
    EXPECT_EQ(std::get<float>(keys.at("adapter.lora.alpha")), 16);
    EXPECT_EQ(std::get<uint64_t>(keys.at("u8")), 200);
    EXPECT_EQ(std::get<int64_t>(keys.at("i8")), -3);
    EXPECT_EQ(std::get<uint64_t>(keys.at("u16")), 60000);
    EXPECT_EQ(std::get<int64_t>(keys.at("i16")), -300);
    EXPECT_EQ(std::get<uint64_t>(keys.at("u32")), 1u << 31);
    EXPECT_EQ(std::get<int64_t>(keys.at("i32")), -70000);
    EXPECT_EQ(std::get<bool>(keys.at("bool")), true);
    EXPECT_EQ(std::get<uint64_t>(keys.at("u64")), 1ull << 63);
    EXPECT_EQ(std::get<int64_t>(keys.at("i64")), -5);
    EXPECT_EQ(std::get<double>(keys.at("f64")), 0.5);
    EXPECT_EQ(std::get<GgufArray>(keys.at("array")).count, 2u);
    EXPECT_EQ(std::get<GgufArray>(keys.at("texts")).element_type, 8u);
    ASSERT_EQ(header.tensors.size(), 2u);
    EXPECT_EQ(header.tensors[0].name, "blk.0.attn_q.weight.lora_a");
    EXPECT_THAT(header.tensors[0].shape, ElementsAre(4, 8));
    EXPECT_THAT(header.tensors[1].shape, ElementsAre(6, 4));
    EXPECT_EQ(header.tensors[1].offset, header.tensors[0].offset + 4 * 8 * 4);
    EXPECT_EQ(header.tensors[1].bytes, 6 * 4 * 4);
  }
}

TEST(GgufTest, SizesFollowTheTypes) {
  GgufBuilder builder;
  builder.tensors = {{"f16", {32, 3}, kGgmlF16, std::string(192, '\0')},
                     {"bf16", {5}, kGgmlBF16, std::string(10, '\0')},
                     {"q8", {64, 2}, kGgmlQ8, std::string(4 * 34, '\0')},
                     {"none", {0, 4}, kGgmlF32, ""}};
  ASSERT_OK_AND_ASSIGN(const GgufHeader header, Parse(builder.Build()));
  std::vector<int64_t> bytes;
  for (const GgufTensor& tensor : header.tensors) bytes.push_back(tensor.bytes);
  EXPECT_THAT(bytes, ElementsAre(192, 10, 136, 0));
}

TEST(GgufTest, OtherAlignmentsAndMissingPaddingAtTheEndAreRead) {
  for (const uint64_t alignment : {1, 8, 32, 4096}) {
    GgufBuilder builder = SmallGguf();
    builder.alignment = alignment;
    builder.Raw("general.alignment", kGgufUint32,
                RawBytes<uint32_t>(static_cast<uint32_t>(alignment)));
    builder.tensors.push_back({"last", {3}, kGgmlF16, "123456"});
    std::string file = builder.Build();
    EXPECT_THAT(Parse(file), IsOk()) << alignment;
    while (file.back() == '\0') file.pop_back();
    EXPECT_THAT(Parse(file), IsOk()) << alignment;
  }
}

// Every cut of the file is an error, and none is read beyond.
TEST(GgufTest, EveryTruncationIsSeen) {
  GgufBuilder builder = SmallGguf();
  builder.tensors.back().data.back() = '\1';
  const std::string file = builder.Build();
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_THAT(Parse(std::string_view(file).substr(0, size)),
                HasReason(Reason::kMalformedTensorFile))
        << size;
  }
  EXPECT_THAT(Parse(file), IsOk());
}

struct Damage {
  const char* name;
  std::function<void(GgufBuilder&)> spoil;
  const char* message;
  const char* about = "";  // the key or tensor that the error names
  Reason reason = Reason::kMalformedTensorFile;
};

TEST(GgufTest, DamageIsNamed) {
  constexpr const char* kA = "blk.0.attn_q.weight.lora_a";
  constexpr const char* kB = "blk.0.attn_q.weight.lora_b";
  const auto alignment = [](uint32_t value) {
    return [value](GgufBuilder& b) { b.Raw("general.alignment", kGgufUint32, RawBytes(value)); };
  };
  const auto version = [](uint32_t value) {
    return [value](GgufBuilder& b) { b.version = value; };
  };
  const auto offset = [](uint64_t value) {
    return [value](GgufBuilder& b) { b.tensors[1].offset = value; };
  };
  const auto array = [](uint32_t type, uint64_t count) {
    return [type, count](GgufBuilder& b) {
      b.Raw("list", kGgufArrayType, RawBytes(type) + RawBytes(count));
    };
  };
  const Damage cases[] = {
      {"magic", [](GgufBuilder& b) { b.magic = "GGML"; }, "magic"},
      {"LFS", [](GgufBuilder& b) { b.magic = "version https://git-lfs"; }, "LFS"},
      {"version 0", version(0), "version 0"},
      {"version 1", version(1), "version 1"},
      {"version 4", version(4), "version 4"},
      {"big-endian", version(0x03000000), "big-endian"},
      {"2^63 tensors", [](GgufBuilder& b) { b.tensor_count = 1ull << 63; }, "9223372036854775808"},
      {"2^63 keys", [](GgufBuilder& b) { b.key_count = 1ull << 63; }, "9223372036854775808"},
      {"more tensors", [](GgufBuilder& b) { b.tensor_count = 1'000'000; }, "tensor"},
      {"fewer tensors", [](GgufBuilder& b) { b.tensor_count = 1; }, "left over"},
      {"more keys", [](GgufBuilder& b) { b.key_count = 100'000; }, ""},
      {"long text", [](GgufBuilder& b) { b.Raw("k", kGgufString, RawBytes<uint64_t>(1ull << 63)); },
       "\"k\""},
      {"text past the end",
       [](GgufBuilder& b) { b.Raw("k", kGgufString, RawBytes<uint64_t>(100'000)); }, "truncated"},
      {"value type", [](GgufBuilder& b) { b.Raw("k", 13, "12345678"); }, "type 13", "k"},
      {"nested arrays", array(9, 1), "array of arrays", "list"},
      {"array type", array(13, 1), "type 13", "list"},
      {"array of 2^63", array(4, 1ull << 63), "truncated"},
      {"array of 2^61 u64", array(10, 1ull << 61), "truncated"},
      {"array of 2^63 texts", array(8, 1ull << 63), "truncated"},
      {"key twice",
       [](GgufBuilder& b) { b.RawTwice("adapter.type", kGgufString, GgufText("lora")); },
       "is there twice", "adapter.type"},
      {"alignment 0", alignment(0), "power of two", "general.alignment"},
      {"alignment 24", alignment(24), "power of two", "general.alignment"},
      {"alignment 2^31", alignment(1u << 31), "power of two", "general.alignment"},
      {"alignment as text", [](GgufBuilder& b) { b.Text("general.alignment", "32"); },
       "power of two", "general.alignment"},
      {"tensor twice", [](GgufBuilder& b) { b.tensors[1].name = b.tensors[0].name; },
       "declared twice", kA},
      {"ggml type 2", [](GgufBuilder& b) { b.tensors[0].type = 2; }, "ggml type 2", kA,
       Reason::kUnsupportedDtype},
      {"ggml type 2^32-1", [](GgufBuilder& b) { b.tensors[0].type = 0xffffffff; },
       "ggml type 4294967295", kA, Reason::kUnsupportedDtype},
      {"no dimensions", [](GgufBuilder& b) { b.tensors[0].dims = {}; }, "0 dimensions", kA},
      {"five dimensions",
       [](GgufBuilder& b) {
         b.tensors[0].dims = {1, 1, 1, 1, 1};
       },
       "5 dimensions", kA},
      {"dimension of 2^63",
       [](GgufBuilder& b) {
         b.tensors[0].dims = {1ull << 63, 1};
       },
       "9223372036854775808", kA},
      {"product overflows",
       [](GgufBuilder& b) {
         b.tensors[0].dims = {1ull << 40, 1ull << 40};
       },
       "overflow", kA},
      {"broken Q8_0 blocks", [](GgufBuilder& b) { b.tensors[0].type = kGgmlQ8; }, "blocks", kA},
      {"overlap", offset(96), "overlap", kB},
      {"same place", offset(0), "overlap", kA},
      {"unaligned", offset(130), "unaligned", kB},
      {"hole", offset(160), "hole", kB},
      {"offset past the end", offset(1ull << 40), "begins at byte", kB},
      {"offset of 2^64-1", offset(~0ull), "begins at byte", kB},
      {"data past the end",
       [](GgufBuilder& b) {
         b.tensors[1].dims = {4, 600};
       },
       "truncated", kB},
      {"bytes left over", [](GgufBuilder& b) { b.trailing = std::string(33, 'x'); }, "left over"},
  };
  for (const Damage& damage : cases) {
    SCOPED_TRACE(damage.name);
    GgufBuilder builder = SmallGguf();
    damage.spoil(builder);
    const absl::Status status = Parse(builder.Build()).status();
    EXPECT_THAT(status,
                AllOf(HasReason(damage.reason), HasMessage(HasSubstr(damage.message)),
                      HasMessage(HasSubstr(damage.about)), HasMessage(HasSubstr("a.gguf"))));
  }
}

// The names of keys and tensors come from outside, too.
TEST(GgufTest, HostileNamesKeepMessagesShort) {
  GgufBuilder builder = SmallGguf();
  builder.Raw(std::string(60'000, '\xff'), 13, "");
  EXPECT_LT(Parse(builder.Build()).status().message().size(), 1000u);
  builder = SmallGguf();
  builder.tensors[0].name = std::string(4000, '\n');
  builder.tensors[0].type = 5;
  EXPECT_LT(Parse(builder.Build()).status().message().size(), 1000u);
  builder.tensors[0].name = std::string(5000, 'x');
  EXPECT_THAT(Parse(builder.Build()), HasMessage(HasSubstr("more than the 4096")));
}

TEST(GgufTest, FilesOfTheRealToolThatWereDamaged) {
  const auto folder = std::filesystem::path(ADAPTERD_FIXTURES) / "other/gguf-broken";
  EXPECT_THAT(Parse(ReadFile(folder / "truncated-data.gguf")),
              AllOf(HasReason(Reason::kMalformedTensorFile),
                    HasMessage(HasSubstr("blk.1.attn_q.weight.lora_b"))));
  EXPECT_THAT(
      Parse(ReadFile(folder / "huge-tensor-count.gguf")),
      AllOf(HasReason(Reason::kMalformedTensorFile), HasMessage(HasSubstr("1152921504606846976"))));
  EXPECT_THAT(Parse(ReadFile(folder / "wrong-general-type.gguf")), IsOk());  // as a container
}

TEST(GgufTest, WhatIsWrittenIsReadAgain) {
  ASSERT_OK_AND_ASSIGN(const GgufLayout layout,
                       LayOutGguf({{"a", GgufType::kF32, {3, 5}},
                                   {"b", GgufType::kF16, {2, 3, 7}},
                                   {"c", GgufType::kBF16, {1}}},
                                  {{"text", std::string("x")}, {"f", 1.5f}, {"n", 7u}}));
  std::string file = layout.start;
  for (const auto& [bytes, padding] :
       {std::pair(60, layout.padding[0]), std::pair(84, layout.padding[1]),
        std::pair(2, layout.padding[2])}) {
    file += std::string(bytes, 'x') + std::string(padding, '\0');
  }
  EXPECT_EQ(static_cast<int64_t>(file.size()), layout.file_bytes);
  ASSERT_OK_AND_ASSIGN(const GgufHeader header, Parse(file));
  EXPECT_EQ(header.version, 3u);
  EXPECT_EQ(std::get<std::string>(header.metadata.at("text")), "x");
  EXPECT_EQ(std::get<float>(header.metadata.at("f")), 1.5f);
  EXPECT_EQ(std::get<uint64_t>(header.metadata.at("n")), 7u);
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_THAT(header.tensors[1].shape, ElementsAre(2, 3, 7));
  EXPECT_EQ(header.tensors[1].type, GgufType::kF16);
  EXPECT_EQ(file.substr(header.tensors[1].offset, 84), std::string(84, 'x'));
}

TEST(GgufTest, WhatLlamaCppWouldNotReadIsNotWritten) {
  EXPECT_THAT(LayOutGguf({{std::string(64, 'x'), GgufType::kF32, {1}}}, {}),
              HasReason(Reason::kInvalidField));
  EXPECT_THAT(LayOutGguf({{"x", GgufType::kF32, {1}}, {"x", GgufType::kF32, {1}}}, {}),
              HasReason(Reason::kInvalidField));
  EXPECT_THAT(LayOutGguf({{"x", GgufType::kF32, {1, 1, 1, 1, 1}}}, {}),
              HasReason(Reason::kInvalidField));
}

}  // namespace
}  // namespace adapterd
