#include "core/formats/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "core/base/checked_math.h"
#include "core/formats/safetensors_json.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kFileName = "adapter_model.safetensors";
constexpr size_t kLengthBytes = 8;
constexpr std::string_view kRoundTrip = "accepted, written and read again";
constexpr std::string_view kFitted = "accepted with data that fit";

constexpr DeepCheck kDeepChecks[] = {
    {kRoundTrip, ""},
    {kFitted, ""},
    {"name declared twice", "is declared twice"},
    {"overlap", "(overlap)"},
    {"hole", "(hole)"},
    {"size of shape and dtype", "data_offsets give it"},
    {"element count overflows", "overflows"},
    {"sub-byte elements fill whole bytes", "whole bytes"},
    {"truncated data", "truncated: the tensors take"},
    {"bytes left over", "bytes left over"},
    {"offsets end before they begin", "end before they begin"},
    {"unknown dtype", "unknown dtype"},
    {"number of dimensions", "dimensions"},
    {"metadata key twice", "metadata has"},
    {"header length beyond the file", "only"},
    {"header length beyond the limit", "more than the 100000000 allowed"},
    {"Git LFS pointer", "Git LFS pointer"},
    {"pickle", "a pickle"},
    {"zip archive", "a zip archive"},
};

// A file in memory alone.
InputFile MakeFile(std::string_view content) {
  const int fd = memfd_create("weights", MFD_CLOEXEC);
  Require(fd >= 0, "a file in memory can be made");
  const ssize_t written = write(fd, content.data(), content.size());
  Require(written == static_cast<ssize_t>(content.size()), "a file in memory can be written");
  auto file = InputFile::FromDescriptor(fd, std::string(kFileName));
  Require(file.ok(), "a file in memory can be opened");
  return *std::move(file);
}

void RequireLayout(const SafetensorsHeader& header, int64_t file_bytes) {
  int64_t end = header.tensors.empty() ? file_bytes : header.tensors.front().offset;
  Require(end >= 8, "data lie behind the header");
  for (const SafetensorsEntry& tensor : header.tensors) {
    Require(tensor.offset == end, "tensors lie end to end");
    const auto bytes = ByteCount(tensor.dtype, tensor.shape);
    Require(bytes.ok() && *bytes == tensor.bytes, "bytes are shape x dtype");
    end += tensor.bytes;
  }
  Require(end == file_bytes, "tensors fill the file");
}

struct Content {
  DType dtype;
  Shape shape;
  std::string_view bytes;

  bool operator==(const Content&) const = default;
};

std::map<std::string, Content> ContentOf(const SafetensorsHeader& header, std::string_view file) {
  std::map<std::string, Content> content;
  for (const SafetensorsEntry& tensor : header.tensors) {
    const std::string_view bytes = file.substr(tensor.offset, tensor.bytes);
    const bool is_new =
        content.emplace(tensor.name, Content{tensor.dtype, tensor.shape, bytes}).second;
    Require(is_new, "names differ");
  }
  return content;
}

std::string WriteAgain(const std::map<std::string, Content>& content,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsTensor> tensors;
  tensors.reserve(content.size());
  for (const auto& [name, tensor] : content) {
    tensors.push_back({name, tensor.dtype, tensor.shape, std::as_bytes(std::span(tensor.bytes))});
  }
  const auto file = SerializeSafetensors(std::move(tensors), metadata);
  Require(file.ok(), "the writer takes what the reader accepted");
  return *file;
}

// The same header in front of as many data as its tensors take, and of as many as they reach to: a
// mutation of an offset would hardly ever come with the data that go with it.
void FitData(std::string_view input) {
  if (input.size() < kLengthBytes) return;
  const std::string_view json = input.substr(kLengthBytes);
  const size_t end = json.rfind('}');
  const auto table = ParseSafetensorsJson(json.substr(0, end + 1), kFileName);
  if (end == std::string_view::npos || !table.ok()) return;
  int64_t sum = 0;
  int64_t reach = 0;
  for (const SafetensorsEntry& tensor : table->tensors) {
    sum = CheckedAdd(sum, tensor.bytes).value_or(0);
    reach = std::max(reach, tensor.offset + tensor.bytes);
  }
  for (const int64_t data_bytes : {sum, reach}) {
    const auto file_bytes = CheckedAdd(data_bytes, static_cast<int64_t>(kLengthBytes + end + 1));
    if (!file_bytes) continue;
    const auto header = ParseSafetensorsHeader(json.substr(0, end + 1), *file_bytes, kFileName);
    if (header.ok()) {
      RequireLayout(*header, *file_bytes);
      Note(SafetensorsTarget(), kFitted);
    } else {
      RequireGoodError(SafetensorsTarget(), header.status(),
                       {Reason::kMalformedTensorFile, Reason::kUnsupportedDtype});
    }
  }
}

void Run(std::string_view input) {
  FitData(input);
  const auto header = ReadSafetensorsHeader(MakeFile(input));
  if (!header.ok()) {
    return RequireGoodError(
        SafetensorsTarget(), header.status(),
        {Reason::kMalformedTensorFile, Reason::kUnsupportedDtype, Reason::kUnsafeFormat});
  }
  RequireLayout(*header, static_cast<int64_t>(input.size()));
  const auto content = ContentOf(*header, input);
  const std::string written = WriteAgain(content, header->metadata);
  const auto again = ReadSafetensorsHeader(MakeFile(written));
  Require(again.ok(), "the reader accepts what the writer wrote");
  RequireLayout(*again, static_cast<int64_t>(written.size()));
  Require(ContentOf(*again, written) == content, "every tensor comes back as it was");
  Require(again->metadata == header->metadata, "the metadata come back as they were");
  Require(WriteAgain(content, again->metadata) == written, "writing is deterministic");
  for (const size_t length : {input.size() - 1, size_t{8}}) {
    Require(!ReadSafetensorsHeader(MakeFile(input.substr(0, length))).ok(), "a cut is noticed");
  }
  if (!content.empty()) Note(SafetensorsTarget(), kRoundTrip);
}

}  // namespace

const Target& SafetensorsTarget() {
  static constexpr Target kTarget = {"safetensors", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
