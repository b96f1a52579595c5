#include "core/formats/safetensors_json.h"

#include <fmt/format.h>

#include <exception>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/base/quote.h"

namespace adapterd {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
// Fields that we do not know may nest; this is how deep the reference's JSON reader goes.
constexpr int kMaxDepth = 127;
constexpr int kEntryDepth = 2;

// Receives the JSON events of one header. A callback that returns false ends the reading; `error`
// then says why.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view file) : file_(file) {}

  SafetensorsHeader& header() { return header_; }
  const std::optional<absl::Status>& error() const { return error_; }

  // The interface that nlohmann::json::sax_parse asks for, with its names.
  bool null() {
    if (place_ == Place::kHeader && key_ == kMetadataKey) return true;
    return OnScalar("null");
  }
  bool boolean(bool) { return OnScalar("a boolean"); }
  bool number_integer(int64_t) { return OnScalar("a negative number"); }
  bool number_float(double, const std::string&) {
    return OnScalar("a number with a fraction or exponent, or beyond 64 bits");
  }
  bool number_unsigned(uint64_t value);
  bool string(std::string& value);
  bool binary(nlohmann::json::binary_t&) { return OnScalar("binary"); }
  bool start_object(size_t);
  bool key(std::string& key);
  bool end_object();
  bool start_array(size_t);
  bool end_array();
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error);

 private:
  enum class Place { kOutside, kHeader, kMetadata, kEntry, kShape, kOffsets, kUnknown };
  enum Field : unsigned { kDType = 1, kShapeField = 2, kOffsetsField = 4, kOther = 0 };

  bool Fail(const Error& error) {
    if (!error_) error_ = error;
    return false;
  }
  bool FailEntry(std::string_view problem) {
    return Fail(MalformedTensor(file_, entry_.name, problem));
  }
  // A value of `kind` where it is not what the place asks for; fine in fields that we do not know.
  bool OnScalar(std::string_view kind);
  bool WrongType(std::string_view kind);
  bool StartHeaderValue();
  bool StartEntryField(std::string_view kind);
  bool DeepenUnknown();
  bool OnHeaderKey(std::string& key);
  bool OnEntryKey(const std::string& key);
  bool FinishEntry();

  const std::string_view file_;
  SafetensorsHeader header_;
  std::optional<absl::Status> error_;

  Place place_ = Place::kOutside;
  std::string key_;  // of the header or of the metadata
  bool has_metadata_ = false;
  int unknown_depth_ = 0;

  SafetensorsEntry entry_;
  Field field_ = kOther;
  unsigned fields_seen_ = 0;
  int offsets_seen_ = 0;
};

bool HeaderReader::WrongType(std::string_view kind) {
  const auto fail = [&](std::string_view what, std::string_view expected) {
    return Fail(MalformedTensor(file_, entry_.name,
                                fmt::format("{} should be {}, found {}", what, expected, kind))
                    .With("expected", std::string(expected))
                    .With("actual", std::string(kind)));
  };
  switch (place_) {
    case Place::kHeader:
      if (key_ == kMetadataKey) {
        return Fail(MalformedFile(
            file_, fmt::format("__metadata__ should be an object of strings, found {}", kind)));
      }
      entry_.name = key_;
      return fail("the entry", "an object");
    case Place::kMetadata:
      return Fail(MalformedFile(
          file_, fmt::format("metadata {} should be a string, found {}", Quoted(key_), kind)));
    case Place::kEntry:
      if (field_ == kDType) return fail("dtype", "a string");
      if (field_ == kShapeField) return fail("shape", "an array");
      return fail("data_offsets", "an array of two");
    case Place::kShape:
      return fail("a dimension", "a non-negative integer");
    case Place::kOffsets:
      return fail("a data offset", "a non-negative integer");
    default:
      return Fail(MalformedFile(file_, fmt::format("{} at a place where none may be", kind)));
  }
}

bool HeaderReader::OnScalar(std::string_view kind) {
  if (place_ == Place::kUnknown) return true;
  if (place_ == Place::kEntry && field_ == kOther) return true;
  return WrongType(kind);
}

bool HeaderReader::number_unsigned(uint64_t value) {
  if (place_ != Place::kShape && place_ != Place::kOffsets) return OnScalar("a number");
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return FailEntry(fmt::format("{} {} is beyond the range of a signed 64-bit integer",
                                 place_ == Place::kShape ? "dimension" : "data offset", value));
  }
  const auto number = static_cast<int64_t>(value);
  if (place_ == Place::kShape) {
    if (entry_.shape.size() >= kMaxTensorDims) {
      return FailEntry(fmt::format("has more than {} dimensions", kMaxTensorDims));
    }
    entry_.shape.push_back(number);
    return true;
  }
  ++offsets_seen_;
  if (offsets_seen_ > 2) return FailEntry("data_offsets should be two numbers, found more");
  // The second is the end; it becomes a length once both are known.
  (offsets_seen_ == 1 ? entry_.offset : entry_.bytes) = number;
  return true;
}

bool HeaderReader::string(std::string& value) {
  if (place_ == Place::kMetadata) {
    header_.metadata.emplace(std::move(key_), std::move(value));
    return true;
  }
  if (place_ != Place::kEntry || field_ != kDType) return OnScalar("a string");
  const auto dtype = DTypeFromName(value);
  if (!dtype) {
    return Fail(Error(Reason::kUnsupportedDtype,
                      fmt::format("file {}, tensor {}: unknown dtype {}", Quoted(file_),
                                  Quoted(entry_.name), Quoted(value)))
                    .With("file", Printable(file_))
                    .With("tensor", Printable(entry_.name))
                    .With("actual", Printable(value)));
  }
  entry_.dtype = *dtype;
  return true;
}

bool HeaderReader::start_object(size_t) {
  switch (place_) {
    case Place::kOutside:
      place_ = Place::kHeader;
      return true;
    case Place::kHeader:
      return StartHeaderValue();
    case Place::kEntry:
      return StartEntryField("an object");
    case Place::kUnknown:
      return DeepenUnknown();
    default:
      return WrongType("an object");
  }
}

bool HeaderReader::StartHeaderValue() {
  if (key_ == kMetadataKey) {
    place_ = Place::kMetadata;
    return true;
  }
  if (static_cast<int64_t>(header_.tensors.size()) >= kMaxSafetensorsTensors) {
    return Fail(
        MalformedFile(file_, fmt::format("declares more than {} tensors", kMaxSafetensorsTensors)));
  }
  entry_.name = std::move(key_);
  entry_.shape.clear();
  fields_seen_ = 0;
  offsets_seen_ = 0;
  field_ = kOther;
  place_ = Place::kEntry;
  return true;
}

bool HeaderReader::StartEntryField(std::string_view kind) {
  if (field_ != kOther) return WrongType(kind);
  place_ = Place::kUnknown;
  unknown_depth_ = 1;
  return true;
}

bool HeaderReader::DeepenUnknown() {
  if (kEntryDepth + ++unknown_depth_ <= kMaxDepth) return true;
  return FailEntry(fmt::format("nests deeper than {} levels", kMaxDepth));
}

bool HeaderReader::key(std::string& key) {
  switch (place_) {
    case Place::kHeader:
      return OnHeaderKey(key);
    case Place::kMetadata:
      if (header_.metadata.contains(key)) {
        return Fail(MalformedFile(file_, fmt::format("metadata has {} twice", Quoted(key))));
      }
      if (header_.metadata.size() >= kMaxSafetensorsMetadata) {
        return Fail(MalformedFile(
            file_, fmt::format("metadata has more than {} keys", kMaxSafetensorsMetadata)));
      }
      key_ = std::move(key);
      return true;
    case Place::kEntry:
      return OnEntryKey(key);
    default:
      return true;
  }
}

bool HeaderReader::OnHeaderKey(std::string& key) {
  if (key == kMetadataKey) {
    if (has_metadata_) return Fail(MalformedFile(file_, "has __metadata__ twice"));
    has_metadata_ = true;
  } else if (key.size() > kMaxTensorNameBytes) {
    return Fail(MalformedTensor(
        file_, key,
        fmt::format("has a name of {} bytes, more than {}", key.size(), kMaxTensorNameBytes)));
  }
  key_ = std::move(key);
  return true;
}

bool HeaderReader::OnEntryKey(const std::string& key) {
  field_ = key == "dtype"          ? kDType
           : key == "shape"        ? kShapeField
           : key == "data_offsets" ? kOffsetsField
                                   : kOther;
  if ((fields_seen_ & field_) != 0) return FailEntry(fmt::format("has {} twice", key));
  fields_seen_ |= field_;
  return true;
}

bool HeaderReader::end_object() {
  switch (place_) {
    case Place::kHeader:
      place_ = Place::kOutside;
      return true;
    case Place::kMetadata:
      place_ = Place::kHeader;
      return true;
    case Place::kEntry:
      return FinishEntry();
    default:
      if (--unknown_depth_ == 0) place_ = Place::kEntry;
      return true;
  }
}

bool HeaderReader::FinishEntry() {
  if ((fields_seen_ & kDType) == 0) return FailEntry("has no dtype");
  if ((fields_seen_ & kShapeField) == 0) return FailEntry("has no shape");
  if ((fields_seen_ & kOffsetsField) == 0) return FailEntry("has no data_offsets");
  if (entry_.bytes < entry_.offset) {
    return FailEntry(
        fmt::format("data_offsets [{}, {}] end before they begin", entry_.offset, entry_.bytes));
  }
  entry_.bytes -= entry_.offset;
  header_.tensors.push_back(std::move(entry_));
  place_ = Place::kHeader;
  return true;
}

bool HeaderReader::start_array(size_t) {
  if (place_ == Place::kUnknown) return DeepenUnknown();
  if (place_ != Place::kEntry || field_ == kDType) return WrongType("an array");
  if (field_ == kOther) return StartEntryField("an array");
  place_ = field_ == kShapeField ? Place::kShape : Place::kOffsets;
  return true;
}

bool HeaderReader::end_array() {
  if (place_ == Place::kUnknown) {
    if (--unknown_depth_ == 0) place_ = Place::kEntry;
    return true;
  }
  if (place_ == Place::kOffsets && offsets_seen_ != 2) {
    return FailEntry(fmt::format("data_offsets should be two numbers, found {}", offsets_seen_));
  }
  place_ = Place::kEntry;
  return true;
}

bool HeaderReader::parse_error(size_t position, const std::string&,
                               const nlohmann::json::exception& error) {
  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
  std::string_view what = error.what();
  if (const size_t prefix = what.find(": "); prefix != std::string_view::npos) {
    what.remove_prefix(prefix + 2);
  }
  return Fail(MalformedFile(file_, fmt::format("the header is not valid JSON at byte {}: {}",
                                               position, Printable(what))));
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsJson(std::string_view header,
                                                       std::string_view file_name) {
  // Three things that the JSON reader would let pass: a byte order mark, leading whitespace, and
  // NUL bytes, where it stops reading.
  if (!header.starts_with('{')) {
    return MalformedFile(file_name, "the header does not start with '{'");
  }
  if (const size_t nul = header.find('\0'); nul != std::string_view::npos) {
    return MalformedFile(file_name, fmt::format("the header has a NUL byte at {}", nul));
  }
  HeaderReader reader(file_name);
  try {
    if (nlohmann::json::sax_parse(header, &reader)) return std::move(reader.header());
  } catch (const std::exception& error) {
    return MalformedFile(file_name,
                         fmt::format("the header cannot be read: {}", Printable(error.what())));
  }
  return reader.error().value_or(MalformedFile(file_name, "the header is not valid JSON"));
}

Error MalformedFile(std::string_view file, std::string_view problem) {
  return Error(Reason::kMalformedTensorFile, fmt::format("file {}: {}", Quoted(file), problem))
      .With("file", Printable(file));
}

Error MalformedTensor(std::string_view file, std::string_view tensor, std::string_view problem) {
  return Error(Reason::kMalformedTensorFile,
               fmt::format("file {}, tensor {}: {}", Quoted(file), Quoted(tensor), problem))
      .With("file", Printable(file))
      .With("tensor", Printable(tensor));
}

}  // namespace adapterd
