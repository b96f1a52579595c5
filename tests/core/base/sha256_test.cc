#include "core/base/sha256.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace adapterd {
namespace {

std::string HexOf(std::string_view text) {
  Sha256 digest;
  digest.Update(text);
  return digest.FinishHex();
}

// FIPS 180-4, the examples that NIST publishes with it.
TEST(Sha256Test, KnownVectors) {
  EXPECT_EQ(HexOf(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(HexOf("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(HexOf("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(HexOf(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesGiveTheSameDigestAsTheWhole) {
  const std::string text(1000, 'x');
  for (size_t piece : {1, 7, 63, 64, 65, 999}) {
    Sha256 digest;
    for (size_t begin = 0; begin < text.size(); begin += piece) {
      const std::string part = text.substr(begin, piece);
      digest.Update(std::as_bytes(std::span(part)));
    }
    EXPECT_EQ(digest.FinishHex(), HexOf(text)) << piece;
  }
}

TEST(Sha256Test, MovesItsState) {
  Sha256 first;
  first.Update("a");
  Sha256 second = std::move(first);
  second.Update("bc");
  EXPECT_EQ(second.FinishHex(), HexOf("abc"));
}

}  // namespace
}  // namespace adapterd
