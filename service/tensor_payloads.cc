#include "service/tensor_payloads.h"

#include <cstdint>
#include <cstring>
#include <utility>

namespace adapterd {
namespace {

using Ticket = uint32_t;  // the index; small enough to cost a string no allocation

size_t IndexOf(std::string_view data) {
  Ticket ticket = 0;
  std::memcpy(&ticket, data.data(), sizeof(ticket));
  return ticket;
}

}  // namespace

std::string TensorPayloads::Add(PooledBuffer bytes) {
  const auto ticket = static_cast<Ticket>(buffers_.size());
  buffers_.push_back(std::move(bytes));
  return std::string(reinterpret_cast<const char*>(&ticket), sizeof(ticket));
}

std::span<std::byte> TensorPayloads::Find(std::string_view data) {
  if (data.empty()) return {};
  PooledBuffer& buffer = buffers_.at(IndexOf(data));
  return {buffer.data(), buffer.size()};
}

std::span<const std::byte> TensorPayloads::Find(std::string_view data) const {
  if (data.empty()) return {};
  return buffers_.at(IndexOf(data)).span();
}

PooledBuffer TensorPayloads::Release(std::string_view data) {
  return std::move(buffers_.at(IndexOf(data)));
}

}  // namespace adapterd
