#include <fmt/format.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "service/tensor_message.h"

namespace adapterd {
namespace {

using google::protobuf::internal::WireFormatLite;

constexpr int kMaxTagBytes = 5;
constexpr int kMaxVarintBytes = 10;
// A length as a varint of a fixed width, so that it can be filled in later.
constexpr size_t kLengthBytes = 5;

// Reads the slices of a buffer one after the other.
class SliceReader {
 public:
  explicit SliceReader(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
  }

  size_t left() const { return left_; }

  // REQUIRES: size <= left().
  void Read(void* to, size_t size) {
    left_ -= size;
    for (auto* out = static_cast<uint8_t*>(to); size > 0;) {
      const grpc::Slice& slice = slices_[index_];
      const size_t part = std::min(size, slice.size() - offset_);
      std::memcpy(out, slice.begin() + offset_, part);
      out += part;
      size -= part;
      offset_ += part;
      if (offset_ < slice.size()) continue;
      ++index_;
      offset_ = 0;
    }
  }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  size_t offset_ = 0;
  size_t left_ = 0;
};

// Copies a message field by field, with tickets in place of tensors' bytes. All but those is judged
// by the generated parser afterwards; this one fails only where it cannot go on.
class Splitter {
 public:
  Splitter(SliceReader& in, BufferPool& pool, TensorPayloads& payloads)
      : in_(in), pool_(pool), payloads_(payloads) {}

  // The fields of a message that ends where `end` bytes are left. False: malformed.
  bool CopyFields(const TensorFields& fields, size_t end) {
    while (in_.left() > end) {
      const std::optional<uint64_t> tag = CopyVarint(end, kMaxTagBytes);
      if (!tag || !CopyField(static_cast<uint32_t>(*tag), &fields, end)) return false;
    }
    return true;
  }

  const std::string& out() const { return out_; }

 private:
  // What follows a tag. Without `fields` nothing is looked into.
  bool CopyField(uint32_t tag, const TensorFields* fields, size_t end) {
    switch (WireFormatLite::GetTagWireType(tag)) {
      case WireFormatLite::WIRETYPE_VARINT:
        return CopyVarint(end, kMaxVarintBytes).has_value();
      case WireFormatLite::WIRETYPE_FIXED64:
        return Copy(8, end);
      case WireFormatLite::WIRETYPE_FIXED32:
        return Copy(4, end);
      case WireFormatLite::WIRETYPE_START_GROUP:
        return CopyGroup(end);
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        return CopyDelimited(WireFormatLite::GetTagFieldNumber(tag), fields, end);
      default:  // the end of a group that did not begin, or no wire type at all
        return false;
    }
  }

  bool CopyDelimited(int number, const TensorFields* fields, size_t end) {
    const size_t length_at = out_.size();
    const std::optional<uint64_t> length = CopyVarint(end, kLengthBytes);
    if (!length || *length > in_.left() - end) return false;
    const TensorFields* below = fields == nullptr ? nullptr : fields->Find(number);
    if (below != nullptr) {
      out_.resize(length_at + kLengthBytes);
      if (!CopyFields(*below, in_.left() - *length)) return false;
      SetLength(length_at, out_.size() - length_at - kLengthBytes);
      return true;
    }
    if (fields == nullptr || !fields->IsData(number) || *length == 0) return Copy(*length, end);
    PooledBuffer payload = pool_.Take(*length);
    in_.Read(payload.data(), *length);
    const std::string ticket = payloads_.Add(std::move(payload));
    out_.resize(length_at);
    out_.push_back(static_cast<char>(ticket.size()));
    out_ += ticket;
    return true;
  }

  // Fields up to the end of the group that was just begun. That ends agree with beginnings, and how
  // deep they lie, is for the generated parser to judge.
  bool CopyGroup(size_t end) {
    for (int depth = 1; depth > 0;) {
      const std::optional<uint64_t> read = CopyVarint(end, kMaxTagBytes);
      if (!read) return false;
      const auto tag = static_cast<uint32_t>(*read);
      const auto type = WireFormatLite::GetTagWireType(tag);
      if (type == WireFormatLite::WIRETYPE_START_GROUP) {
        ++depth;
      } else if (type == WireFormatLite::WIRETYPE_END_GROUP) {
        --depth;
      } else if (!CopyField(tag, nullptr, end)) {
        return false;
      }
    }
    return true;
  }

  bool Copy(size_t size, size_t end) {
    if (size > in_.left() - end) return false;
    const size_t at = out_.size();
    out_.resize(at + size);
    in_.Read(out_.data() + at, size);
    return true;
  }

  std::optional<uint64_t> CopyVarint(size_t end, int max_bytes) {
    uint64_t value = 0;
    for (int i = 0; i < max_bytes; ++i) {
      if (!Copy(1, end)) return std::nullopt;
      const auto byte = static_cast<uint8_t>(out_.back());
      value |= uint64_t{byte & 0x7fu} << (7 * i);
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  void SetLength(size_t at, size_t length) {
    for (size_t i = 0; i + 1 < kLengthBytes; ++i) {
      out_[at + i] = static_cast<char>((length >> (7 * i) & 0x7f) | 0x80);
    }
    out_[at + kLengthBytes - 1] = static_cast<char>(length >> 28);
  }

  SliceReader& in_;
  BufferPool& pool_;
  TensorPayloads& payloads_;
  std::string out_;
};

}  // namespace

absl::Status SplitMessage(const grpc::ByteBuffer& bytes, const TensorFields& fields,
                          BufferPool& pool, google::protobuf::Message& message,
                          TensorPayloads& payloads) {
  std::vector<grpc::Slice> slices;
  bool ok = bytes.Dump(&slices).ok();
  if (ok) {
    SliceReader reader(slices);
    Splitter splitter(reader, pool, payloads);
    ok = splitter.CopyFields(fields, 0) && message.ParseFromString(splitter.out());
  }
  if (ok) return absl::OkStatus();
  return Error(Reason::kInvalidField,
               fmt::format("the request is not a valid {}", message.GetDescriptor()->name()));
}

}  // namespace adapterd
