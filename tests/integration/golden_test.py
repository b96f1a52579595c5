"""Adapters that come without numbers for each module: those of PEFT's own regression suite, run
through the suite's models, and published ones, beside the formula."""
import sys
import unittest

import numpy as np

from cases_table import LOAD, entries, root_flags, source
from harness import FULL, ServerTest, apply_request, fixtures, merge_request
from peft_rules import PeftAdapter
from tensors import array, from_proto, read_safetensors
from tolerance import Projection, Term, projection_tolerance

INPUT = np.arange(90).reshape(9, 10)  # the suite's


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class GoldenTest(ServerTest):
    def setUp(self):
        self.client = self.start(*root_flags()).client

    def open(self, name):
        """The base model's tensors, and the output that the suite expects."""
        self.client.load(name, source("golden-peft", name))
        folder = fixtures("golden-peft") / name
        expected = read_safetensors(folder / "expected_output.safetensors")["output"].values()
        return read_safetensors(folder / "base_model.safetensors"), expected

    def adapted(self, name, module, x, y_base):
        request = apply_request(name, module, x.proto(), array(y_base).proto())
        return from_proto(self.client.apply(request).outputs[0].output).values()

    def replaced(self, name, module, base):
        """(weight, bias) after a merge."""
        reply = self.client.merge(merge_request(name, module, base[f"{module}.weight"].proto(),
                                                bias=base[f"{module}.bias"].proto()))
        return from_proto(reply.weight).values(), from_proto(reply.bias).values()

    def hidden(self, name, base):
        x = array(INPUT)
        y_base = x.values() @ base["lin0.weight"].values().T + base["lin0.bias"].values()
        return np.maximum(self.adapted(name, "lin0", x, y_base), 0)

    def check(self, name, logits, expected):
        np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-5, atol=1e-5)
        print(f"golden-peft/{name}: the suite's output, through its own model")

    def test_the_mlp(self):
        """log_softmax(lin1(relu(lin0 + adapter)))"""
        name = "lora_mlp"
        base, expected = self.open(name)
        logits = (self.hidden(name, base) @ base["lin1.weight"].values().T +
                  base["lin1.bias"].values())
        self.check(name, logits, expected)

    def test_the_mlp_with_a_replaced_layer(self):
        """As above; lin1 is saved whole."""
        name = "lora_mlp_modules_to_save"
        base, expected = self.open(name)
        weight, bias = self.replaced(name, "lin1", base)
        self.check(name, self.hidden(name, base) @ weight.T + bias, expected)

    def test_the_embedding_and_the_conv1d(self):
        """log_softmax(lin0(relu(conv1d + adapter of (emb + adapter of the ids))))"""
        name = "lora_emb_conv1d"
        base, expected = self.open(name)
        ids = array(INPUT, "I64")
        x = array(self.adapted(name, "emb", ids, base["emb.weight"].values()[ids.values()]))
        y_base = x.values() @ base["conv1d.weight"].values() + base["conv1d.bias"].values()
        hidden = np.maximum(self.adapted(name, "conv1d", x, y_base), 0).reshape(len(INPUT), -1)
        logits = hidden @ base["lin0.weight"].values().T + base["lin0.bias"].values()
        self.check(name, logits, expected)


class PublishedTest(ServerTest):
    def setUp(self):
        self.client = self.start(*root_flags()).client

    def test_published_adapters_do_what_the_formula_says(self):
        """No tool's numbers come with them: the exact value from the file's factors decides."""
        for _, name, _ in entries(LOAD, "real"):
            if not (fixtures("real") / name / "adapter_model.safetensors").exists():
                continue  # not PEFT's: other_formats_test.py
            with self.subTest(name):
                adapter = self.client.load(name, source("real", name), view=FULL).adapter
                truth = PeftAdapter(fixtures("real") / name)
                self.assertEqual(sorted(m.path for m in adapter.modules),
                                 sorted([*truth.modules, *truth.replacements]))
                worst = max(self.check_pair(name, pair) for pair in truth.modules.values())
                for replacement in truth.replacements.values():
                    self.check_replacement(name, replacement)
                print(f"real/{name}: {len(truth.modules)} modules applied as the formula says (worst "
                      f"{worst:.2f} of the tolerance), {len(truth.replacements)} replaced")

    def check_pair(self, name, pair):
        rank, wide_in, wide_out = pair.sizes
        x = array(np.random.default_rng(rank).standard_normal((5, wide_in)), pair.dtype)
        p = Projection([Term.of(pair, x.values())], np.zeros((5, wide_out)), pair.dtype)
        reply = self.client.apply(apply_request(name, pair.path, x.proto()))
        y = from_proto(reply.outputs[0].output).values()
        share = (np.abs(y - p.exact()) / projection_tolerance(p, against_peft=False)).max()
        self.assertLessEqual(share, 1, pair.path)
        return share

    def check_replacement(self, name, replacement):
        other = array(np.ones(replacement.weight.shape), replacement.weight.dtype)
        merged = self.client.merge(merge_request(name, replacement.path, other.proto()))
        for what in ("weight", "bias"):
            saved = getattr(replacement, what)
            self.assertEqual(merged.HasField(what), saved is not None)
            if saved is not None:
                np.testing.assert_array_equal(from_proto(getattr(merged, what)).raw, saved.raw)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
