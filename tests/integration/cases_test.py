"""Every adapter in the fixtures loads and computes what PEFT computed, or is refused for the reason
that cases_table.py says. Everything goes through gRPC; a folder without an entry fails."""
import json
import sys
import unittest
from collections import Counter

import grpc

from case_files import Case
from cases_table import EITHER, LOAD, entries, root_flags, source, unlisted
from harness import FULL, ServerTest, failure_of, fixtures
from module_checks import ModuleCheck, check_replacement
from adapterd.v1 import adapter_pb2, tensor_pb2


class CasesTest(ServerTest):
    @classmethod
    def setUpClass(cls):
        cls.covered = []  # lines of the report

    @classmethod
    def tearDownClass(cls):
        print("\n".join(["", f"{'fixture':42} {'outcome':38} what was checked"] +
                        sorted(cls.covered)), flush=True)

    def setUp(self):
        self.models = self.folder()
        self.server = self.start(*root_flags(), f"--model-root=bases={self.models}")
        self.client = self.server.client

    def note(self, kind, name, outcome, what):
        self.covered.append(f"{kind + '/' + name:42} {outcome:38} {what}")

    def checkpoint(self, case):
        """The source of the case's base, in the dtype of the case."""
        folder = self.models / case.checkpoint
        if not folder.exists():
            case.base.write(folder)
        return f"bases:{case.checkpoint}"

    def test_every_folder_has_an_entry_and_every_entry_a_folder(self):
        self.assertEqual(unlisted(), [])

    def test_the_table_agrees_with_what_peft_says_of_each_case(self):
        for kind, name, expectation in entries(kind="peft/cases"):
            case = json.loads((fixtures(kind) / name / "case.json").read_text())
            expected = "load" if expectation == LOAD else "refuse"
            if name not in EITHER:
                self.assertEqual(case["expect"], expected, name)

    def test_what_is_not_supported_is_refused_for_the_true_reason(self):
        for kind, name, (status, says) in entries("refuse"):
            with self.subTest(name):
                load = lambda: self.client.load(name, source(kind, name))
                failure = self.refused(status, load, adapter=name)
                self.assertIn(says, failure.message)
                self.note(kind, name, failure.reason, failure.message[:150])
        self.assertEqual(self.server.adapter_bytes(), 0)
        self.assertEqual(self.client.list().total_size, 0)

    def test_validate_finds_the_same_reason_or_none(self):
        for kind, name, expectation in entries():
            with self.subTest(name):
                try:
                    reply = self.client.validate(name, source(kind, name))
                    errors = [p.reason for p in reply.problems if p.severity == 1]
                    self.assertEqual(reply.valid, not errors)
                except grpc.RpcError as error:
                    errors = [failure_of(error).reason]
                expected = [] if expectation == LOAD else [expectation[0].split("/")[1]]
                self.assertEqual(errors[:1], expected)
        self.assertEqual(self.client.list().total_size, 0)

    def test_every_case_that_loads_computes_what_peft_computed(self):
        for kind, name, _ in entries(LOAD, "peft/cases"):
            with self.subTest(name):
                self.check_case(Case(name), kind)

    def check_case(self, case, kind):
        """DoRA's norms come from a base checkpoint; nothing else needs one."""
        name, truth = case.name, case.truth
        base = self.checkpoint(case) if truth.uses_dora else ""
        adapter = self.client.load(name, source(kind, name), view=FULL,
                                   base_checkpoint=base).adapter
        self.check_modules(adapter, truth)
        if truth.is_plain:
            self.assertEqual(adapter.revision, truth.revision())
        known = {*truth.modules, *truth.replacements}
        known |= {f"{path}.token_adapter" for path in truth.replacements}
        self.assertLessEqual(set(case.expected), known, "expected values of unknown modules")
        done, share = Counter(), 0.0
        for pair in truth.modules.values():
            for expert in range(pair.experts) if pair.experts else [None]:
                check = ModuleCheck(self, case, pair, name, expert)
                check.check_tensors()
                share = max(share, check.check_apply())
                done["beside PEFT's weight"] += check.check_merge()
                done["applied"] += check.layer.is_pointwise
                done["merged"] += 1
                if "magnitude" in pair.tensors and check.layer.is_pointwise:
                    self.client.load(f"{name}.alone", source(kind, name))
                    check.check_dora_needs_its_base(f"{name}.alone")
        for replacement in truth.replacements.values():
            check_replacement(self, case, replacement, name)
            done["replaced"] += 1
        counts = ", ".join(f"{count} {what}" for what, count in done.items() if count)
        self.note(kind, name, "loads", f"{counts}; worst {share:.2f} of the tolerance")

    def check_modules(self, adapter, truth):
        listed = [(m.path, adapter_pb2.ModuleKind.Name(m.kind).removeprefix("MODULE_KIND_"))
                  for m in adapter.modules]
        expected = [(pair.path, pair.kind) for pair in truth.modules.values()]
        expected += [(path, "REPLACEMENT") for path in truth.replacements]
        self.assertEqual(sorted(listed), sorted(expected))
        self.assertEqual([path for path, _ in listed], sorted(path for path, _ in listed))
        for m in adapter.modules:
            if m.kind != adapter_pb2.MODULE_KIND_REPLACEMENT:
                self.check_module(m, truth.modules[m.path])
        if any(pair.replaced_bias for pair in truth.modules.values()):
            self.assertTrue(any("bias" in warning for warning in adapter.warnings))

    def check_module(self, m, pair):
        self.assertEqual((m.rank, m.in_features, m.out_features), pair.sizes, m.path)
        self.assertEqual(m.experts, pair.experts, m.path)
        self.assertAlmostEqual(m.scale, pair.scale, delta=1e-15 * pair.scale, msg=m.path)
        if pair.alpha:
            self.assertEqual(m.alpha, pair.alpha, m.path)
        self.assertEqual(m.dtype, getattr(tensor_pb2, "DATA_TYPE_" + pair.dtype))
        self.assertEqual(m.has_lora_bias, "lora_bias" in pair.tensors, m.path)
        self.assertEqual(m.has_magnitude, "magnitude" in pair.tensors, m.path)
        self.assertEqual(m.replaces_bias, pair.replaced_bias is not None, m.path)

    def test_modules_are_found_by_target_and_layer(self):
        for kind, name, _ in entries(LOAD, "peft/cases"):
            with self.subTest(name):
                adapter = self.client.load(name, source(kind, name), view=FULL).adapter
                paths = Counter(m.path for m in adapter.modules)
                for m in adapter.modules:
                    if paths[m.path] > 1:  # a pair beside what replaces its base weight
                        continue
                    # A target matches any run of whole components at the end of a path.
                    ambiguous = [other.path for other in adapter.modules if other.layer == m.layer
                                 and f".{other.path}".endswith(f".{m.target}")]
                    selector = adapter_pb2.ModuleSelector(
                        target=m.target if len(ambiguous) == 1 else m.path,
                        layer=m.layer if m.HasField("layer") else None)
                    self.assertIn(m, self.client.get(name, module=selector).modules)

    def test_a_base_checkpoint_changes_nothing_of_what_needs_none(self):
        for kind, name, _ in entries(LOAD, "peft/cases"):
            case = Case(name)
            if case.truth.uses_dora:
                continue
            with self.subTest(name):
                alone = self.client.load(name, source(kind, name), view=FULL).adapter
                bound = self.client.load(f"{name}.bound", source(kind, name), view=FULL,
                                         base_checkpoint=self.checkpoint(case)).adapter
                self.assertEqual(bound.revision, alone.revision)
                self.assertEqual(list(bound.modules), list(alone.modules))

    def test_a_base_checkpoint_of_another_model_is_refused(self):
        self.checkpoint(Case("conv2d"))
        for kind, name, _ in entries(LOAD, "peft/cases"):
            case = Case(name)
            if case.base.name in ("tiny-llama", "tiny-bert", "tiny-gpt2"):
                load = lambda: self.client.load(name, source(kind, name),
                                                base_checkpoint="bases:tiny-conv-F32")
                self.refused("INVALID_ARGUMENT/BASE_MODEL_MISMATCH", load)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
