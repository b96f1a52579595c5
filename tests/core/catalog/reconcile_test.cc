// The plan that makes what is loaded equal to what is desired.
#include "core/catalog/reconcile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/base/error.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr ReconcileAction kLoad = ReconcileAction::kLoad;
constexpr ReconcileAction kReplace = ReconcileAction::kReplace;
constexpr ReconcileAction kUnload = ReconcileAction::kUnload;
constexpr ReconcileAction kUnchanged = ReconcileAction::kUnchanged;
constexpr ReconcileAction kConflict = ReconcileAction::kConflict;

LoadRequest Desired(const std::string& name = "a") {
  LoadRequest load;
  load.name = name;
  load.source = {"source", "base", "checkpoint"};
  load.labels = {{"team", "red"}};
  return load;
}

// What is there once Desired(name) was loaded.
AdapterSnapshot Loaded(const std::string& name = "a") {
  AdapterSnapshot adapter;
  adapter.name = name;
  adapter.state = AdapterState::kReady;
  adapter.source_spec = Desired().source;
  adapter.labels = Desired().labels;
  adapter.digest = {"revision", "sha256"};
  return adapter;
}

struct Difference {
  const char* what;
  ReconcileAction action;
  std::function<void(LoadRequest&, AdapterSnapshot&)> make;
};

TEST(ReconcileTest, WhatIsThereIsHeldAgainstItsSpec) {
  const Difference cases[] = {
      {"as desired", kUnchanged, [](auto&, auto&) {}},
      {"as desired", kUnchanged, [](auto& d, auto&) { d.expected_digest = "revision"; }},
      {"as desired", kUnchanged, [](auto& d, auto&) { d.expected_digest = "sha256"; }},
      {"as desired", kUnchanged, [](auto&, auto& a) { a.state = AdapterState::kEvicted; }},
      {"as desired", kUnchanged, [](auto&, auto& a) { a.enabled = false; }},
      {"as desired", kUnchanged, [](auto& d, auto& a) { d.pinned = a.pinned = true; }},
      {"another expected_digest", kReplace, [](auto& d, auto&) { d.expected_digest = "other"; }},
      {"another expected_digest", kReplace,
       [](auto& d, auto& a) {
         d.expected_digest = "sha256";
         a.digest.weights_sha256 = "";  // not known
       }},
      {"another source", kReplace, [](auto& d, auto&) { d.source.source = "other"; }},
      {"another source", kReplace,
       [](auto&, auto& a) {
         a.source_spec = {"", "base", "checkpoint", "stored"};
       }},
      {"another base_model", kReplace, [](auto& d, auto&) { d.source.base_model = "other"; }},
      {"another hosted_base", kReplace, [](auto& d, auto&) { d.source.hosted_base = "other"; }},
      {"another head_counts", kReplace,
       [](auto& d, auto&) {
         d.source.head_counts = HeadCounts{4, 2};
       }},
      {"another base_checkpoint", kReplace,
       [](auto& d, auto&) { d.source.base_checkpoint = "other"; }},
      {"another pinned", kReplace, [](auto& d, auto&) { d.pinned = true; }},
      {"another pinned", kReplace, [](auto&, auto& a) { a.pinned = true; }},
      {"another labels", kReplace, [](auto& d, auto&) { d.labels["team"] = "blue"; }},
      {"another labels", kReplace, [](auto& d, auto&) { d.labels.clear(); }},
      {"another source, labels", kReplace,
       [](auto& d, auto& a) {
         d.source.source = "other";
         a.labels["more"] = "";
       }},
      {"failed with SOURCE_CHANGED", kReplace,
       [](auto&, auto& a) {
         a.state = AdapterState::kFailed;
         a.error = Error(Reason::kSourceChanged, "it changed");
       }},
      {"is being loaded", kLoad, [](auto&, auto& a) { a.state = AdapterState::kLoading; }},
      {"a watched folder has brought it", kConflict,
       [](auto&, auto& a) { a.owner = AdapterOwner::kFolder; }},
      {"a watched folder has brought it", kConflict,
       [](auto& d, auto& a) {
         a.owner = AdapterOwner::kFolder;
         d.source.source = "other";
       }},
  };
  for (const Difference& difference : cases) {
    SCOPED_TRACE(difference.what);
    LoadRequest desired = Desired();
    AdapterSnapshot found = Loaded();
    difference.make(desired, found);
    for (const bool prune : {false, true}) {
      const std::vector<ReconcileStep> steps = PlanReconcile({desired}, {found}, prune);
      ASSERT_THAT(steps, SizeIs(1));
      EXPECT_EQ(steps[0].name, "a");
      EXPECT_EQ(steps[0].action, difference.action);
      EXPECT_EQ(steps[0].reason, difference.what);
      EXPECT_FALSE(steps[0].unload);
      const bool loads = difference.action == kReplace || difference.action == kLoad;
      ASSERT_EQ(steps[0].load.has_value(), loads);
      if (!loads) continue;
      desired.replace = true;  // of what is there
      EXPECT_EQ(*steps[0].load, desired);
    }
  }
}

TEST(ReconcileTest, WhatIsMissingIsLoadedAndTakesNobodysPlace) {
  const std::vector<ReconcileStep> steps = PlanReconcile({Desired("b")}, {Loaded("a")}, false);
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_EQ(steps[0].action, kLoad);
  EXPECT_EQ(steps[0].reason, "not loaded");
  EXPECT_EQ(*steps[0].load, Desired("b"));
  EXPECT_FALSE(steps[0].load->replace);
}

TEST(ReconcileTest, PruningUnloadsWhatClientsLoadedAndNobodyPinned) {
  std::vector<AdapterSnapshot> current = {Loaded("a"), Loaded("folder"), Loaded("pinned")};
  current[1].owner = AdapterOwner::kFolder;
  current[2].pinned = true;
  EXPECT_THAT(PlanReconcile({}, current, false), IsEmpty());
  const std::vector<ReconcileStep> steps = PlanReconcile({}, current, true);
  ASSERT_THAT(steps, SizeIs(2));
  EXPECT_EQ(steps[0].name, "a");
  EXPECT_EQ(steps[0].action, kUnload);
  EXPECT_EQ(steps[0].unload->name, "a");
  EXPECT_EQ(steps[0].unload->revision, "revision");
  EXPECT_FALSE(steps[0].unload->force);
  EXPECT_TRUE(steps[0].unload->wait);
  EXPECT_EQ(steps[1].name, "pinned");
  EXPECT_EQ(steps[1].action, kConflict);
  EXPECT_THAT(steps[1].reason, HasSubstr("pinned"));
  EXPECT_FALSE(steps[1].unload);
}

TEST(ReconcileTest, ThePlanIsByName) {
  std::vector<std::string> names;
  for (const ReconcileStep& step : PlanReconcile({Desired("d"), Desired("a"), Desired("c")},
                                                 {Loaded("b"), Loaded("c")}, true)) {
    names.push_back(step.name);
  }
  EXPECT_THAT(names, ElementsAre("a", "b", "c", "d"));
}

TEST(ReconcileTest, NothingDesiredAndNothingThereIsAnEmptyPlan) {
  EXPECT_THAT(PlanReconcile({}, {}, true), IsEmpty());
}

}  // namespace
}  // namespace adapterd
