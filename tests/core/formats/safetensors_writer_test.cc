#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/formats/safetensors.h"
#include "tests/core/formats/file_bytes.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

SafetensorsTensor TensorOf(std::string name, DType dtype, const Shape& shape,
                           std::string_view data) {
  return {std::move(name), dtype, shape, Bytes(data)};
}

// The tensors of a file that was read, in the order of its table. `file` must outlive them.
std::vector<SafetensorsTensor> TensorsOf(const SafetensorsHeader& header, const std::string& file) {
  std::vector<SafetensorsTensor> tensors;
  for (const SafetensorsEntry& entry : header.tensors) {
    tensors.push_back(
        {entry.name, entry.dtype, entry.shape, Bytes(file).subspan(entry.offset, entry.bytes)});
  }
  return tensors;
}

TEST(SafetensorsWriterTest, WritesTheSameBytesAsTheReference) {
  const std::string reference =
      ReadFile(ADAPTERD_FIXTURES "/safetensors-samples/reference-mixed.safetensors");
  ASSERT_OK_AND_ASSIGN(const auto header, ReadHeader(reference));
  auto tensors = TensorsOf(header, reference);
  ASSERT_OK_AND_ASSIGN(const std::string forward, SerializeSafetensors(tensors, header.metadata));
  EXPECT_EQ(forward, reference);
  std::reverse(tensors.begin(), tensors.end());
  ASSERT_OK_AND_ASSIGN(const std::string backward, SerializeSafetensors(tensors, header.metadata));
  EXPECT_EQ(backward, reference);
}

TEST(SafetensorsWriterTest, AnEmptyFileIsTheReferencesToo) {
  ASSERT_OK_AND_ASSIGN(const std::string file, SerializeSafetensors({}, {}));
  EXPECT_EQ(file, LittleEndian64(8) + "{}      ");
}

TEST(SafetensorsWriterTest, WritesTheExampleOfTheFormatsPage) {
  ASSERT_OK_AND_ASSIGN(
      const std::string file,
      SerializeSafetensors({TensorOf("s", DType::kI32, {}, std::string_view("\1\0\0\0", 4)),
                            TensorOf("e", DType::kF32, {0, 2}, "")},
                           {}));
  EXPECT_EQ(file, LittleEndian64(112) +
                      R"({"e":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]},)"
                      R"("s":{"dtype":"I32","shape":[],"data_offsets":[0,4]}})" +
                      std::string("    \1\0\0\0", 8));
  EXPECT_EQ(file.size(), 124u);
}

TEST(SafetensorsWriterTest, FilesOfAnotherWriterSurviveTheRoundTrip) {
  const std::string original =
      ReadFile(ADAPTERD_FIXTURES "/safetensors-samples/overall.safetensors");
  ASSERT_OK_AND_ASSIGN(const auto header, ReadHeader(original));
  ASSERT_OK_AND_ASSIGN(const std::string written,
                       SerializeSafetensors(TensorsOf(header, original), header.metadata));
  ASSERT_OK_AND_ASSIGN(const auto again, ReadHeader(written));
  EXPECT_EQ(again.metadata, header.metadata);
  ASSERT_EQ(again.tensors.size(), header.tensors.size());
  for (const SafetensorsEntry& entry : header.tensors) {
    const auto found = std::find_if(again.tensors.begin(), again.tensors.end(),
                                    [&](const auto& other) { return other.name == entry.name; });
    ASSERT_NE(found, again.tensors.end()) << entry.name;
    EXPECT_EQ(found->dtype, entry.dtype);
    EXPECT_EQ(found->shape, entry.shape);
    EXPECT_EQ(written.substr(found->offset, found->bytes),
              original.substr(entry.offset, entry.bytes));
    // Widest first behind a padded header: every element lies on its own width.
    EXPECT_EQ(found->offset % (BitsOf(found->dtype) / 8), 0) << entry.name;
  }
}

TEST(SafetensorsWriterTest, DataBeginOnAMultipleOfEight) {
  for (size_t length = 1; length <= 16; ++length) {
    ASSERT_OK_AND_ASSIGN(
        const std::string file,
        SerializeSafetensors({TensorOf(std::string(length, 'n'), DType::kU8, {1}, "x")}, {}));
    ASSERT_OK_AND_ASSIGN(const auto header, ReadHeader(file));
    EXPECT_EQ(header.tensors[0].offset % 8, 0) << length;
  }
}

TEST(SafetensorsWriterTest, MetadataAreEscapedAndSorted) {
  const std::map<std::string, std::string> metadata = {{"b", "line\n\"quoted\"\\"},
                                                       {"a", "\u20ac\x01"}};
  ASSERT_OK_AND_ASSIGN(const std::string file, SerializeSafetensors({}, metadata));
  EXPECT_THAT(file, HasSubstr(R"({"__metadata__":{"a":"€\u0001","b":"line\n\"quoted\"\\"}})"));
  ASSERT_OK_AND_ASSIGN(const auto header, ReadHeader(file));
  EXPECT_EQ(header.metadata, metadata);
}

TEST(SafetensorsWriterTest, RefusesWhatItCouldNotReadBack) {
  const int64_t max = std::numeric_limits<int64_t>::max();
  const auto one = [](std::string name) { return TensorOf(std::move(name), DType::kU8, {1}, "x"); };
  const std::vector<std::vector<SafetensorsTensor>> bad = {
      {one("a"), one("a")},
      {one("a"), one("b"), TensorOf("a", DType::kU16, {1}, "xy")},
      {one("__metadata__")},
      {one(std::string(kMaxTensorNameBytes + 1, 'n'))},
      {one("\xff")},
      {TensorOf("short", DType::kF32, {2}, "1234567")},
      {TensorOf("long", DType::kF32, {2}, "123456789")},
      {TensorOf("scalar", DType::kF32, {}, "")},
      {TensorOf("negative", DType::kU8, {-1}, "x")},
      {TensorOf("overflow", DType::kU8, {max, 2, 0}, "")},
      {TensorOf("half", DType::kF4, {1}, "x")},
      {TensorOf("deep", DType::kU8, Shape(kMaxTensorDims + 1, 1), "x")},
  };
  for (const auto& tensors : bad) {
    EXPECT_THAT(SerializeSafetensors(tensors, {}), HasReason(Reason::kInvalidField))
        << tensors.back().name;
  }
  EXPECT_THAT(SerializeSafetensors({}, {{"a", "\xff"}}), HasReason(Reason::kInvalidField));
  EXPECT_THAT(SerializeSafetensors({one("a"), one("a")}, {}), HasErrorMetadata("tensor", "a"));
}

}  // namespace
}  // namespace adapterd
