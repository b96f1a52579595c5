// One valid file, broken in one way at a time.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "core/formats/safetensors.h"
#include "tests/core/formats/file_bytes.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

std::string ValidFile() {
  return ReadFile(ADAPTERD_FIXTURES "/safetensors-samples/reference-mixed.safetensors");
}

enum class Corruption {
  kLengthPlusOne,
  kLengthHuge,
  kLengthZero,
  kHeaderCutInHalf,
  kDataMissing,
  kLastByteMissing,
  kByteAppended,
  kPaddingOfNuls,
  kUnknownDtype,
  kWiderDtype,
  kLargerDimension,
  kMissingDimension,
  kTwoNamesAlike,
  kOffsetsSwapped,
  kOffsetsShared,
  kOffsetsShifted,
  kEndBeyondTheFile,
  kFieldMissing,
  kMetadataNumber,
  kBrokenQuote,
  kBrokenUtf8,
};

struct Expectation {
  Corruption corruption;
  const char* tensor;   // in the error's metadata; null: none
  const char* message;  // a part of it
  Reason reason = Reason::kMalformedTensorFile;
};

const Expectation kExpectations[] = {
    {Corruption::kLengthPlusOne, nullptr, "not valid JSON"},
    {Corruption::kLengthHuge, nullptr, "more than the 100000000 allowed"},
    {Corruption::kLengthZero, nullptr, "does not start with '{'"},
    {Corruption::kHeaderCutInHalf, nullptr, "declares a header of 680 bytes, only 340 follow"},
    {Corruption::kDataMissing, nullptr, "truncated: the tensors take 56 bytes, the file has 0"},
    {Corruption::kLastByteMissing, nullptr,
     "truncated: the tensors take 56 bytes, the file has 55"},
    {Corruption::kByteAppended, nullptr, "left over: the tensors take 56 bytes, the file has 57"},
    {Corruption::kPaddingOfNuls, nullptr, "NUL byte"},
    {Corruption::kUnknownDtype, "half", "unknown dtype \"Q16\"", Reason::kUnsupportedDtype},
    {Corruption::kWiderDtype, "half", "F64 [3] takes 24 bytes, data_offsets give it 6"},
    {Corruption::kLargerDimension, "half", "F16 [9] takes 18 bytes, data_offsets give it 6"},
    {Corruption::kMissingDimension, "half", "F16 [] takes 2 bytes, data_offsets give it 6"},
    {Corruption::kTwoNamesAlike, "half", "is declared twice"},
    {Corruption::kOffsetsSwapped, "half", "[46, 40] end before they begin"},
    {Corruption::kOffsetsShared, "half", "begins at byte 36 of the data, expected 40 (overlap)"},
    {Corruption::kOffsetsShifted, "half", "begins at byte 41 of the data, expected 40 (hole)"},
    {Corruption::kEndBeyondTheFile, "half", "F16 [3] takes 6 bytes, data_offsets give it 59"},
    {Corruption::kFieldMissing, "half", "has no dtype"},
    {Corruption::kMetadataNumber, nullptr, "metadata \"format\" should be a string"},
    {Corruption::kBrokenQuote, nullptr, "not valid JSON"},
    {Corruption::kBrokenUtf8, nullptr, "not valid JSON"},
};

// `file` with `from`, which must be there once, as `to` of the same length.
std::string Replace(std::string file, std::string_view from, std::string_view to) {
  const size_t at = file.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(file.find(from, at + 1), std::string::npos) << from;
  EXPECT_EQ(from.size(), to.size());
  return file.replace(at, from.size(), to);
}

std::string WithLength(std::string file, uint64_t length) {
  return file.replace(0, 8, LittleEndian64(length));
}

std::string Corrupt(Corruption corruption) {
  const std::string file = ValidFile();
  constexpr size_t kHeaderBytes = 680;
  switch (corruption) {
    case Corruption::kLengthPlusOne:
      return WithLength(file, kHeaderBytes + 1);
    case Corruption::kLengthHuge:
      return WithLength(file, ~uint64_t{0});
    case Corruption::kLengthZero:
      return WithLength(file, 0);
    case Corruption::kHeaderCutInHalf:
      return file.substr(0, 8 + kHeaderBytes / 2);
    case Corruption::kDataMissing:
      return file.substr(0, 8 + kHeaderBytes);
    case Corruption::kLastByteMissing:
      return file.substr(0, file.size() - 1);
    case Corruption::kByteAppended:
      return file + "x";
    case Corruption::kPaddingOfNuls:
      return Replace(file, "}}    ", std::string_view("}}\0\0\0\0", 6));
    case Corruption::kUnknownDtype:
      return Replace(file, "\"F16\"", "\"Q16\"");
    case Corruption::kWiderDtype:
      return Replace(file, "\"F16\"", "\"F64\"");
    case Corruption::kLargerDimension:
      return Replace(file, "[3]", "[9]");
    case Corruption::kMissingDimension:
      return Replace(file, "[3]", "[ ]");
    case Corruption::kTwoNamesAlike:
      return Replace(file, "\"byte\"", "\"half\"");
    case Corruption::kOffsetsSwapped:
      return Replace(file, "[40,46]", "[46,40]");
    case Corruption::kOffsetsShared:
      return Replace(file, "[40,46]", "[36,46]");
    case Corruption::kOffsetsShifted:
      return Replace(file, "[40,46]", "[41,46]");
    case Corruption::kEndBeyondTheFile:
      return Replace(file, "[40,46]", "[40,99]");
    case Corruption::kFieldMissing:
      return Replace(file, "\"dtype\":\"F16\"", "\"dtYpe\":\"F16\"");
    case Corruption::kMetadataNumber:
      return Replace(file, "\"pt\"", "1234");
    case Corruption::kBrokenQuote:
      return Replace(file, "\"half\"", "\"half ");
    case Corruption::kBrokenUtf8:
      return Replace(file, "na\xc3\xafve", "na\xc3?ve");
  }
  return {};
}

TEST(SafetensorsCorruptTest, TheFileIsFineToBeginWith) {
  ASSERT_OK_AND_ASSIGN(const auto parsed, ReadHeader(ValidFile()));
  EXPECT_EQ(parsed.tensors.size(), 10u);
}

TEST(SafetensorsCorruptTest, EachCorruptionIsRefusedWithFileTensorAndReason) {
  for (const Expectation& expected : kExpectations) {
    const auto result = ReadHeader(Corrupt(expected.corruption));
    SCOPED_TRACE(expected.message);
    EXPECT_THAT(result, HasReason(expected.reason));
    EXPECT_THAT(result, HasMessage(HasSubstr(expected.message)));
    EXPECT_THAT(result, HasErrorMetadata("file", "adapter_model.safetensors"));
    if (expected.tensor != nullptr) {
      EXPECT_THAT(result, HasErrorMetadata("tensor", expected.tensor));
    } else {
      EXPECT_THAT(result, ::testing::Not(HasErrorMetadata("tensor", ::testing::_)));
    }
  }
}

TEST(SafetensorsCorruptTest, SizesThatDisagreeAreInTheMetadata) {
  const auto result = ReadHeader(Corrupt(Corruption::kLargerDimension));
  EXPECT_THAT(result, HasErrorMetadata("expected", "18"));
  EXPECT_THAT(result, HasErrorMetadata("actual", "6"));
}

TEST(SafetensorsCorruptTest, EveryTruncationIsRefused) {
  const std::string file = ValidFile();
  for (size_t size = 0; size < file.size(); ++size) {
    ASSERT_THAT(ReadHeader(std::string_view(file).substr(0, size)),
                HasReason(Reason::kMalformedTensorFile))
        << size;
  }
}

// What a reader may rely on when a header was accepted, whatever the file.
void ExpectSoundTable(const SafetensorsHeader& header, size_t file_bytes) {
  int64_t end = -1;
  for (const SafetensorsEntry& entry : header.tensors) {
    if (end >= 0) {
      ASSERT_EQ(entry.offset, end);
    }
    ASSERT_GE(entry.offset, 10);
    ASSERT_EQ(*ByteCount(entry.dtype, entry.shape), entry.bytes);
    end = entry.offset + entry.bytes;
  }
  if (end >= 0) {
    ASSERT_EQ(end, static_cast<int64_t>(file_bytes));
  }
}

TEST(SafetensorsCorruptTest, EverySingleByteChangeIsRefusedOrGivesASoundTable) {
  const std::string file = ValidFile();
  const size_t header_end = 8 + 680;
  for (size_t at = 0; at < header_end; ++at) {
    for (int change = 1; change < 256; ++change) {
      std::string broken = file;
      broken[at] = static_cast<char>(broken[at] ^ change);
      // From the header on, without a file: 170,000 files would take their time.
      const auto result = at < 8 ? ReadHeader(broken)
                                 : ParseSafetensorsHeader(std::string_view(broken).substr(8, 680),
                                                          static_cast<int64_t>(broken.size()), "f");
      if (result.ok()) ExpectSoundTable(*result, broken.size());
    }
  }
}

TEST(SafetensorsCorruptTest, EveryDoubledOrDroppedHeaderByteIsRefusedOrGivesASoundTable) {
  const std::string file = ValidFile();
  for (size_t at = 8; at < 8 + 680; ++at) {
    for (const std::string& header :
         {file.substr(8, 680).erase(at - 8, 1), file.substr(8, 680).insert(at - 8, 1, file[at])}) {
      const size_t file_bytes = 8 + header.size() + 56;
      const auto result = ParseSafetensorsHeader(header, static_cast<int64_t>(file_bytes), "f");
      if (result.ok()) ExpectSoundTable(*result, file_bytes);
    }
  }
}

TEST(SafetensorsCorruptTest, AFileThatShrinksAfterItWasOpenedHasChanged) {
  const TempDir folder;
  const auto path = folder.Write("adapter_model.safetensors", ValidFile());
  ASSERT_OK_AND_ASSIGN(const InputFile file,
                       InputFile::FromDescriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC), "f"));
  std::filesystem::resize_file(path, 20);
  EXPECT_THAT(ReadSafetensorsHeader(file), HasReason(Reason::kSourceChanged));
}

}  // namespace
}  // namespace adapterd
