// What the reader takes and what it refuses: the vectors of the reference's own tests, the
// malformed cases around them, and the rules where we are stricter.
#include "core/formats/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/core/formats/file_bytes.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using namespace std::string_literals;  // NOLINT(google-build-using-namespace): only operator""s

struct Vector {
  const char* name;
  std::string bytes;
};

std::string Zeros(size_t count) { return std::string(count, '\0'); }

// A file with one tensor "t" whose entry is `entry`, and `data_bytes` zeros.
std::string Entry(std::string_view entry, size_t data_bytes = 8) {
  return SafetensorsFile(fmt::format(R"({{"t":{}}})", entry), Zeros(data_bytes));
}

std::string ShapeOf(std::string_view shape, size_t data_bytes = 0) {
  return Entry(
      fmt::format(R"({{"dtype":"U8","shape":{},"data_offsets":[0,{}]}})", shape, data_bytes),
      data_bytes);
}

std::string OffsetsOf(std::string_view offsets) {
  return Entry(fmt::format(R"({{"dtype":"F32","shape":[2],"data_offsets":{}}})", offsets));
}

std::string Nested(int levels) {
  return fmt::format(R"({{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":{}{}}})",
                     std::string(levels, '['), std::string(levels, ']'));
}

// {"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}, 60 bytes: the length field is '<'.
constexpr char kReferenceHeader[] =
    R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})";

std::vector<Vector> AcceptedVectors() {
  return {
      {"four integers", "<" + Zeros(7) + kReferenceHeader + Zeros(16)},
      {"a scalar",
       "8" + Zeros(7) + R"({"test":{"dtype":"I32","shape":[],"data_offsets":[0,4]}})" + Zeros(4)},
      {"whitespace after the header", "\x06" + Zeros(7) + "{}\r \t\n"},
      {"no elements",
       "<" + Zeros(7) + R"({"test":{"dtype":"I32","shape":[2,0],"data_offsets":[0, 0]}})"},
      {"no tensors", SafetensorsFile("{}")},
      {"null metadata", SafetensorsFile(R"({"__metadata__":null})")},
      {"empty metadata", SafetensorsFile(R"({"__metadata__":{}})")},
      {"metadata last", SafetensorsFile(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                        R"("__metadata__":{"a":"b"}})",
                                        "x")},
      {"fields in any order", Entry(R"({"data_offsets":[0,8],"shape":[2],"dtype":"F32"})")},
      {"an unknown field", Entry(R"({"dtype":"F32","x":{"y":[1.5,-2,null,true,{"dtype":3}]},)"
                                 R"("shape":[2],"data_offsets":[0,8]})")},
      {"an unknown scalar field",
       Entry(R"({"dtype":"F32","x":-1.5,"shape":[2],"data_offsets":[0,8]})")},
      {"an unknown field, nested deep", Entry(Nested(125))},
      {"an escaped key", SafetensorsFile(R"({"\u0074":{"dtype":"U8","shape":[1],)"
                                         R"("data_offsets":[0,1]}})",
                                         "x")},
      {"an empty name",
       SafetensorsFile(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x")},
      {"tensors in another order than their bytes",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},)"
                       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                       "xy")},
      {"an empty tensor between two others",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},)"
                       R"("c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                       "xy")},
      {"a whole byte of halves", Entry(R"({"dtype":"F4","shape":[4],"data_offsets":[0,2]})", 2)},
      {"three bytes of four sixes",
       Entry(R"({"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]})", 3)},
      {"the largest dimension that a zero excuses", ShapeOf("[0,9223372036854775807,4]")},
      {"as many dimensions as we take", ShapeOf(
                                            "[1" +
                                                [] {
                                                  std::string ones;
                                                  for (int i = 1; i < 32; ++i) ones += ",1";
                                                  return ones;
                                                }() +
                                                "]",
                                            1)},
  };
}

// What the reference refuses, too.
std::vector<Vector> RefusedVectors() {
  std::string aliases = "{";
  for (int i = 0; i < 10; ++i) {
    aliases += fmt::format(R"({}"test_{}":{{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})",
                           i == 0 ? "" : ",", i);
  }
  aliases += "}";
  const std::string valid = "<" + Zeros(7) + kReferenceHeader;
  return {
      {"bytes left over", valid + Zeros(16) + "extra_bogus_data_for_polyglot_file"},
      {"data cut short", valid + Zeros(14)},
      {"a huge length", "<\0\0\0\0\xff\xff\xff"s},
      {"an empty file", ""},
      {"seven bytes", Zeros(7)},
      {"a length and nothing else", "<" + Zeros(7)},
      {"a header that is not UTF-8", "\x01" + Zeros(7) + "\xff"},
      {"a header that is not JSON", "\x01" + Zeros(7) + "{"},
      {"a length of zero", Zeros(8)},
      {"a length of zero before data", Zeros(8) + "{}"},
      {"only a closing brace", SafetensorsFile("}")},
      {"an array", SafetensorsFile("[]")},
      {"a number", SafetensorsFile("1")},
      {"an unfinished header", SafetensorsFile(R"({"t":)")},
      {"two values", SafetensorsFile("{}{}")},
      {"NUL padding", SafetensorsFile("{}\0\0"s)},
      {"a NUL before more JSON", SafetensorsFile("{}\0}"s)},
      {"other padding", SafetensorsFile("{}\f")},
      {"a byte order mark", SafetensorsFile("\xef\xbb\xbf{}")},
      {"a comment", SafetensorsFile("{/**/}")},
      {"a trailing comma", SafetensorsFile(R"({"__metadata__":{},})")},
      {"single quotes", SafetensorsFile("{'a':1}")},
      {"a raw control character in a name", SafetensorsFile("{\"a\nb\":null}")},
      {"a lone surrogate",
       SafetensorsFile(R"({"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x")},
      {"broken UTF-8 in a name",
       SafetensorsFile("{\"\xc3\x28\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                       "x")},
      {"an overlong slash in metadata", SafetensorsFile("{\"__metadata__\":{\"a\":\"\xc0\xaf\"}}")},
      {"too few bytes for the shape",
       SafetensorsFile(R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,4]}})", Zeros(4))},
      {"a shape whose count wraps", ShapeOf("[2,18446744073709551614]")},
      {"a shape whose count overflows",
       Entry(R"({"dtype":"I32","shape":[2,9223372036854775807],"data_offsets":[0,16]})", 16)},
      {"an overflow before a zero", ShapeOf("[9223372036854775808,4,0]")},
      {"ten names for the same bytes", SafetensorsFile(aliases, Zeros(16))},
      {"a hole", SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                 R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                                 "xyz")},
      {"an overlap", SafetensorsFile(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                     R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                                     "xyz")},
      {"a first tensor that begins at 8", OffsetsOf("[8,16]")},
      {"an end before the begin", OffsetsOf("[8,0]")},
      {"an end beyond the file", OffsetsOf("[0,16]")},
      {"offsets near 2^64", OffsetsOf("[18446744073709551608,18446744073709551615]")},
      {"an end near 2^63", OffsetsOf("[0,9223372036854775807]")},
      {"one offset", OffsetsOf("[0]")},
      {"three offsets", OffsetsOf("[0,8,8]")},
      {"offsets that are no array", OffsetsOf("8")},
      {"offsets as an object", OffsetsOf(R"({"begin":0})")},
      {"nested offsets", OffsetsOf("[[0],8]")},
      {"an offset with a fraction", OffsetsOf("[0,8.0]")},
      {"an offset with an exponent", OffsetsOf("[0,8e0]")},
      {"a negative offset", OffsetsOf("[-8,0]")},
      {"minus zero", OffsetsOf("[-0,8]")},
      {"an offset beyond 64 bits", OffsetsOf("[0,18446744073709551616]")},
      {"an offset as a string", OffsetsOf(R"([0,"8"])")},
      {"a dimension with a fraction", ShapeOf("[1.0]", 1)},
      {"a dimension with an exponent", ShapeOf("[1e2]", 100)},
      {"a negative dimension", ShapeOf("[-1]", 1)},
      {"a dimension beyond 64 bits", ShapeOf("[0,18446744073709551616]")},
      {"a null dimension", ShapeOf("[null]", 1)},
      {"a boolean dimension", ShapeOf("[true]", 1)},
      {"a shape that is no array", ShapeOf("1", 1)},
      {"a null shape", ShapeOf("null", 1)},
      {"a nested shape", ShapeOf("[[1]]", 1)},
      {"half a byte", Entry(R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})", 2)},
      {"sixes that fill no bytes",
       Entry(R"({"dtype":"F6_E3M2","shape":[1],"data_offsets":[0,1]})", 1)},
      {"no dtype", Entry(R"({"shape":[8],"data_offsets":[0,8]})")},
      {"no shape", Entry(R"({"dtype":"U8","data_offsets":[0,8]})")},
      {"no offsets", Entry(R"({"dtype":"U8","shape":[8]})")},
      {"a dtype that is a number", Entry(R"({"dtype":1,"shape":[8],"data_offsets":[0,8]})")},
      {"a null dtype", Entry(R"({"dtype":null,"shape":[8],"data_offsets":[0,8]})")},
      {"dtype twice", Entry(R"({"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]})")},
      {"shape twice", Entry(R"({"dtype":"U8","shape":[8],"shape":[8],"data_offsets":[0,8]})")},
      {"offsets twice",
       Entry(R"({"dtype":"U8","shape":[8],"data_offsets":[0,8],"data_offsets":[0,8]})")},
      {"an empty entry", Entry("{}")},
      {"a null entry", Entry("null")},
      {"a string entry", Entry(R"("U8")")},
      {"metadata twice", SafetensorsFile(R"({"__metadata__":{},"__metadata__":{}})")},
      {"metadata null and again", SafetensorsFile(R"({"__metadata__":null,"__metadata__":{}})")},
      {"a number in metadata", SafetensorsFile(R"({"__metadata__":{"a":3}})")},
      {"null in metadata", SafetensorsFile(R"({"__metadata__":{"a":null}})")},
      {"an object in metadata", SafetensorsFile(R"({"__metadata__":{"a":{}}})")},
      {"an array in metadata", SafetensorsFile(R"({"__metadata__":{"a":[]}})")},
      {"metadata as a string", SafetensorsFile(R"({"__metadata__":"a"})")},
      {"metadata as an array", SafetensorsFile(R"({"__metadata__":[]})")},
      {"an unknown field, nested one level deeper", Entry(Nested(126))},
      {"an unknown field, nested without end", Entry(Nested(100'000))},
  };
}

// What the reference takes; docs/formats/safetensors.md says why we do not.
std::vector<Vector> StricterVectors() {
  std::string ones = "[1";
  for (int i = 1; i < 33; ++i) ones += ",1";
  return {
      {"whitespace before the header", SafetensorsFile(" {}")},
      {"a newline before the header", SafetensorsFile("\n{}")},
      {"a tensor twice", SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                         R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                         "x")},
      {"a tensor twice, end to end",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                       "xy")},
      {"a tensor twice by an escape",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                       R"("\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})")},
      {"a metadata key twice", SafetensorsFile(R"({"__metadata__":{"a":"1","a":"2"}})")},
      {"an entry as an array", Entry(R"(["F32",[2],[0,8]])")},
      {"a dtype as an object", Entry(R"({"dtype":{"U8":null},"shape":[8],"data_offsets":[0,8]})")},
      {"a dimension beyond a signed 64-bit integer", ShapeOf("[0,9223372036854775808,4]")},
      {"a count beyond a signed 64-bit integer", ShapeOf("[4611686018427387904,2,0]")},
      {"too many dimensions", ShapeOf(ones + "]", 1)},
      {"too long a name",
       SafetensorsFile(fmt::format(R"({{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}})",
                                   std::string(kMaxTensorNameBytes + 1, 'n')),
                       "x")},
  };
}

TEST(SafetensorsTest, AcceptsWhatTheReferenceAccepts) {
  for (const Vector& vector : AcceptedVectors()) {
    EXPECT_THAT(ReadHeader(vector.bytes), IsOk()) << vector.name;
  }
}

TEST(SafetensorsTest, RefusesWhatTheReferenceRefuses) {
  for (const Vector& vector : RefusedVectors()) {
    EXPECT_THAT(ReadHeader(vector.bytes), HasReason(Reason::kMalformedTensorFile)) << vector.name;
  }
}

TEST(SafetensorsTest, RefusesMoreThanTheReference) {
  for (const Vector& vector : StricterVectors()) {
    EXPECT_THAT(ReadHeader(vector.bytes), HasReason(Reason::kMalformedTensorFile)) << vector.name;
  }
}

TEST(SafetensorsTest, EveryRefusalNamesTheFileInAShortLine) {
  std::vector<Vector> refused = RefusedVectors();
  for (Vector& vector : StricterVectors()) refused.push_back(std::move(vector));
  for (const Vector& vector : refused) {
    const auto result = ReadHeader(vector.bytes);
    EXPECT_THAT(result, HasErrorMetadata("file", "adapter_model.safetensors")) << vector.name;
    EXPECT_THAT(result, HasMessage(HasSubstr("\"adapter_model.safetensors\""))) << vector.name;
    EXPECT_LT(result.status().message().size(), 1000u) << vector.name;
    EXPECT_EQ(result.status().message().find('\n'), absl::string_view::npos) << vector.name;
  }
}

TEST(SafetensorsTest, UnknownDtypesHaveTheirOwnReason) {
  for (const char* dtype : {"F33", "f32", "", "float32"}) {
    const auto result = ReadHeader(
        Entry(fmt::format(R"({{"dtype":"{}","shape":[2],"data_offsets":[0,8]}})", dtype)));
    EXPECT_THAT(result, HasReason(Reason::kUnsupportedDtype)) << dtype;
    EXPECT_THAT(result, HasErrorMetadata("tensor", "t"));
    EXPECT_THAT(result, HasErrorMetadata("actual", dtype));
  }
}

TEST(SafetensorsTest, HeaderLengthLimitIsTheReferences) {
  // The limit itself passes on to the next check, one more does not.
  EXPECT_THAT(ReadHeader(LittleEndian64(100'000'000) + "{"),
              HasMessage(HasSubstr("only 1 follow")));
  EXPECT_THAT(ReadHeader(LittleEndian64(100'000'001) + "{"),
              HasMessage(HasSubstr("more than the 100000000 allowed")));
}

TEST(SafetensorsTest, TensorCountIsBounded) {
  std::string header = "{";
  for (int64_t i = 0; i <= kMaxSafetensorsTensors; ++i) {
    fmt::format_to(std::back_inserter(header),
                   R"("{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},)", i);
  }
  header.back() = '}';
  EXPECT_THAT(ReadHeader(SafetensorsFile(header)), HasMessage(HasSubstr("more than 1000000")));
}

TEST(SafetensorsTest, MetadataIsBounded) {
  std::string header = R"({"__metadata__":{)";
  for (size_t i = 0; i <= kMaxSafetensorsMetadata; ++i) {
    fmt::format_to(std::back_inserter(header), R"("{}":"",)", i);
  }
  header.back() = '}';
  EXPECT_THAT(ReadHeader(SafetensorsFile(header + "}")), HasMessage(HasSubstr("more than 100000")));
}

TEST(SafetensorsTest, TheTableIsSortedByOffsetAndCountsFromTheFilesStart) {
  const std::string header = R"({"c":{"dtype":"U8","shape":[],"data_offsets":[9,10]},)"
                             R"("z":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},)"
                             R"("e":{"dtype":"F32","shape":[3,0],"data_offsets":[8,8]},)"
                             R"("b":{"dtype":"I8","shape":[1,1],"data_offsets":[8,9]},)"
                             R"("a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},)"
                             R"("__metadata__":{"format":"pt","lora":"\u20ac"}})";
  ASSERT_OK_AND_ASSIGN(const auto parsed, ReadHeader(SafetensorsFile(header, Zeros(10))));
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : parsed.tensors) names.push_back(entry.name);
  EXPECT_THAT(names, ElementsAre("a", "z", "e", "b", "c"));
  const int64_t data = 8 + static_cast<int64_t>(header.size());
  EXPECT_EQ(parsed.tensors[0].offset, data);
  EXPECT_EQ(parsed.tensors[0].bytes, 8);
  EXPECT_EQ(parsed.tensors[0].dtype, DType::kF16);
  EXPECT_THAT(parsed.tensors[0].shape, ElementsAre(2, 2));
  EXPECT_THAT(parsed.tensors[2].shape, ElementsAre(3, 0));
  EXPECT_EQ(parsed.tensors[4].offset, data + 9);
  EXPECT_EQ(parsed.tensors[4].bytes, 1);
  EXPECT_THAT(parsed.metadata, ElementsAre(Pair("format", "pt"), Pair("lora", "\u20ac")));
}

TEST(SafetensorsTest, HostileNamesAreCutAndEscapedInErrors) {
  const std::string name = "\\u001b[2J\\n" + std::string(3000, 'n');
  const auto result = ReadHeader(SafetensorsFile(
      fmt::format(R"({{"{}":{{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}}})", name), "x"));
  EXPECT_THAT(result, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(result, HasErrorMetadata("tensor", HasSubstr("\\x1b[2J\\x0annn")));
  EXPECT_LT(result.status().message().size(), 300u);
}

TEST(SafetensorsTest, OtherFilesUnderThisNameAreToldApart) {
  const auto lfs = ReadHeader(
      "version https://git-lfs.github.com/spec/v1\n"
      "oid sha256:0000000000000000000000000000000000000000000000000000000000000000\nsize 100\n");
  EXPECT_THAT(lfs, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(lfs, HasMessage(HasSubstr("Git LFS pointer")));
  const auto zip = ReadHeader("PK\3\4\0\0\x08\x08\0\0\0\0archive/data.pkl"s);
  EXPECT_THAT(zip, HasReason(Reason::kUnsafeFormat));
  EXPECT_THAT(zip, HasMessage(HasSubstr("zip archive")));
  for (const char protocol : {'\2', '\3', '\4', '\5'}) {
    const auto pickle = ReadHeader("\x80"s + protocol + "\x8a\nl\xfc\x9c" + "F\xf9 j\xa8P\x19.");
    EXPECT_THAT(pickle, HasReason(Reason::kUnsafeFormat));
    EXPECT_THAT(pickle, HasMessage(HasSubstr("pickle")));
  }
}

TEST(SafetensorsTest, AHeaderWhoseLengthLooksLikeAPickleIsRead) {
  // 0x280 bytes: the length field begins with 0x80 0x02, as pickles do.
  ASSERT_OK_AND_ASSIGN(const auto parsed,
                       ReadHeader(SafetensorsFile("{}" + std::string(0x280 - 2, ' '))));
  EXPECT_TRUE(parsed.tensors.empty());
}

TEST(SafetensorsTest, ReadsTheSamplesOfAnotherWriter) {
  const std::string folder = ADAPTERD_FIXTURES "/safetensors-samples/";
  for (const auto& [file, dtype] : std::vector<std::pair<std::string, DType>>{{"B", DType::kU8},
                                                                              {"b", DType::kI8},
                                                                              {"H", DType::kU16},
                                                                              {"h", DType::kI16},
                                                                              {"I", DType::kU32},
                                                                              {"i", DType::kI32},
                                                                              {"e", DType::kF16},
                                                                              {"f", DType::kF32},
                                                                              {"d", DType::kF64}}) {
    ASSERT_OK_AND_ASSIGN(const auto parsed, ReadHeader(ReadFile(folder + file + ".safetensors")));
    ASSERT_EQ(parsed.tensors.size(), 1u) << file;
    EXPECT_EQ(parsed.tensors[0].name, file);
    EXPECT_EQ(parsed.tensors[0].dtype, dtype);
    EXPECT_THAT(parsed.tensors[0].shape, ElementsAre(6));
    EXPECT_THAT(parsed.metadata, ElementsAre(Pair("test", "a")));
  }
  ASSERT_OK_AND_ASSIGN(const auto all, ReadHeader(ReadFile(folder + "overall.safetensors")));
  EXPECT_EQ(all.tensors.size(), 9u);
}

}  // namespace
}  // namespace adapterd
