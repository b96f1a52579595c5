"""One module of a loaded adapter beside what PEFT computed with it, through gRPC."""
import numpy as np

from harness import apply_request, merge_request
from tensors import Array, array, from_proto, ulp, unit_roundoff
from tolerance import (Projection, Term, merge_sums_error, merge_tolerance, merged_deviation,
                       merged_output_tolerance, projection_tolerance)
from adapterd.v1 import adapter_pb2, merge_service_pb2

UNSUPPORTED = "INVALID_ARGUMENT/UNSUPPORTED_ADAPTER"
BASE_REQUIRED = "FAILED_PRECONDITION/BASE_REQUIRED"


def worst(off, limit):
    """The share of the tolerance that the worst element uses."""
    share = np.divide(off, limit, out=np.where(off > 0, np.inf, 0.0), where=limit > 0)
    return float(share.max(initial=0))


def of_expert(delta, layer):
    """What PEFT would give out of one expert as of a linear layer: it gives the delta alone."""
    weight = layer.matrix()
    delta = delta if delta.shape == weight.shape else delta.T
    x = array(np.random.default_rng(delta.size).standard_normal((3, weight.shape[1])))
    y_base = array(x.values() @ weight.T)
    return {"x": x, "y_base": y_base, "y": array(y_base.values() + x.values() @ delta.T),
            "merged": array(weight + delta)}


class ModuleCheck:
    """A pair of `case`, loaded as `name` by `test.client`; `expert` when it holds one an expert."""

    def __init__(self, test, case, pair, name, expert=None):
        self.test, self.client, self.case, self.pair, self.name = (
            test, test.client, case, pair, name)
        self.expert = expert
        self.layer = case.layer(pair, expert)
        self.selector = adapter_pb2.ModuleSelector(path=pair.path, expert=expert)
        self.values = case.expected[pair.path]
        if expert is not None:
            self.values = of_expert(self.values["delta_weight"].values()[expert], self.layer)
        self.what = f"{pair.path}, expert {expert}" if expert is not None else pair.path
        bias = case.bias(pair)
        self.bias = 0.0 if bias is None else bias.values()
        self.projection = self._projection()

    def _projection(self):
        self.x, self.y_base, self.y = (self.values[key] for key in ("x", "y_base", "y"))
        term = Term.of(self.pair, self.layer.rows(self.x), expert=self.expert)
        dora = self.case.dora(self.pair, self.layer, term)
        p = Projection([term], self.layer.outputs(self.y_base), self.y_base.dtype, dora)
        self._check_base(p)
        return p

    def _check_base(self, p):
        """Guards the fixtures: the base file holds the weight that y_base was computed with."""
        x, weight = p.terms[0].x, self.layer.matrix()
        share = 2 * unit_roundoff(self.case.base.dtype) + len(weight.T) * unit_roundoff("F32")
        limit = share * (np.abs(x) @ np.abs(weight).T + np.abs(self.bias))
        off = np.abs(x @ weight.T + self.bias - p.base)
        self.test.assertTrue((off <= limit).all(), self.what)

    def check_tensors(self):
        """GetAdapterTensors gives what the file holds, bit for bit, where nothing is folded in."""
        reply = self.client.tensors(self.name, self.selector)
        a, b = from_proto(reply.lora_a), from_proto(reply.lora_b)
        self.test.assertAlmostEqual(reply.scale, self.pair.scale, delta=1e-6 * self.pair.scale)
        (term,) = self.projection.terms
        if self.pair.folds:
            off = np.abs(reply.scale * b.values() @ a.values() - term.weight())
            self.test.assertLessEqual(worst(off, 2 * term.weight_error()), 1, self.what)
            return
        for ours, exact in ((a, term.a), (b, term.b)):
            self.test.assertEqual(ours.dtype, self.pair.dtype)
            np.testing.assert_array_equal(ours.values().reshape(exact.shape), exact, self.what)
        for field, role in (("magnitude", "magnitude"), ("bias", "lora_bias")):
            stored = self.pair.values(role)
            self.test.assertEqual(reply.HasField(field), stored is not None, self.what)
            if stored is not None:
                values = from_proto(getattr(reply, field)).values().ravel()
                np.testing.assert_array_equal(values, stored, self.what)

    def request(self, readable=False, **fields):
        x, y_base = self.layer.last(self.x), self.layer.last(self.y_base)
        x, y_base = (t.readable() if readable else t.proto() for t in (x, y_base))
        request = apply_request(self.name, "", x, y_base, **fields)
        request.projections[0].module.CopyFrom(self.selector)
        return request

    def check_apply(self):
        """The share of the tolerance that the worst element uses."""
        if not self.layer.is_pointwise:
            self.test.refused(UNSUPPORTED, self.client.apply, self.request(), adapter=self.name)
            return 0.0
        (output,) = self.client.apply(self.request()).outputs
        self.test.assertEqual((output.path, output.applied), (self.pair.path, 1))
        y = from_proto(output.output)
        self.test.assertEqual((y.dtype, y.shape),
                              (self.y_base.dtype, self.layer.last(self.y_base).shape))
        (readable,) = self.client.apply(self.request(readable=True)).outputs
        np.testing.assert_array_equal(from_proto(readable.output).raw, y.raw)
        p, values = self.projection, y.values().reshape(self.projection.base.shape)
        ours = worst(np.abs(values - p.exact()), projection_tolerance(p, against_peft=False))
        both = worst(np.abs(values - self.layer.outputs(self.y)),
                     projection_tolerance(p, against_peft=True))
        self.test.assertLessEqual(
            ours, 1, f"{self.what}: farther from the exact value than roundings explain")
        self.test.assertLessEqual(both, 1, f"{self.what}: not what PEFT computed")
        return max(ours, both)

    def check_dora_needs_its_base(self, without_base):
        """`without_base`: name of the same adapter, loaded without a base checkpoint."""
        no_output = self.request()
        no_output.projections[0].ClearField("base_output")
        self.test.refused(BASE_REQUIRED, self.client.apply, no_output)
        no_norms = self.request()
        no_norms.adapter.name = without_base
        self.test.refused(BASE_REQUIRED, self.client.apply, no_norms)
        weighted, beside = self.request(), self.request()
        weighted.adapter.weight = 0.5
        self.test.refused("INVALID_ARGUMENT/INVALID_FIELD", self.client.apply, weighted)
        beside.ClearField("adapter")
        beside.segments.add().adapters.extend([adapter_pb2.AdapterRef(name=self.name)] * 2)
        self.test.refused("INVALID_ARGUMENT/INVALID_FIELD", self.client.apply, beside)

    def check_merge(self):
        """1 when PEFT's merged weight was there to compare with."""
        bias = self.case.base.tensor(self.pair.path, "bias") if self.expert is None else None
        reply = self.merge(self.layer.weight, bias)
        merged, weight = from_proto(reply.weight), self.layer.weight
        self.test.assertEqual((merged.dtype, merged.shape), (weight.dtype, weight.shape))
        p, matrix = self.projection, self.layer.matrix()
        (term,) = p.terms
        exact = matrix + term.weight()
        if p.dora is not None:
            exact = p.dora.gain[:, None] * exact
        limit = merge_tolerance([term], matrix, exact, weight.dtype, p.dora)
        ours = self.layer.matrix(merged)
        self.test.assertLessEqual(worst(np.abs(ours - exact), limit), 1, self.what)
        largest = np.abs(exact - matrix).max()
        self.test.assertAlmostEqual(reply.stats.max_abs_delta, largest,
                                    delta=1e-5 * largest + limit.max())
        bias = self.check_bias(reply, bias)
        y = term.x @ ours.T + bias
        limit = merged_output_tolerance(p, ours, matrix, weight.dtype)
        self.test.assertLessEqual(worst(np.abs(y - self.layer.outputs(self.y)), limit), 1,
                                  f"{self.what}: x W'^T is not PEFT's y")
        sums = merge_sums_error([term], matrix, exact, p.dora)
        return self.check_beside_peft(merged, exact - matrix, sums)

    def merge(self, weight, bias=None):
        layout = (merge_service_pb2.WEIGHT_LAYOUT_IN_OUT
                  if self.layer.kind == "LINEAR" and self.layer.transposed
                  else merge_service_pb2.WEIGHT_LAYOUT_OUT_IN)
        request = merge_request(self.name, "", weight.proto(), weight_layout=layout,
                                bias=None if bias is None else bias.proto())
        request.module.CopyFrom(self.selector)
        return self.client.merge(request)

    def check_bias(self, reply, bias):
        """The bias after the merge, beside the formula and PEFT's; float64, 0 without one."""
        own = self.pair.values("lora_bias")
        if bias is None and own is None and self.pair.replaced_bias is None:
            self.test.assertFalse(reply.HasField("bias"), self.what)
            return 0.0
        merged = from_proto(reply.bias)
        if self.pair.replaced_bias is not None:
            np.testing.assert_array_equal(merged.values(), self.pair.replaced_bias.values())
        own = 0.0 if own is None else self.pair.scale * own
        exact = self.bias + own
        sums = 4 * unit_roundoff("F32") * (np.abs(self.bias) + np.abs(own))
        limit = sums + ulp(exact, merged.dtype) / 2
        off = np.abs(merged.values() - exact)
        self.test.assertLessEqual(worst(off, limit), 1, self.what)
        if "merged_bias" in self.values:  # PEFT rounds what it adds, too
            limit = 2 * limit + ulp(np.maximum(np.abs(self.bias), np.abs(own)), merged.dtype)
            off = np.abs(merged.values() - self.values["merged_bias"].values())
            self.test.assertLessEqual(worst(off, limit), 1, self.what)
        merged = merged.values()
        return merged

    def check_beside_peft(self, merged, delta, sums):
        expected = self.values.get("merged")
        if expected is None:
            return 0
        wrong = merged_deviation(merged, expected, self.layer.weight, self.pair.dtype,
                                 self.layer.in_layout(delta), self.layer.in_layout(sums))
        self.test.assertIsNone(wrong, self.what)
        return 1


def check_replacement(test, case, replacement, name):
    """Merges give the saved tensors; nothing can be applied."""
    path = replacement.path
    if path in case.truth.modules:
        # Whatever the base weight is, the pair comes on top of the saved one.
        check = ModuleCheck(test, case, case.truth.modules[path], name)
        other = Array(replacement.weight.dtype, replacement.weight.raw * 2)
        np.testing.assert_array_equal(from_proto(check.merge(other).weight).raw,
                                      from_proto(check.merge(check.layer.weight).weight).raw)
        return
    x = array(np.zeros((1, 1)))
    test.refused(UNSUPPORTED, test.client.apply, apply_request(name, path, x.proto()))
    values = {**case.expected.get(f"{path}.token_adapter", {}), **case.expected.get(path, {})}
    base = {what: case.base.tensor(path, what) for what in ("weight", "bias")}
    check_replaced(test, replacement, name, base, {
        "weight": values.get("merged" if replacement.token_ids else "replaced_weight"),
        "bias": values.get("replaced_bias")})


def check_replaced(test, replacement, name, base, of_peft):
    """`base` and `of_peft`: {"weight": ..., "bias": ...}, each an Array or None."""
    exact = {"weight": replacement.weight, "bias": replacement.bias}
    if replacement.token_ids:
        rows = base["weight"].raw.copy()
        rows[replacement.token_ids] = replacement.weight.raw
        exact["weight"] = Array(base["weight"].dtype, rows)
    request = merge_request(name, replacement.path, base["weight"].proto())
    if base["bias"] is not None:
        request.bias.CopyFrom(base["bias"].proto())
    reply = test.client.merge(request)
    for what, saved in exact.items():
        merged = from_proto(getattr(reply, what)) if reply.HasField(what) else None
        if saved is None:  # stays as it was
            test.assertEqual(merged is None, base[what] is None, replacement.path)
            saved = base[what]
        if saved is not None:
            np.testing.assert_array_equal(merged.raw, saved.raw, f"{replacement.path}, {what}")
        if of_peft[what] is not None:
            np.testing.assert_array_equal(merged.raw, of_peft[what].raw, replacement.path)
