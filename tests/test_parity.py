"""Parity with the authors' code: every golden case, through `convert`, the model, and `export`.

The cases are those in the folder that the environment variable MMUNIFY_GOLDEN names (default: golden/ beside this
file), as `<system>/<case>`, so that `-k "albef/"` selects. Sizes come from a case's json only. `parity/<system>.py`
translates between the authors' names of inputs and outputs and ours:

    outputs(model, inputs, case) -> {name: tensor}   every output that the case names; under the name of a TRAP what
                                                     the model gives instead, which must differ from the trap
    head(case) -> str | None                         optional: which head to convert to
    loss(found, case) -> tensor                      optional: what `grads` are of; default: the output `loss`
    mask(name, case) -> tensor | None                optional: where an output counts, if `compare` says it in words
    derived(case) -> {key: tensor}                   optional: values that the original computes, for the checkpoint

`case` is the json as a dict, with the stored tensors under `case["tensors"]`.
"""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden_case import GOLDEN, GoldenCase, cases, disagreement, draw, spread

from hf_mmunify.conversion import engine
from hf_mmunify.conversion.rules import KeyMap


CASES = cases()


def test_there_are_cases():
    assert CASES, f"no <system>/<case>.json with its .safetensors in {GOLDEN}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: GoldenCase):
    if case.system not in engine.conversion_names():
        pytest.skip(f"there is no conversion/{case.system}.py yet")
    module, adapter = engine.conversion_module(case.system), Adapter(case)
    original = {**case.state_dict(), **adapter.hook("derived", {})}
    model = engine.convert(module, original, case.info["config"], adapter.hook("head", None))
    model.train(case.info["mode"] == "train").requires_grad_(True)  # the case names the gradients, frozen or not

    found = adapter.outputs(model)
    faults = output_faults(case, adapter, found)
    faults += gradient_faults(case, adapter, model, module, found)
    faults += export_faults(case, model, module, original)
    assert not faults, f"{case} of {case.info['original']}:\n" + "\n".join(faults)


class Adapter:
    """`parity/<system>.py` for one case, with the defaults of its optional functions."""

    def __init__(self, case: GoldenCase):
        assert (Path(__file__).parent / "parity" / f"{case.system}.py").is_file(), (
            f"tests/parity/{case.system}.py is missing: it translates the names of inputs and outputs"
        )
        self.module = import_module(f"parity.{case.system}")
        self.case = {**case.info, "tensors": case.tensors}
        self.inputs = case.of_kind("inputs")

    def outputs(self, model) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return self.module.outputs(model, self.inputs, self.case)

    def hook(self, name: str, default):
        return vars(self.module)[name](self.case) if name in vars(self.module) else default

    def loss(self, found: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.module.loss(found, self.case) if "loss" in vars(self.module) else found["loss"]

    def mask(self, case: GoldenCase, name: str) -> torch.Tensor | None:
        mask = self.module.mask(name, self.case) if "mask" in vars(self.module) else None
        return case.mask(name) if mask is None else spread(mask, case.tensors[f"outputs/{name}"].shape)


def output_faults(case: GoldenCase, adapter: Adapter, found: dict[str, torch.Tensor]) -> list[str]:
    faults = []
    for name, told in case.info["outputs"].items():
        mask = adapter.mask(case, name)
        if found.get(name) is None:
            faults.append(f"output {name}: parity/{case.system}.py does not give it")
        elif mask is None:
            faults.append(f"output {name}: parity/{case.system}.py needs `mask` for {told['compare']!r}")
        else:
            exact = told["compare"] == "exact"
            fault = disagreement(found[name], case.tensors[f"outputs/{name}"], 0 if exact else told["atol"], mask)
            if told["what"].startswith("TRAP"):
                fault = None if fault else f"is matched, but is a trap: {told['what']}"
            faults += [f"output {name}: {fault}"] if fault else []
    return faults


def gradient_faults(case: GoldenCase, adapter: Adapter, model, module, found: dict[str, torch.Tensor]) -> list[str]:
    expected = case.of_kind("grads")
    if not expected:
        return []
    model.zero_grad()
    adapter.loss(found).backward()
    # A parameter that the loss does not reach has a gradient of zero, as a part of a fused one of the authors' may.
    ours = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    theirs = engine.export_tensors(model, ours, module)
    faults = []
    for key, gradient in expected.items():
        source = case.info["weights"][key].get("alias", key)
        if source not in theirs:
            faults.append(f"gradient of {key}: no rule leads back to it")
        elif fault := disagreement(theirs[source], gradient, case.info["grads"][key]["atol"]):
            faults.append(f"gradient of {key}: {fault}")
    return faults


def export_faults(case: GoldenCase, model, module, original: dict[str, torch.Tensor]) -> list[str]:
    """The way back: every key that is not ignored for a reason, bit by bit, and no other."""
    exported, key_map = engine.export(model, module), engine.key_map_of(module, model.config)
    weights = {key: rule for key, rule in case.info["weights"].items() if not key_map.is_ignored(key)}
    faults = [f"export: {key} is missing" for key in weights.keys() - exported.keys()]
    faults += [f"export: {key} is not in the original" for key in exported.keys() - weights.keys()]
    for key in weights.keys() & exported.keys():
        if list(exported[key].shape) != weights[key]["shape"]:
            faults.append(f"export: {key} {list(exported[key].shape)}, expected {weights[key]['shape']}")
        elif key in original and not (
            exported[key].dtype == original[key].dtype and torch.equal(exported[key], original[key])
        ):
            faults.append(f"export: {key} is not bit-equal")
    return sorted(faults)


# --- the machinery itself -----------------------------------------------------------------------------------------


def test_the_rule_that_draws_weights_never_changes():
    expected = torch.tensor([[0.6825815, 0.32144105, -0.80814725]])
    assert torch.allclose(torch.from_numpy(draw(1, "encoder.weight", (1, 3), 0.5, 0.25)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "compare, expected",
    [
        ("everywhere", [[1, 1, 1], [1, 1, 1]]),
        ("everywhere (padding tokens give clipped values)", [[1, 1, 1], [1, 1, 1]]),
        ("exact", [[1, 1, 1], [1, 1, 1]]),
        ("where inputs/attention_mask is 1", [[1, 1, 0], [1, 1, 1]]),
        ("where inputs/attention_mask is 0", [[0, 0, 1], [0, 0, 0]]),
        ("where outputs/scores > -1.5", [[0, 1, 1], [1, 1, 0]]),
        ("where inputs/boxes[..., 0] > -1.5", [[1, 0, 1], [1, 1, 1]]),
        ("where position < inputs/lengths", [[1, 0, 0], [1, 1, 0]]),
        ("kept entries; which entries are kept", None),
        ("where inputs/attention_mask is 1 after inserting a 1 at column 1", None),
    ],
)
def test_where_outputs_count(compare, expected):
    case = GoldenCase(Path("toy/case.json"))
    case.info = {"outputs": {"x": {"compare": compare}}}
    case.tensors = {
        "outputs/x": torch.zeros(2, 3, 4),
        "outputs/scores": torch.tensor([[-2.0, 0, 1], [0, 0, -1.5]]),
        "inputs/attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "inputs/boxes": torch.tensor([[[0.0, 9], [-2, 9], [0, 9]], [[0, 9], [0, 9], [0, 9]]]),
        "inputs/lengths": torch.tensor([1, 2]),
    }
    mask = case.mask("x")
    if expected is None:
        assert mask is None
    else:
        assert mask.shape == (2, 3, 4) and torch.equal(mask[..., 3], torch.tensor(expected, dtype=torch.bool))


def test_a_disagreement_is_told():
    theirs = torch.tensor([1.0, 2.0, float("-inf"), 4.0])
    assert disagreement(theirs + 1e-6, theirs, 1e-5) is None
    assert disagreement(theirs + torch.tensor([0, 0, 0, 2e-5]), theirs, 1e-5).startswith("1 of 4 values differ")
    assert disagreement(theirs + torch.tensor([0, 0, 0, 9.0]), theirs, 1e-5, theirs < 3) is None
    assert disagreement(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), 1e-5) is not None
    assert disagreement(theirs[:3], theirs, 1e-5) == "shape [3], expected [4]"
    assert "selects nothing" in disagreement(theirs, theirs, 1e-5, theirs > 9)
    assert disagreement(torch.tensor([3, 4]), torch.tensor([3, 5]), 0) is not None


def test_state_dicts_are_drawn_with_their_aliases():
    case = GoldenCase(Path("toy/case.json"))
    rule = {"shape": [2], "scale": 0.5, "offset": 1.0}
    case.info = {
        "seed": 3,
        "weights": {
            "head": {"shape": [2], "alias": "middle"},
            "middle": {"shape": [2], "alias": "embed"},
            "embed": rule,
            "queue": {"shape": [1], "stored": True},
            "position_ids": {"shape": [1, 3], "derived": "arange"},
            "index": {"shape": [3], "derived": "computed by the constructor of the original"},
            "scalar": {"shape": [], "scale": 0.1, "offset": 0.0},
        },
    }
    case.tensors = {"weights/queue": torch.tensor([7.0])}
    state = case.state_dict()
    assert state.keys() == case.info["weights"].keys() - {"index"}
    assert torch.equal(state["head"], torch.from_numpy(draw(3, "embed", (2,), 0.5, 1.0)))
    assert state["queue"] == 7 and state["scalar"].shape == ()
    assert torch.equal(state["position_ids"], torch.tensor([[0, 1, 2]]))


def toy_case() -> GoldenCase:
    case = GoldenCase(Path("toy/case.json"))
    case.info = {
        "outputs": {
            "logits": {"what": "logits", "compare": "everywhere", "atol": 1e-5},
            "wrong_logits": {"what": "TRAP: another tower's", "compare": "everywhere", "atol": 1e-5},
        },
        "weights": {
            "w": {"shape": [2]},
            "tied": {"shape": [2], "alias": "w"},
            "ids": {"shape": [3], "derived": "..."},
        },
        "grads": {"w": {"atol": 1e-6}, "tied": {"atol": 1e-6}},
    }
    case.tensors = {
        "outputs/logits": torch.ones(3),
        "outputs/wrong_logits": torch.zeros(3),
        "grads/w": torch.tensor([3.0, 3.0]),
        "grads/tied": torch.tensor([3.0, 3.0]),
    }
    return case


def toy_adapter(case: GoldenCase, **hooks) -> Adapter:
    adapter = Adapter.__new__(Adapter)
    adapter.module, adapter.case, adapter.inputs = SimpleNamespace(**hooks), {**case.info}, {}
    return adapter


@pytest.mark.parametrize(
    "found, faults",
    [
        ({"logits": torch.ones(3), "wrong_logits": torch.ones(3)}, []),
        ({"logits": torch.ones(3) + 1e-4, "wrong_logits": torch.ones(3)}, ["output logits: 3 of 3 values differ"]),
        (
            {"logits": torch.ones(3), "wrong_logits": torch.zeros(3)},
            ["output wrong_logits: is matched, but is"],
        ),
        ({"logits": torch.ones(3)}, ["output wrong_logits: parity/toy.py does not give it"]),
        ({"wrong_logits": torch.ones(3), "logits": None}, ["output logits: parity/toy.py does not give it"]),
    ],
)
def test_faults_of_outputs_are_found(found, faults):
    case = toy_case()
    told = output_faults(case, toy_adapter(case), found)
    assert len(told) == len(faults) and all(start in line for start, line in zip(faults, told))


def test_a_comparison_in_words_needs_a_mask_of_the_adapter():
    case = toy_case()
    case.info["outputs"] = {"logits": {"what": "", "compare": "kept entries", "atol": 0}}
    found = {"logits": torch.tensor([1.0, 1, 7])}
    assert "needs `mask` for 'kept entries'" in output_faults(case, toy_adapter(case), found)[0]
    adapter = toy_adapter(case, mask=lambda name, case: torch.tensor([True, True, False]))
    assert output_faults(case, adapter, found) == []


class ToyModel(torch.nn.Module):
    """One weight, as far as the checks below ask."""

    def __init__(self, weight=(1.0, 2.0)):
        super().__init__()
        self.ours = torch.nn.Parameter(torch.tensor(weight))
        self.config = None


def toy_engine(monkeypatch, exported):
    monkeypatch.setattr(engine, "export_tensors", lambda model, tensors, module: {"w": tensors["ours"]})
    monkeypatch.setattr(engine, "export", lambda model, module: exported)
    monkeypatch.setattr(engine, "key_map_of", lambda module, config: KeyMap([], {"queue": "dropped"}))


@pytest.mark.parametrize("factor, is_right", [(3.0, True), (3.1, False)])
def test_faults_of_gradients_are_found(monkeypatch, factor, is_right):
    toy_engine(monkeypatch, {})
    case, model = toy_case(), ToyModel()
    faults = gradient_faults(case, toy_adapter(case), model, None, {"loss": factor * model.ours.sum()})
    assert [fault.split(":")[0] for fault in faults] == ([] if is_right else ["gradient of w", "gradient of tied"])
    adapter = toy_adapter(case, loss=lambda found, case: 3 * found["sum"])
    assert gradient_faults(case, adapter, model, None, {"sum": model.ours.sum()}) == []


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        ({"w": torch.tensor([1.0, 2.0000002])}, "export: w is not bit-equal"),
        ({"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}, "export: w is not bit-equal"),
        ({"tied": None}, "export: tied is missing"),
        ({"ids": None}, "export: ids is missing"),
        ({"ids": torch.arange(4)}, "export: ids [4], expected [3]"),
        ({"extra": torch.ones(1)}, "export: extra is not in the original"),
    ],
)
def test_faults_of_exports_are_found(monkeypatch, change, fault):
    original = {"w": torch.tensor([1.0, 2.0]), "tied": torch.tensor([1.0, 2.0])}
    exported = {**original, "ids": torch.arange(3), **change}
    toy_engine(monkeypatch, {key: value for key, value in exported.items() if value is not None})
    case = toy_case()
    case.info["weights"]["queue"] = {"shape": [1]}
    assert export_faults(case, ToyModel(), None, original) == ([fault] if fault else [])
