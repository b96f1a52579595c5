"""CreateAdapter and EstimateCapacity through the real binary."""
import signal
import sys
import unittest

import numpy as np

from adapters import Q0, SMALL, tensors_of, write_adapter
from fresh_oracle import fresh_pair
from harness import FULL, PATIENCE, ServerTest, apply_request, until
from peft_rules import PeftAdapter
from tensors import array, from_proto
from adapterd.v1 import adapter_creation_pb2 as creation
from adapterd.v1 import adapter_pb2, tensor_pb2

F32, F16, BF16 = (getattr(tensor_pb2, f"DATA_TYPE_{name}") for name in ("F32", "F16", "BF16"))
CREATED = adapter_pb2.ADAPTER_FORMAT_CREATED
BAD = "INVALID_ARGUMENT/INVALID_FIELD"

# Grouped queries, and heads wider than their share of the model.
SIZES = dict(hidden_size=24, intermediate_size=40, num_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, vocab_size=50)
TARGETS = {  # in, out, where
    "q_proj": (24, 32, "model.layers.{}.self_attn.q_proj"),
    "k_proj": (24, 16, "model.layers.{}.self_attn.k_proj"),
    "v_proj": (24, 16, "model.layers.{}.self_attn.v_proj"),
    "o_proj": (32, 24, "model.layers.{}.self_attn.o_proj"),
    "qkv_proj": (24, 64, "model.layers.{}.self_attn.qkv_proj"),
    "gate_proj": (24, 40, "model.layers.{}.mlp.gate_proj"),
    "up_proj": (24, 40, "model.layers.{}.mlp.up_proj"),
    "gate_up_proj": (24, 80, "model.layers.{}.mlp.gate_up_proj"),
    "down_proj": (40, 24, "model.layers.{}.mlp.down_proj"),
    "embed_tokens": (50, 24, "model.embed_tokens"),
    "lm_head": (24, 50, "lm_head")}


def geometry(**changes):
    return creation.ModelGeometry(**{**SIZES, **changes})


def modules_of(layers=2):
    """{path: (in, out)} of all targets."""
    return {where.format(layer): (wide_in, wide_out)
            for wide_in, wide_out, where in TARGETS.values() for layer in range(layers)}


def tensors_message(tensors):
    """AdapterTensors of a PEFT file's Arrays."""
    message = creation.AdapterTensors()
    paths = sorted({name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
                    for name in tensors})
    for path in paths:
        message.modules.add(path=path, **{
            f"lora_{factor}": tensors[f"base_model.model.{path}.lora_{factor.upper()}.weight"].proto()
            for factor in "ab"})
    return message


class CreationTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.data = self.folder() / "data"
        self.serve()

    def serve(self, *flags):
        self.server = self.start(f"--adapter-root={self.root}", f"--data-dir={self.data}", *flags)
        self.client = self.server.client

    def create(self, name="made", **fields):
        return self.client.adapters.CreateAdapter(
            creation.CreateAdapterRequest(name=name, **fields), timeout=PATIENCE)

    def estimate(self, **fields):
        return self.client.adapters.EstimateCapacity(
            creation.EstimateCapacityRequest(**fields), timeout=PATIENCE)

    def expect_nothing_left(self):
        self.assertEqual(self.client.list().total_size, 0)
        self.assertEqual(self.server.adapter_bytes(), 0)
        for part in ("incoming", "content"):
            self.assertEqual(list((self.data / "store" / part).iterdir()), [])


class FreshTest(CreationTest):
    def test_every_target_has_its_shape_and_the_documented_numbers(self):
        for dtype, name in ((F32, "F32"), (F16, "F16"), (BF16, "BF16")):
            with self.subTest(name):
                made = self.create(name, geometry=geometry(), target_modules=list(TARGETS), rank=4,
                                   alpha=6, seed=2**64 - 1, dtype=dtype).adapter
                self.assertEqual((made.state, made.format, made.method),
                                 (adapter_pb2.ADAPTER_STATE_READY, CREATED, "lora"))
                self.assertEqual((list(made.ranks), made.layer_count), ([4], 2))
                self.client.export(name, self.root / name)
                read = PeftAdapter(self.root / name)
                self.assertEqual(set(read.modules), set(modules_of()))
                self.assertEqual(made.parameter_count,
                                 sum(4 * (i + o) for i, o in modules_of().values()))
                for path, (wide_in, wide_out) in modules_of().items():
                    pair = read.modules[path]
                    embedding = path == "model.embed_tokens"
                    self.assertEqual(pair.kind, "EMBEDDING" if embedding else "LINEAR")
                    self.assertEqual(pair.scale, 1.5)
                    a, b = fresh_pair(2**64 - 1, path, wide_in, wide_out, 4, name, embedding)
                    np.testing.assert_array_equal(pair.tensors["lora_a"].raw, a.raw)
                    np.testing.assert_array_equal(pair.tensors["lora_b"].raw, b.raw)
                x = array(np.ones((1, 24)))
                reply = self.client.apply(apply_request(name, "lm_head", x.proto()))
                self.assertFalse(from_proto(reply.outputs[0].output).values().any())

    def test_without_more_it_is_rank_8_alpha_16_of_queries_and_values(self):
        made = self.create(geometry=geometry()).adapter
        full = self.client.get(made.name, view=FULL)
        self.assertEqual(list(made.target_modules), ["q_proj", "v_proj"])
        self.assertEqual({(m.rank, m.alpha, m.scale, m.dtype) for m in full.modules},
                         {(8, 16, 2, F32)})

    def test_rslora_and_path_templates(self):
        made = self.create(geometry=geometry(path_templates={"q_proj": "h.{layer}.attn.{target}"}),
                           target_modules=["q_proj"], use_rslora=True, rank=4, alpha=3).adapter
        full = self.client.get(made.name, view=FULL)
        self.assertEqual([m.path for m in full.modules], ["h.0.attn.q_proj", "h.1.attn.q_proj"])
        self.assertEqual((made.method, full.modules[0].scale), ("rslora", 1.5))

    def test_a_repeated_call_is_a_no_op_and_other_content_is_refused(self):
        first = self.create(geometry=geometry(), seed=5)
        self.client.update("made", pinned=True)
        again = self.create(geometry=geometry(), seed=5)
        self.assertEqual((first.already_loaded, again.already_loaded), (False, True))
        self.assertEqual(again.adapter.revision, first.adapter.revision)
        self.assertTrue(again.adapter.pinned)
        self.assertNotEqual(self.create("other", geometry=geometry(), seed=6).adapter.revision,
                            first.adapter.revision)
        self.refused("ALREADY_EXISTS/ADAPTER_EXISTS",
                     lambda: self.create(geometry=geometry(), seed=6), adapter="made")

    def test_it_survives_a_kill(self):
        revision = self.create(geometry=geometry(), seed=5).adapter.revision
        self.server.process.send_signal(signal.SIGKILL)
        self.server.expected_exit = -signal.SIGKILL
        self.server.wait()
        self.serve()
        self.client.apply(apply_request("made", Q0, array(np.ones((1, 24))).proto()))
        adapter = self.client.get("made")
        self.assertEqual((adapter.revision, adapter.format), (revision, CREATED))
        self.client.unload("made")
        until(lambda: not [entry for part in ("content", "incoming")  # through which it goes
                           for entry in (self.data / "store" / part).iterdir()],
              "the content to go")
        self.expect_nothing_left()

    def test_it_is_evicted_only_where_it_can_be_read_again(self):
        one = self.estimate(geometry=geometry(), rank=8).bytes_per_adapter
        self.server.terminate()
        self.server.wait()
        self.serve(f"--memory-budget={one + one // 2}")
        self.create("a", geometry=geometry())
        self.create("b", geometry=geometry(), seed=1)
        self.assertEqual(self.client.get("a").state, adapter_pb2.ADAPTER_STATE_EVICTED)
        self.client.apply(apply_request("a", Q0, array(np.ones((1, 24))).proto()))
        memory_only = self.start(f"--memory-budget={one + one // 2}").client
        for seed in (0, 0):  # twice: the second is the first one again
            memory_only.adapters.CreateAdapter(creation.CreateAdapterRequest(
                name="a", geometry=geometry(), seed=seed), timeout=PATIENCE)
        self.refused("RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED",
                     lambda: memory_only.adapters.CreateAdapter(creation.CreateAdapterRequest(
                         name="b", geometry=geometry(), seed=1), timeout=PATIENCE),
                     needed_bytes=one, used_bytes=one)

    def test_what_is_wrong_is_named_and_leaves_nothing(self):
        def with_geometry(**changes):
            return {"geometry": geometry(**changes)}
        cases = [
            ("name", dict(name="a/b", **with_geometry())),
            ("content", {}),
            ("geometry.hidden_size", with_geometry(hidden_size=0)),
            ("geometry.hidden_size", with_geometry(hidden_size=-3)),
            ("geometry.num_layers", with_geometry(num_layers=0)),
            ("geometry.num_attention_heads", with_geometry(num_attention_heads=0)),
            ("geometry.num_key_value_heads", with_geometry(num_key_value_heads=3)),
            ("geometry.head_dim", with_geometry(head_dim=0)),
            ("geometry.head_dim", {"geometry": creation.ModelGeometry(
                hidden_size=24, num_layers=1, num_attention_heads=5)}),
            ("geometry.path_templates", with_geometry(path_templates={"q_proj": "q"})),
            ("target_modules[0]", dict(target_modules=["qproj"], **with_geometry())),
            ("rank", dict(rank=0, **with_geometry())),
            ("rank", dict(rank=17, **with_geometry())),
            ("alpha", dict(alpha=0, **with_geometry())),
            ("alpha", dict(alpha=-1, **with_geometry())),
            ("alpha", dict(alpha=float("nan"), **with_geometry())),
            ("alpha", dict(alpha=1e13, **with_geometry())),
            ("rank", dict(rank=2, tensors=tensors_message(tensors_of(SMALL)))),
            ("tensors.modules", dict(tensors=creation.AdapterTensors()))]
        for field, fields in cases:
            with self.subTest(field=field, fields=str(fields)):
                self.refused(BAD, lambda: self.create(**fields), field=field)
        self.refused("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", lambda: self.create(
            dtype=tensor_pb2.DATA_TYPE_I32, geometry=geometry()), field="dtype")
        self.expect_nothing_left()

    def test_without_any_folder_to_write_to_it_says_what_is_missing(self):
        client = self.start(environment={"TMPDIR": str(self.root / "missing")}).client
        self.refused("FAILED_PRECONDITION/NO_DATA_DIR", lambda: client.adapters.CreateAdapter(
            creation.CreateAdapterRequest(name="a", geometry=geometry()), timeout=PATIENCE))

    def test_one_that_cannot_fit_is_refused_at_once(self):
        huge = geometry(hidden_size=1 << 20, num_layers=100, head_dim=1 << 18)
        self.refused("RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED",
                     lambda: self.create(geometry=huge, rank=512), needed_bytes=None)
        self.expect_nothing_left()


class GivenTest(CreationTest):
    def test_given_factors_are_those_of_a_file(self):
        for dtype in ("F32", "F16", "BF16"):
            truth = write_adapter(self.root / dtype, SMALL, dtype=dtype, lora_alpha=2)
            file = self.client.load(f"file.{dtype}", dtype).adapter
            tensors = tensors_message(tensors_of(SMALL, dtype=dtype))
            made = self.create(f"made.{dtype}", tensors=tensors).adapter
            self.assertEqual(made.revision, file.revision)
            self.assertEqual(made.format, CREATED)
            x = array(np.random.default_rng(1).standard_normal((3, 8)))
            replies = [self.client.apply(apply_request(name, Q0, x.proto()))
                       for name in (file.name, made.name)]
            self.assertEqual(replies[0].outputs[0].output, replies[1].outputs[0].output)
            self.assertEqual(set(truth.modules), set(SMALL))

    def test_alpha_and_values_that_people_can_read(self):
        tensors = creation.AdapterTensors()
        a, b = array(np.arange(6.0).reshape(2, 3)), array(np.arange(8.0).reshape(4, 2))
        tensors.modules.add(path="m", alpha=6, lora_a=a.readable(), lora_b=b.readable())
        self.create(tensors=tensors)
        module = self.client.get("made", view=FULL).modules[0]
        self.assertEqual((module.path, module.rank, module.scale), ("m", 2, 3))
        self.assertEqual((module.in_features, module.out_features), (3, 4))
        x = array(np.array([[1.0, 2.0, 3.0]]))
        reply = self.client.apply(apply_request("made", "m", x.proto()))
        expected = 3 * x.values() @ a.values().T @ b.values().T
        np.testing.assert_array_equal(from_proto(reply.outputs[0].output).values(), expected)

    def test_what_is_wrong_is_named_and_leaves_nothing(self):
        def spoiled(spoil):
            tensors = tensors_message(tensors_of(SMALL))
            spoil(tensors.modules)
            return tensors
        nan = array(np.full((2, 8), np.nan)).proto()
        cases = [
            (BAD, "tensors.modules", lambda m: m.add().CopyFrom(m[0])),
            (BAD, "tensors.modules[0].path", lambda m: setattr(m[0], "path", "a..b")),
            (BAD, "tensors.modules[0].path", lambda m: setattr(m[0], "path", "m.lora_A.x")),
            (BAD, "tensors.modules[1].alpha", lambda m: setattr(m[1], "alpha", 0)),
            ("INVALID_ARGUMENT/INVALID_ADAPTER", "tensors.modules[0].lora_b",
             lambda m: m[0].ClearField("lora_b")),
            ("INVALID_ARGUMENT/INVALID_ADAPTER", "tensors.modules[0]",
             lambda m: m[0].lora_b.CopyFrom(array(np.ones((6, 3))).proto())),
            ("INVALID_ARGUMENT/INVALID_ADAPTER", "tensors.modules[0].lora_a",
             lambda m: m[0].lora_a.CopyFrom(array(np.ones(8)).proto())),
            ("INVALID_ARGUMENT/SHAPE_MISMATCH", "tensors.modules[0].lora_a",
             lambda m: m[0].lora_a.shape.append(2)),
            ("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", "tensors.modules[0].lora_a.dtype",
             lambda m: setattr(m[0].lora_a, "dtype", tensor_pb2.DATA_TYPE_I32)),
            ("INVALID_ARGUMENT/NON_FINITE_WEIGHTS", "tensors.modules[2].lora_a",
             lambda m: m[2].lora_a.CopyFrom(nan))]
        for status, field, spoil in cases:
            with self.subTest(field=field, status=status):
                self.refused(status, lambda: self.create(tensors=spoiled(spoil)), field=field)
        self.expect_nothing_left()


class CapacityTest(CreationTest):
    def fill(self, budget, **fields):
        """How many adapters can be created before the first refusal."""
        client = self.start(f"--memory-budget={budget}").client
        for count in range(1000):
            request = creation.CreateAdapterRequest(name=f"a{count}", seed=count, **fields)
            try:
                client.adapters.CreateAdapter(request, timeout=PATIENCE)
            except Exception as error:  # noqa: BLE001 (the refusal is checked here)
                self.assertIn("bytes are needed", str(error))
                return count
        raise AssertionError("it never filled")

    def test_so_many_fit_as_it_says(self):
        budget = 4 << 20
        shapes = [dict(geometry=geometry(), target_modules=["q_proj", "v_proj"], rank=8, dtype=F32),
                  dict(geometry=geometry(hidden_size=512, intermediate_size=1376),
                       target_modules=["gate_up_proj", "down_proj"], rank=16, dtype=BF16),
                  dict(geometry=geometry(num_layers=1), target_modules=["embed_tokens", "lm_head"],
                       rank=24, dtype=F16)]
        for shape in shapes:
            with self.subTest(shape["target_modules"]):
                fits = self.estimate(budget_bytes=budget, **shape).adapters_that_fit
                self.assertGreater(fits, 5)
                self.assertLessEqual(abs(self.fill(budget, **shape) - fits), fits * 0.02)

    def test_it_knows_matrices_models_and_adapters(self):
        write_adapter(self.root / "s", {Q0: (64, 32, 4)})
        loaded = self.client.load("s", "s").adapter
        adapter = self.estimate(adapter=adapter_pb2.AdapterRef(name="s"))
        matrix = self.estimate(matrix=creation.MatrixShape(in_features=64, out_features=32), rank=4,
                               base_parameter_count=64 * 32)
        self.assertEqual(adapter.bytes_per_adapter, loaded.memory_bytes)
        self.assertEqual(matrix.bytes_per_adapter, loaded.memory_bytes)
        self.assertEqual((matrix.parameter_count, matrix.efficiency_ratio), (384, 384 / 2048))
        budget = self.client.info().memory_budget_bytes
        self.assertEqual(matrix.adapters_that_fit, budget // loaded.memory_bytes)
        model = self.estimate(geometry=geometry(), rank=8)
        made = self.create(geometry=geometry()).adapter
        self.assertEqual((model.bytes_per_adapter, model.parameter_count),
                         (made.memory_bytes, made.parameter_count))

    def test_zero_sizes_and_budgets_give_zero(self):
        nothing = creation.EstimateCapacityResponse()
        matrix = creation.MatrixShape(in_features=8, out_features=8)
        for fields in (dict(matrix=creation.MatrixShape(), rank=4), dict(matrix=matrix),
                       dict(matrix=creation.MatrixShape(in_features=8), rank=4),
                       dict(geometry=creation.ModelGeometry(), rank=8),
                       dict(geometry=geometry(hidden_size=0), rank=8),
                       dict(geometry=geometry(num_layers=0), rank=8),
                       dict(geometry=geometry())):
            self.assertEqual(self.estimate(base_parameter_count=7, **fields), nothing, fields)
        empty = self.estimate(budget_bytes=0, matrix=matrix, rank=4, base_parameter_count=0)
        self.assertEqual((empty.adapters_that_fit, empty.efficiency_ratio), (0, 0))
        self.assertEqual(empty.parameter_count, 64)

    def test_what_is_wrong_is_named(self):
        matrix = creation.MatrixShape(in_features=8, out_features=4)
        for field, fields in (
                ("subject", {}), ("budget_bytes", dict(matrix=matrix, rank=1, budget_bytes=-1)),
                ("rank", dict(matrix=matrix, rank=-1)), ("rank", dict(matrix=matrix, rank=5)),
                ("matrix.in_features", dict(matrix=creation.MatrixShape(in_features=-1), rank=1)),
                ("base_parameter_count", dict(matrix=matrix, rank=1, base_parameter_count=-1)),
                ("target_modules[0]", dict(geometry=geometry(), rank=1, target_modules=["x"]))):
            self.refused(BAD, lambda: self.estimate(**fields), field=field)
        self.refused("NOT_FOUND/ADAPTER_NOT_FOUND",
                     lambda: self.estimate(adapter=adapter_pb2.AdapterRef(name="nobody")))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
