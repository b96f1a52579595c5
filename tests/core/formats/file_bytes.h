// Files of tests that need no disk.
#ifndef ADAPTERD_TESTS_CORE_FORMATS_FILE_BYTES_H_
#define ADAPTERD_TESTS_CORE_FORMATS_FILE_BYTES_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "core/formats/input_file.h"
#include "core/formats/safetensors.h"

namespace adapterd {

inline std::string LittleEndian64(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> 8 * i));
  return bytes;
}

// A safetensors file with a true length field.
inline std::string SafetensorsFile(std::string_view header, std::string_view data = {}) {
  return LittleEndian64(header.size()).append(header).append(data);
}

// An open file in memory that holds `bytes`.
inline InputFile FileOf(std::string_view bytes, std::string name = "adapter_model.safetensors") {
  const int fd = memfd_create("test", MFD_CLOEXEC);
  if (fd < 0 || write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    throw std::runtime_error("memfd");
  }
  return *InputFile::FromDescriptor(fd, std::move(name));
}

inline absl::StatusOr<SafetensorsHeader> ReadHeader(std::string_view bytes) {
  return ReadSafetensorsHeader(FileOf(bytes));
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_FORMATS_FILE_BYTES_H_
