// A server over adapters without files, for what does not depend on their weights.
#ifndef ADAPTERD_TESTS_SERVICE_FAKE_ADAPTERS_FIXTURE_H_
#define ADAPTERD_TESTS_SERVICE_FAKE_ADAPTERS_FIXTURE_H_

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/testing/fake_sources.h"
#include "tests/testing/rpc_matchers.h"
#include "tests/testing/test_server.h"

namespace adapterd {

class FakeAdaptersFixture : public ::testing::Test {
 protected:
  ~FakeAdaptersFixture() override { sources_.OpenAllGates(); }

  static TestServerOptions OptionsFor(FakeSources& sources) {
    TestServerOptions options;
    options.opener = sources.opener();
    options.keep_revisions = 2;
    return options;
  }

  // A source whose content is its own name, unless `text` says otherwise.
  void Put(const std::string& source, const std::string& text = "") {
    FakeContent content;
    content.text = text.empty() ? source : text;
    sources_.Put(source, content);
  }

  static std::string RevisionOf(const std::string& text) {
    FakeContent content;
    content.text = text;
    return DigestOf(content).revision;
  }

  // From a source of that content, in the place of what is there.
  v1::Adapter Load(const std::string& name, const std::string& content, const Labels& labels = {}) {
    Put(content);
    v1::LoadAdapterRequest request;
    request.set_name(name);
    request.set_source(content);
    request.set_replace(true);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    const auto reply = server_.Load(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply->adapter();
  }

  v1::Adapter Get(const std::string& name) {
    v1::GetAdapterRequest request;
    request.set_name(name);
    const auto reply = server_.Get(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply->adapter();
  }

  // Projects one row of ones through "name" or "name@alias".
  Reply<v1::ApplyProjectionResponse> Use(const std::string& name, const std::string& revision = "",
                                         bool skip_disabled = false) {
    v1::ApplyProjectionRequest request;
    request.mutable_adapter()->set_name(name);
    if (!revision.empty()) request.mutable_adapter()->set_revision(revision);
    request.set_skip_disabled(skip_disabled);
    request.add_projections()->mutable_module()->set_path(FakeModule().path);
    request.mutable_input()->add_shape(FakeModule().in_features);
    for (int i = 0; i < FakeModule().in_features; ++i) request.mutable_input()->add_f32_values(1);
    return server_.Apply(request);
  }

  std::string RevisionUsed(const std::string& name) {
    const auto reply = Use(name);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply->adapters_size() == 1 ? reply->adapters(0).revision() : "";
  }

  FakeSources sources_;
  TestServer server_{OptionsFor(sources_)};
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_SERVICE_FAKE_ADAPTERS_FIXTURE_H_
