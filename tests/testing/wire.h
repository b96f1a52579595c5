// Protobuf's wire format, written by hand (protobuf.dev/programming-guides/encoding), and gRPC's
// buffers. Any thread.
#ifndef ADAPTERD_TESTS_TESTING_WIRE_H_
#define ADAPTERD_TESTS_TESTING_WIRE_H_

#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace adapterd::wire {

enum Type { kVarint = 0, kFixed64 = 1, kBytes = 2, kStart = 3, kEnd = 4, kFixed32 = 5 };

// With zeros on top, as no serializer writes it, when it takes less than `bytes` bytes.
inline std::string Varint(uint64_t value, size_t bytes = 1) {
  std::string text;
  for (; value >= 0x80 || text.size() + 1 < bytes; value >>= 7) {
    text.push_back(static_cast<char>(value | 0x80));
  }
  text.push_back(static_cast<char>(value));
  return text;
}

inline std::string Tag(int number, Type type, size_t bytes = 1) {
  return Varint(static_cast<uint64_t>(number) << 3 | type, bytes);
}

inline std::string Int(int number, uint64_t value) { return Tag(number, kVarint) + Varint(value); }

inline std::string Fixed32(int number) { return Tag(number, kFixed32) + "abcd"; }
inline std::string Fixed64(int number) { return Tag(number, kFixed64) + "abcdefgh"; }

// A string, bytes, a message or packed numbers.
inline std::string Bytes(int number, std::string_view content) {
  std::string text = Tag(number, kBytes);
  text += Varint(content.size());
  return text += content;
}

inline std::string Group(int number, std::string_view content) {
  std::string text = Tag(number, kStart);
  text += content;
  return text += Tag(number, kEnd);
}

// As it might come over the wire: in pieces of `piece` bytes, the first one of `first`.
inline grpc::ByteBuffer InPieces(std::string_view bytes, size_t first, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t length = first; !bytes.empty(); length = piece) {
    length = std::min(length, bytes.size());
    slices.emplace_back(bytes.data(), length);
    bytes.remove_prefix(length);
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

inline grpc::ByteBuffer InOnePiece(std::string_view bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size());
  return grpc::ByteBuffer(&slice, 1);
}

inline std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace adapterd::wire

#endif  // ADAPTERD_TESTS_TESTING_WIRE_H_
