#include "core/adapter/revision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/core/adapter/python_tables.h"

namespace adapterd {
namespace {

ContentDigest DigestOf(const std::string& source) {
  ProblemList problems;
  const auto reader = OpenerAt(ADAPTERD_FIXTURES)({source, ""}, problems);
  if (reader == nullptr) throw std::runtime_error(source + " does not open");
  ThreadPool pool("io", 1);
  return {reader->Read(pool, {}, nullptr, problems).value(), reader->WeightsDigest({}).value()};
}

// Digests computed by hashlib over the text that revision.h describes.
TEST(RevisionTest, LinesAreSortedBytewise) {
  EXPECT_EQ(RevisionBuilder().Finish(),
            "d00c509b17f74150095ee941a04650ffcc7bd5067a2b8f9204b3841a5850b348");
  // a.q TAB lora_a TAB c000000000000000 TAB F16 TAB 1x2x3 TAB cc LF, then a.q lora_b, then b.q.
  RevisionBuilder builder;
  builder.Add("b.q", "lora_a", 0.5, DType::kF32, std::vector<int64_t>{2, 3}, "aa");
  builder.Add("a.q", "lora_b", -2.0, DType::kBF16, std::vector<int64_t>{4}, "bb");
  builder.Add("a.q", "lora_a", -2.0, DType::kF16, std::vector<int64_t>{1, 2, 3}, "cc");
  EXPECT_EQ(builder.Finish(), "89602b598e139ce397a160fa8a821f006a801bb0517263b5596b5d6a5ea1668b");
}

TEST(RevisionTest, AgreesWithPython) {
  ASSERT_GE(python::kRevisions.size(), 6u);
  for (const auto& expected : python::kRevisions) {
    const ContentDigest digest = DigestOf("peft/cases/" + expected.folder);
    EXPECT_EQ(digest.revision, expected.revision) << expected.folder;
    EXPECT_EQ(digest.weights_sha256, expected.weights_sha256) << expected.folder;
  }
}

TEST(RevisionTest, PrefixesAndConfigStyleDoNotCount) {
  const ContentDigest plain = DigestOf("peft/cases/llama-qv");
  for (const char* same : {"ok-adapter-name-kept", "ok-compiled-prefix", "ok-minimal-config",
                           "ok-no-prefix", "ok-null-patterns", "ok-unknown-false-key"}) {
    EXPECT_EQ(DigestOf(std::string("peft/cases/") + same).revision, plain.revision) << same;
  }
  // The file's own digest tells them apart where the bytes differ.
  EXPECT_NE(DigestOf("peft/cases/ok-no-prefix").weights_sha256, plain.weights_sha256);
  EXPECT_EQ(DigestOf("peft/cases/ok-null-patterns").weights_sha256, plain.weights_sha256);
}

TEST(RevisionTest, WhatChangesTheResultChangesTheRevision) {
  const auto revision = [](const AdapterFolder::Keys& keys, int64_t rank, DType dtype) {
    AdapterFolder folder;
    folder.Config(keys).AddPair("m.0.q_proj", rank, 4, 4, dtype);
    return folder.Read(*folder.WriteAndOpen()).value();
  };
  const std::string plain = revision({}, 2, DType::kF32);
  EXPECT_EQ(revision({{"lora_alpha", "4.0"}}, 2, DType::kF32), plain);
  EXPECT_EQ(revision({{"base_model_name_or_path", "\"b\""}}, 2, DType::kF32), plain);
  EXPECT_NE(revision({{"lora_alpha", "5"}}, 2, DType::kF32), plain);
  EXPECT_NE(revision({{"use_rslora", "true"}}, 2, DType::kF32), plain);
  EXPECT_NE(revision({}, 2, DType::kF16), plain);
  EXPECT_NE(revision({}, 2, DType::kBF16), revision({}, 2, DType::kF16));
  EXPECT_NE(revision({{"r", "4"}, {"lora_alpha", "8"}}, 4, DType::kF32), plain);
}

}  // namespace
}  // namespace adapterd
