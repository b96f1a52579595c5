// What /metrics says after known traffic.
#include "service/metrics.h"

#include <fmt/format.h>

#include <set>

#include "tests/service/projection_fixture.h"
#include "tests/testing/fake_sources.h"
#include "tests/testing/pending.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

class MetricsTest : public ProjectionFixture {
 protected:
  grpc::Status Apply(const std::string& name, int64_t rows) {
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, {rows, kIn}, Input(DType::kF32, rows));
    *request.mutable_adapter() = Ref(name);
    AddPath(request, kQ0);
    return server_.Apply(request).status;
  }

  static std::string Handled(const std::string& service, const std::string& method,
                             const std::string& code) {
    return "grpc_server_handled_total{grpc_code=\"" + code + "\",grpc_method=\"" + method +
           "\",grpc_service=\"adapterd.v1." + service + "\"}";
  }
};

TEST_F(MetricsTest, KnownTrafficGivesKnownNumbers) {
  LoadAs("x", PeftBuilder(1).Add(kQ0, 2, kIn, kOut));
  LoadAs("y", PeftBuilder(2).Add(kQ0, 3, kIn, kOut));
  EXPECT_THAT(server_.Load("x", "x").status, IsRpcOk());
  EXPECT_FALSE(server_.Load("z", "nowhere").status.ok());
  for (int i = 0; i < 3; ++i) EXPECT_THAT(Apply("x", 5), IsRpcOk());
  EXPECT_THAT(Apply("nobody", 7), IsRpcError(Reason::kAdapterNotFound));
  v1::MergeRequest merge;
  *merge.mutable_weight() =
      DataTensor(DType::kBF16, {kOut, kIn}, std::vector<float>(kOut * kIn, 1));
  merge.mutable_module()->set_path(kQ0);
  *merge.add_adapters() = Ref("y");
  EXPECT_THAT(server_.Merge(merge).status, IsRpcOk());

  const std::pair<std::string, double> expected[] = {
      {"adapterd_adapters{state=\"ready\"}", 2},
      {"adapterd_adapters{state=\"loading\"}", 0},
      {"adapterd_adapters{state=\"evicted\"}", 0},
      {"adapterd_adapters{state=\"failed\"}", 0},
      {"adapterd_adapter_memory_bytes{adapter=\"x\"}",
       static_cast<double>(server_.registry().Get("x")->memory_bytes)},
      {"adapterd_memory_bytes{kind=\"adapters\"}", static_cast<double>(server_.used_bytes())},
      {"adapterd_memory_budget_bytes", static_cast<double>(int64_t{1} << 30)},
      {"adapterd_loads_total{result=\"loaded\"}", 2},
      {"adapterd_loads_total{result=\"unchanged\"}", 1},
      {"adapterd_loads_total{result=\"SOURCE_NOT_FOUND\"}", 1},
      {"adapterd_load_duration_seconds_count", 2},
      {"adapterd_evictions_total", 0},
      {"adapterd_apply_requests_total{adapter=\"x\"}", 3},
      {"adapterd_apply_rows_total", 15},
      {"adapterd_apply_stage_seconds_count{stage=\"queue\"}", 3},
      {"adapterd_apply_stage_seconds_count{stage=\"parse\"}", 3},
      {"adapterd_apply_stage_seconds_count{stage=\"compute\"}", 3},
      {"adapterd_apply_stage_seconds_count{stage=\"serialize\"}", 3},
      {"adapterd_merge_duration_seconds_count", 1},
      {"adapterd_merge_bytes_total", static_cast<double>(kOut * kIn * 2)},
      {"adapterd_inflight_bytes", 0},
      {"adapterd_queue_length", 0},
      {"adapterd_rejected_total{reason=\"ADAPTER_NOT_FOUND\"}", 1},
      {"adapterd_rejected_total{reason=\"SOURCE_NOT_FOUND\"}", 1},
      {Handled("ProjectionService", "ApplyProjection", "OK"), 3},
      {Handled("ProjectionService", "ApplyProjection", "NotFound"), 1},
      {Handled("AdapterService", "LoadAdapter", "OK"), 3},
      {Handled("AdapterService", "LoadAdapter", "NotFound"), 1},
      {Handled("MergeService", "Merge", "OK"), 1},
      {"grpc_server_handling_seconds_count{grpc_method=\"Merge\",grpc_service=\"adapterd.v1."
       "MergeService\"}",
       1},
      {"grpc_server_started_total{grpc_method=\"LoadAdapter\",grpc_service=\"adapterd.v1."
       "AdapterService\"}",
       4},
  };
  for (const auto& [series, value] : expected) EXPECT_EQ(server_.Metric(series), value) << series;
  const std::string text = server_.MetricsText();
  EXPECT_THAT(text, HasSubstr("adapterd_build_info{"));
  EXPECT_GT(server_.Metric("process_resident_memory_bytes"), 1e6);
  EXPECT_GT(server_.Metric("process_start_time_seconds"), 1e9);
  EXPECT_GT(server_.Metric("process_open_fds"), 2);
  EXPECT_GE(server_.Metric("process_cpu_seconds_total"), 0);
  EXPECT_GE(server_.Metric("process_threads"), 2);
  EXPECT_GE(server_.Metric("process_max_fds"), 64);
}

TEST_F(MetricsTest, NoFamilyOrSeriesComesTwice) {
  LoadAs("x", PeftBuilder(1).Add(kQ0, 2, kIn, kOut));
  std::set<std::string> seen;
  for (const absl::string_view line : absl::StrSplit(server_.MetricsText(), '\n')) {
    if (line.empty() || line.substr(0, 6) == "# HELP") continue;
    const std::string key(line.substr(0, line.rfind(' ')));
    EXPECT_TRUE(seen.insert(key).second) << key;
  }
  EXPECT_GT(seen.size(), 50u);
}

TEST_F(MetricsTest, AnAdapterThatIsUnloadedLeavesNoSeries) {
  LoadAs("x", PeftBuilder(1).Add(kQ0, 2, kIn, kOut));
  EXPECT_THAT(server_.MetricsText(), HasSubstr("adapter=\"x\""));
  ASSERT_THAT(server_.Unload("x").status, IsRpcOk());
  EXPECT_THAT(server_.MetricsText(), ::testing::Not(HasSubstr("adapter=\"")));
}

// A registry with `count` fake adapters a1, a2, ... of growing size, and one of each name in
// `more`.
class CollectorsTest : public ::testing::Test {
 protected:
  CollectorsTest()
      : io_pool_("io", 4),
        registry_({}, kernels_, sources_.opener(), MemoryBudget::Create(1 << 30), io_pool_) {}

  void Load(const std::string& name, int64_t width) {
    FakeContent content;
    content.text = name;  // equal content would share its memory
    content.modules[0].out_features = width;
    sources_.Put(name, content);
    LoadRequest request;
    request.name = name;
    request.source.source = name;
    Pending<LoadResult> pending;
    registry_.Load(std::move(request), pending.Callback());
    ASSERT_THAT(pending.Wait(), IsOk());
  }

  // Label and value of each series of a family.
  std::vector<std::pair<std::string, double>> Series(const std::string& name) const {
    std::vector<std::pair<std::string, double>> series;
    for (const prometheus::MetricFamily& family : CollectAdapters(registry_)) {
      if (family.name != name) continue;
      for (const prometheus::ClientMetric& metric : family.metric) {
        series.emplace_back(metric.label.at(0).value, metric.gauge.value);
      }
    }
    return series;
  }

  FakeSources sources_;
  Kernels kernels_;
  ThreadPool io_pool_;
  AdapterRegistry registry_;
};

TEST_F(CollectorsTest, SeriesWithNamesAreCapped) {
  constexpr int kCount = 230;
  for (int i = 1; i <= kCount; ++i) Load(fmt::format("a{}", i), i);
  const auto series = Series("adapterd_adapter_memory_bytes");
  ASSERT_EQ(series.size(), kMaxAdapterSeries + 1);
  EXPECT_EQ(series.front().first, "a230");
  EXPECT_EQ(series.back().first, "other");
  double sum = 0;
  std::set<std::string> names;
  for (const auto& [name, value] : series) {
    sum += value;
    EXPECT_TRUE(names.insert(name).second) << name;
  }
  EXPECT_EQ(sum, static_cast<double>(registry_.budget().used()));
  EXPECT_EQ(names.count("a31"), 1u);
  EXPECT_EQ(names.count("a30"), 0u);  // the smallest 30 are summed
}

TEST_F(CollectorsTest, AtTheCapNothingIsSummed) {
  for (size_t i = 0; i < kMaxAdapterSeries; ++i) Load(fmt::format("a{}", i), 4);
  const auto series = Series("adapterd_adapter_memory_bytes");
  EXPECT_EQ(series.size(), kMaxAdapterSeries);
  for (const auto& [name, value] : series) EXPECT_NE(name, "other");
}

TEST_F(CollectorsTest, AnAdapterThatIsCalledOtherDoesNotMakeASecondSeries) {
  for (size_t i = 0; i < kMaxAdapterSeries + 5; ++i) Load(fmt::format("a{}", i), 4);
  Load("other", 1000);
  const auto series = Series("adapterd_adapter_memory_bytes");
  EXPECT_EQ(std::count_if(series.begin(), series.end(),
                          [](const auto& one) { return one.first == "other"; }),
            1);
  double sum = 0;
  for (const auto& [name, value] : series) sum += value;
  EXPECT_EQ(sum, static_cast<double>(registry_.budget().used()));
}

TEST(MetricsTotalsTest, AnswersAreCountedByMethodErrorAndLatency) {
  Metrics metrics;
  RpcMetrics& rpc = metrics.Rpc("service", "b");
  metrics.Rpc("service", "a");
  for (int i = 0; i < 2; ++i) rpc.Handled(absl::StatusCode::kOk, absl::Milliseconds(1));
  rpc.Handled(absl::StatusCode::kNotFound, absl::Seconds(70));
  const std::vector<RpcTotals> totals = metrics.Totals();
  ASSERT_EQ(totals.size(), 2u);
  EXPECT_EQ(totals[0].method, "a");
  EXPECT_EQ(totals[0].count, 0);
  EXPECT_EQ(totals[1].method, "b");
  EXPECT_EQ(totals[1].count, 3);
  EXPECT_EQ(totals[1].errors, 1);
  const std::vector<double>& bounds = Metrics::LatencyBounds();
  ASSERT_EQ(totals[1].buckets.size(), bounds.size() + 1);
  for (size_t i = 0; i < bounds.size(); ++i) {
    EXPECT_EQ(totals[1].buckets[i], bounds[i] < 0.001 ? 0 : 2) << bounds[i];
  }
  EXPECT_EQ(totals[1].buckets.back(), 3);
}

TEST(MetricsNamesTest, CodesAreWrittenAsGrpcMiddlewareWritesThem) {
  EXPECT_EQ(CodeLabel(absl::StatusCode::kOk), "OK");
  EXPECT_EQ(CodeLabel(absl::StatusCode::kCancelled), "Canceled");
  EXPECT_EQ(CodeLabel(absl::StatusCode::kInvalidArgument), "InvalidArgument");
  EXPECT_EQ(CodeLabel(absl::StatusCode::kResourceExhausted), "ResourceExhausted");
  EXPECT_EQ(CodeLabel(absl::StatusCode::kDeadlineExceeded), "DeadlineExceeded");
  EXPECT_EQ(CodeLabel(absl::StatusCode::kInternal), "Internal");
}

}  // namespace
}  // namespace adapterd
