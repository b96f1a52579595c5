#include "core/formats/checkpoint_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"
#include "core/formats/safetensors_json.h"

namespace adapterd {
namespace {

constexpr std::string_view kWeightMap = "weight_map";
// Only values that are skipped may nest deeper than the map; writers use two levels.
constexpr int kMaxDepth = 64;
constexpr int kMapDepth = 2;

// Receives the JSON events of one index. A callback that returns false ends the reading; `error`
// then says why.
class IndexReader {
 public:
  explicit IndexReader(std::string_view file) : file_(file) {}

  CheckpointIndex& index() { return index_; }
  const std::optional<absl::Status>& error() const { return error_; }
  bool has_map() const { return has_map_; }

  // The interface that nlohmann::json::sax_parse asks for, with its names.
  bool null() { return OnScalar("null"); }
  bool boolean(bool) { return OnScalar("a boolean"); }
  bool number_integer(int64_t) { return OnScalar("a number"); }
  bool number_unsigned(uint64_t) { return OnScalar("a number"); }
  bool number_float(double, const std::string&) { return OnScalar("a number"); }
  bool binary(nlohmann::json::binary_t&) { return OnScalar("binary"); }
  bool string(std::string& value) { return InMap() ? AddPlace(value) : OnScalar("a string"); }
  bool start_object(size_t);
  bool key(std::string& key);
  bool end_object() { return Close(); }
  bool start_array(size_t) { return Open("an array"); }
  bool end_array() { return Close(); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    return Fail(MalformedFile(file_, fmt::format("is not valid JSON at byte {}", position)));
  }

 private:
  bool InMap() const { return in_map_ && depth_ == kMapDepth; }

  bool Fail(const Error& error) {
    if (!error_) error_ = error;
    return false;
  }
  bool WrongType(std::string_view kind);
  bool OnScalar(std::string_view kind) {
    return depth_ == 0 || InMap() || AtMap() ? WrongType(kind) : true;
  }
  // The value that follows is that of "weight_map".
  bool AtMap() const { return depth_ == 1 && key_ == kWeightMap; }
  bool Open(std::string_view kind);
  bool Close();
  bool AddPlace(const std::string& file);

  const std::string_view file_;
  CheckpointIndex index_;
  std::map<std::string, size_t, std::less<>> file_numbers_;
  std::optional<absl::Status> error_;
  std::string key_;
  int depth_ = 0;
  bool in_map_ = false;
  bool has_map_ = false;
};

bool IndexReader::WrongType(std::string_view kind) {
  if (InMap()) {
    return Fail(
        MalformedTensor(file_, key_, fmt::format("should be mapped to a file, found {}", kind))
            .With("expected", "a string")
            .With("actual", std::string(kind)));
  }
  const std::string what = depth_ == 0 ? "the index" : "weight_map";
  return Fail(MalformedFile(file_, fmt::format("{} should be an object, found {}", what, kind))
                  .With("expected", "an object")
                  .With("actual", std::string(kind)));
}

bool IndexReader::Open(std::string_view kind) {
  if (depth_ == 0 || InMap() || AtMap()) return WrongType(kind);
  if (++depth_ <= kMaxDepth) return true;
  return Fail(MalformedFile(file_, fmt::format("nests deeper than {} levels", kMaxDepth)));
}

bool IndexReader::Close() {
  if (InMap()) in_map_ = false;
  --depth_;
  return true;
}

bool IndexReader::start_object(size_t) {
  if (depth_ == 0) {
    depth_ = 1;
    return true;
  }
  if (!AtMap()) return Open("an object");
  if (has_map_) return Fail(MalformedFile(file_, "has weight_map twice"));
  has_map_ = true;
  in_map_ = true;
  depth_ = kMapDepth;
  return true;
}

bool IndexReader::key(std::string& key) {
  if (InMap() && key.size() > kMaxTensorNameBytes) {
    return Fail(MalformedTensor(
        file_, key,
        fmt::format("has a name of {} bytes, more than {}", key.size(), kMaxTensorNameBytes)));
  }
  if (depth_ <= kMapDepth) key_ = std::move(key);
  return true;
}

bool IndexReader::AddPlace(const std::string& file) {
  if (index_.places.size() >= kMaxCheckpointTensors) {
    return Fail(
        MalformedFile(file_, fmt::format("maps more than {} tensors", kMaxCheckpointTensors)));
  }
  const auto [found, is_new] = file_numbers_.try_emplace(file, index_.files.size());
  if (is_new) {
    if (index_.files.size() >= kMaxCheckpointShards) {
      return Fail(
          MalformedFile(file_, fmt::format("names more than {} files", kMaxCheckpointShards)));
    }
    index_.files.push_back(file);
  }
  index_.places.push_back({std::move(key_), found->second});
  return true;
}

absl::Status SortPlaces(std::string_view file, std::vector<CheckpointIndex::Place>& places) {
  const auto less = [](const auto& a, const auto& b) { return a.tensor < b.tensor; };
  std::sort(places.begin(), places.end(), less);
  const auto twin =
      std::adjacent_find(places.begin(), places.end(),
                         [](const auto& a, const auto& b) { return a.tensor == b.tensor; });
  if (twin == places.end()) return absl::OkStatus();
  return MalformedTensor(file, twin->tensor, "is mapped twice");
}

}  // namespace

absl::StatusOr<CheckpointIndex> ParseCheckpointIndex(std::string_view json,
                                                     std::string_view file_name) {
  // The JSON reader would take a NUL byte for the end.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return MalformedFile(file_name, fmt::format("has a NUL byte at {}", nul));
  }
  IndexReader reader(file_name);
  try {
    if (!nlohmann::json::sax_parse(json, &reader)) {
      return reader.error().value_or(MalformedFile(file_name, "is not valid JSON"));
    }
  } catch (const std::exception& error) {
    return MalformedFile(file_name, fmt::format("cannot be read: {}", Printable(error.what())));
  }
  CheckpointIndex index = std::move(reader.index());
  if (!reader.has_map()) return MalformedFile(file_name, "has no weight_map");
  if (index.places.empty()) return MalformedFile(file_name, "has an empty weight_map");
  RETURN_IF_ERROR(SortPlaces(file_name, index.places));
  return index;
}

}  // namespace adapterd
