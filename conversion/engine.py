"""The engine: applies the key map of a conversion module to a checkpoint, exactly, in both directions.

Exactly means: every original key is mapped or ignored for a stated reason, every key of the model is filled, shapes
and dtypes are kept, and nothing is guessed; else a named error (`hf_mmunify.conversion.errors`) lists both sides.

A conversion module `conversion/<x>.py` declares, and the engine reads:

| name | what |
|---|---|
| `MODEL_TYPE` | the `model_type` of the configuration it makes |
| `SOURCE` | `Source`: repository, commit, licence of the code and of the weights |
| `HEADS` | {head name or `None`: model class, or its name in the architecture's package or in `transformers`} |
| `config_from_original(original_config, state_dict)` | their configuration (or `None`) and tensors -> ours |
| `KEY_MAP` or `key_map(config)` | list of rules (`hf_mmunify.conversion.rules`); the first that matches a key has it |
| `VARIANTS` | optional: {published name: `Variant`} |
| `IGNORE` or `ignore(config)` | optional: {template of an original key: why it is dropped}; asked before the rules |
| `ALIASES` or `aliases(config)` | optional: {template of an original key: template of the key that it is a copy of} |
| `derived(config, originals)` | optional: {original key: tensor} that the original computes itself (position ids) |
| `COMPLETE` | optional: {template of our key: where it comes from when the checkpoint does not publish it} |
| `complete(config, missing, original_config)` | optional: {our key: tensor} for `missing`, which `COMPLETE` names |
| `head_from_state_dict(state_dict, original_config)` | optional: the head, when the caller names none |
| `processor(original_config)` | optional: the processor to save beside the model |
| `CONTAINERS`, `PREFIXES` | optional: see `read_originals` |

Our keys are written as the model with a head has them; for the bare base model the engine takes its prefix off. Keys
of `ALIASES` and `derived` are checked where a checkpoint has them, supplied where it lacks them, and always exported.
The module ends with `convert, export = bind(__name__)`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mmunify.conversion.errors import (
    ConversionError,
    InconsistentWeightsError,
    KeyMapError,
    MissingKeysError,
    NonFiniteWeightsError,
    NotACheckpointError,
    ShapeMismatchError,
    UnknownArchitectureError,
    UnknownHeadError,
    UnmappedKeysError,
    WrongConfigError,
    listing,
)
from hf_mmunify.conversion.readers import read
from hf_mmunify.conversion.rules import Captures, Merge, Permute, Rename, Reshape, Rule, Split, Template, Transpose
from hf_mmunify.registry import ARCHITECTURES


__all__ = [
    "ConversionError",
    "Merge",
    "Permute",
    "Rename",
    "Reshape",
    "Rule",
    "Source",
    "Split",
    "Transpose",
    "Variant",
    "bind",
    "convert",
    "export",
    "export_tensors",
]

MACHINERY = {"engine", "errors", "readers", "rules"}
"""The modules of this folder that are no conversion of an architecture."""

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net")
"""Under which names training scripts keep the weights inside a checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and `torch.compile` put before every key."""

Conversion = ModuleType | SimpleNamespace
Claim = tuple[int, int, Captures]


@dataclass(frozen=True)
class Source:
    """Where the original is: `repository` (owner/name), its `commit`, and the licences of its code and weights."""

    repository: str
    commit: str
    code_license: str
    weights_license: str


@dataclass(frozen=True)
class Variant:
    """One published checkpoint.

    Args:
        config: the authors' configuration, in their own names.
        parameters: number of parameters of the whole converted model, tied ones counted once.
        file: name of the published file.
        head: key of `HEADS`.
        sha256: of the published file, if known.
    """

    config: Mapping[str, Any]
    parameters: int
    file: str
    head: str | None = None
    sha256: str | None = None


def conversion_names() -> list[str]:
    """The architectures that have a conversion module, sorted."""
    return sorted({found.name for found in iter_modules([str(Path(__file__).parent)])} - MACHINERY)


def conversion_module(architecture: str | Conversion) -> Conversion:
    """The conversion module of an architecture, by the module's name; a module passes through.

    Raises:
        UnknownArchitectureError: there is none.
    """
    if not isinstance(architecture, str):
        return architecture
    if architecture not in conversion_names():
        raise UnknownArchitectureError(
            f"No conversion for architecture `{architecture}`; there are {listing(conversion_names(), 99)}."
        )
    return import_module(f".{architecture}", __package__)


def bind(name: str) -> tuple[Callable[..., PreTrainedModel], Callable[..., dict[str, torch.Tensor]]]:
    """`convert(checkpoint, original_config=None, head=None, dtype=None)` and `export(model)` of module `name`."""

    def bound_convert(checkpoint, original_config=None, head=None, dtype=None) -> PreTrainedModel:
        return convert(sys.modules[name], checkpoint, original_config, head, dtype)

    def bound_export(model: PreTrainedModel) -> dict[str, torch.Tensor]:
        return export(model, sys.modules[name])

    bound_convert.__doc__, bound_export.__doc__ = convert.__doc__, export.__doc__
    return bound_convert, bound_export


def convert(
    architecture: str | Conversion,
    checkpoint: str | Path | Mapping[str, Any],
    original_config: Mapping[str, Any] | str | None = None,
    head: str | None = None,
    dtype: torch.dtype | str | None = None,
) -> PreTrainedModel:
    """Makes a transformers model of an original checkpoint.

    Args:
        architecture: name of a conversion module, or the module.
        checkpoint: file or folder (any format of `hf_mmunify.conversion.readers`), or a state dict of torch tensors or
            numpy arrays, also nested. A state dict is copied, never shared with the model.
        original_config: the authors' configuration under their own names, or the name of a published variant.
        head: key of the module's `HEADS`; by default what the checkpoint holds.
        dtype: of the floating-point weights; `None` keeps each tensor's own.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        ConversionError: one of the subclasses in `hf_mmunify.conversion.errors`. Among them: NaN or infinite weights
            are refused, because a damaged file is the only way they get into one.
    """
    module = conversion_module(architecture)
    original_config = _original_config(module, original_config)
    originals = read_originals(module, checkpoint)
    model_class = head_class(module, head, originals, original_config)
    model = skeleton(model_class, our_config(module, original_config, originals))
    return _build(model, map_originals(module, model, originals, original_config).tensors, _dtype(dtype))


def export(model: PreTrainedModel, architecture: str | Conversion | None = None) -> dict[str, torch.Tensor]:
    """The model's weights under the authors' names: the inverse of `convert`, bit by bit, aliases included.

    Args:
        model: a model of an architecture that has a conversion module.
        architecture: name of the conversion module, or the module; by default that of the model's `model_type`.

    Returns:
        {original key: tensor}. A tensor that only changes its name shares memory with the model.

    Raises:
        ConversionError: a key of the model has no place in the original.
    """
    module = conversion_module(architecture or model.config.model_type)
    originals, homeless = _backward(module, model, model.state_dict())
    elsewhere = _declared(module, "COMPLETE")
    if homeless := [name for name in homeless if reason_for(elsewhere, name) is None]:
        raise KeyMapError(
            f"`{_name(module)}` has no rule that leads from these keys of {type(model).__name__} to the original: "
            f"{listing(homeless)}. If the model was changed (adapters, added layers), export it before that."
        )
    return {**_copies(module, model.config, originals), **originals}


def export_tensors(
    model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], architecture: str | Conversion | None = None
) -> dict[str, torch.Tensor]:
    """Some tensors of the model's layout, such as gradients, under the authors' names.

    Args:
        model: the model whose keys `tensors` uses.
        tensors: {our key: tensor}; a rule applies if all of its keys are here. A tied parameter may go by any name.
        architecture: as for `export`.

    Returns:
        {original key: tensor}, without aliases and derived keys.
    """
    return _backward(conversion_module(architecture or model.config.model_type), model, tensors)[0]


def _backward(
    module: Conversion, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Our tensors under the authors' names, and the names (as the key map writes them) of those left over."""
    key_map, names = KeyMap.of(module, model.config), Names.of(module, model)
    ours = {names.prefix + name: tensor.detach() for name, tensor in tensors.items()}
    originals, left = {}, []
    for step in key_map.backward(_one_of_each_tie(ours, names.ties, key_map)):
        if step.rule is None or step.lacking:
            left += [name for name in step.sources if name not in step.lacking]
        elif step.failure:
            raise ShapeMismatchError(f"`{_name(module)}` cannot lead back: {step.failure}.")
        originals |= {key: tensor.contiguous() for key, tensor in zip(step.targets, step.tensors)}
    return originals, left


# --- what a module declares ---------------------------------------------------------------------------------------


def _name(module: Conversion) -> str:
    return vars(module).get("__name__", module.MODEL_TYPE).rpartition(".")[2]


def _declared(module: Conversion, constant: str, *arguments: Any) -> Any:
    """The optional declaration `NAME`, or what the function `name` of the same module returns for `arguments`."""
    declarations = vars(module)
    if constant.lower() in declarations and arguments:
        return declarations[constant.lower()](*arguments)
    return declarations.get(constant, {})


def _original_config(module: Conversion, original_config: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    if original_config is None:
        return None
    if isinstance(original_config, str):
        variants = _declared(module, "VARIANTS")
        if original_config not in variants:
            raise WrongConfigError(
                f"`{_name(module)}` has no published variant `{original_config}`; it has {listing(variants, 99)}."
            )
        return dict(variants[original_config].config)
    if not isinstance(original_config, Mapping):
        raise WrongConfigError(
            f"original_config is a {type(original_config).__name__}; expected a dict with the authors' own names, "
            "or the name of a published variant."
        )
    return dict(original_config)


def our_config(
    module: Conversion, original_config: dict[str, Any] | None, originals: Mapping[str, torch.Tensor]
) -> PreTrainedConfig:
    """The configuration that `module` makes of the authors' own.

    Raises:
        WrongConfigError: it lacks an entry, or holds one that makes no model.
    """
    try:
        return module.config_from_original(original_config, _Originals(originals))
    except ConversionError:
        raise
    except KeyError as error:
        raise WrongConfigError(
            f"original_config of `{_name(module)}` lacks {error}; it has "
            f"{listing(original_config or {}, 20)}. Pass the authors' configuration, in their own names."
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        advice = "Pass the authors' configuration, in their own names"
        what = "none was given" if original_config is None else f"it makes no model: {error}"
        raise WrongConfigError(f"original_config of `{_name(module)}`: {what}. {advice}.") from error


def head_class(
    module: Conversion,
    head: str | None,
    originals: Mapping[str, torch.Tensor],
    original_config: dict[str, Any] | None,
) -> type[PreTrainedModel]:
    """The model class for `head`, or for the head that the checkpoint holds.

    Raises:
        UnknownHeadError: `HEADS` has no such entry.
    """
    if head is None and "head_from_state_dict" in vars(module):
        head = module.head_from_state_dict(_Originals(originals), original_config)
    if head not in module.HEADS:
        raise UnknownHeadError(
            f"`{_name(module)}` has no head {head!r}; it has {listing(module.HEADS, 99)}. Name one with `head`."
        )
    found = module.HEADS[head]
    if isinstance(found, str):
        ours = module.MODEL_TYPE in ARCHITECTURES
        found = getattr(import_module(f"...models.{module.MODEL_TYPE}", __name__) if ours else transformers, found)
    return found


# --- the checkpoint -----------------------------------------------------------------------------------------------


class _Originals(dict):
    """The tensors of a checkpoint; a key that is looked up in vain is named in the error."""

    def __missing__(self, key: str) -> torch.Tensor:
        raise MissingKeysError(f"The checkpoint lacks `{key}`; it has {listing(self)}. Is it another model's?")


def read_originals(module: Conversion, checkpoint: str | Path | Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under the authors' names, out of the wrappings of training scripts.

    Containers (`CONTAINERS`, such as `{"model": ..., "epoch": 3}`) are opened, trees are joined with `/`, and a prefix
    that every key has (`PREFIXES`, such as `module.`) is taken off. A module that needs others declares its own.

    Raises:
        NotACheckpointError: there are no tensors in it.
    """
    tree = checkpoint if isinstance(checkpoint, Mapping) else read(checkpoint)
    copy = tree is checkpoint
    while inside := [
        name
        for name in _declared(module, "CONTAINERS") or CONTAINERS
        if isinstance(tree.get(name), Mapping) and any(True for _ in _leaves(tree[name]))
    ]:
        tree = tree[inside[0]]
    originals = {key: _tensor(value, copy) for key, value in _leaves(tree)}
    if not any(isinstance(value, torch.Tensor) for value in originals.values()):
        raise NotACheckpointError(
            f"No tensors in this checkpoint; its entries are {listing(tree)}. Expected a state dict, or a dict that "
            f"holds one under one of {', '.join(CONTAINERS)}."
        )
    prefixes = _declared(module, "PREFIXES") or PREFIXES
    while prefix := next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in originals)), None):
        originals = {key.removeprefix(prefix): value for key, value in originals.items()}
    return originals


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _tensor(value: Any, copy: bool) -> Any:
    """`value` as a tensor of its own memory; what is neither a tensor nor an array stays and is reported later."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if copy else value.detach()
    if isinstance(value, np.generic | np.ndarray):
        array = np.array(value)
        if array.dtype.name == "bfloat16":  # the type jax brings along; torch reads it through its bits
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(array)
    return value


# --- the model ----------------------------------------------------------------------------------------------------


def skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model without memory: names and shapes on the meta device, whatever its size.

    Raises:
        WrongConfigError: the class refuses the configuration.
    """
    try:
        with torch.device("meta"):
            return model_class(config)
    except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise WrongConfigError(f"{model_class.__name__} cannot be built from this configuration: {error}.") from error


@dataclass(frozen=True)
class Names:
    """The keys of a model as the key map writes them: {full key: shape}, and the tied ones {full key: its source}."""

    prefix: str
    shapes: dict[str, torch.Size]
    ties: dict[str, str]

    @classmethod
    def of(cls, module: Conversion, model: PreTrainedModel) -> "Names":
        prefix = f"{model.base_model_prefix}."
        rules = _declared(module, "KEY_MAP", model.config)
        if model.base_model is not model or not any(t.text.startswith(prefix) for rule in rules for t in rule.ours):
            prefix = ""
        return cls(
            prefix,
            {prefix + name: tensor.shape for name, tensor in model.state_dict().items()},
            {prefix + name: prefix + source for name, source in model.all_tied_weights_keys.items()},
        )


def _one_of_each_tie(
    tensors: dict[str, torch.Tensor], ties: dict[str, str], key_map: "KeyMap"
) -> dict[str, torch.Tensor]:
    """`tensors` with each tied group under one name: its source's, unless only another name leads to an original."""
    tensors = dict(tensors)
    for name, source in ties.items():
        if name in tensors:
            tensor = tensors.pop(name)
            if key_map.origin(source) is None and key_map.origin(name) is not None:
                tensors[name] = tensors.pop(source, tensor)
            else:
                tensors.setdefault(source, tensor)
    return tensors


def _build(model: PreTrainedModel, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None) -> PreTrainedModel:
    """Gives a skeleton its weights; buffers outside the state dict are computed by the model's own `_init_weights`."""
    if dtype is not None:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    model.to_empty(device="cpu")
    model.load_state_dict(tensors, strict=False, assign=True)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # leaves only the buffers outside the state dict for `init_weights`
    model.init_weights()
    float_dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(float_dtypes) == 1:
        model.config.dtype = float_dtypes.pop()
    return model.eval()


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = vars(torch).get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise WrongConfigError(f"dtype is {dtype!r}; expected a floating-point dtype such as float16 or bfloat16.")
    return found


# --- the map ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyMap:
    """The rules of a module for one configuration, and the templates of what it ignores with their reasons."""

    rules: list[Rule]
    ignored: dict[str, str]

    @classmethod
    def of(cls, module: Conversion, config: PreTrainedConfig) -> "KeyMap":
        return cls(list(_declared(module, "KEY_MAP", config)), dict(_declared(module, "IGNORE", config)))

    def claim(self, original: str) -> Claim | None:
        """Who has an original key: its rule, the place among the rule's templates, what the holes stand for."""
        for index, rule in enumerate(self.rules):
            for place, template in enumerate(rule.originals):
                if (captures := template.match(original)) is not None:
                    return index, place, captures
        return None

    def origin(self, ours: str) -> Claim | None:
        """The same for one of our keys: the first rule that leads back to originals which it would claim itself."""
        for index, rule in enumerate(self.rules):
            for place, template in enumerate(rule.ours):
                captures = template.match(ours)
                if captures is not None and self._returns(index, captures):
                    return index, place, captures
        return None

    def _returns(self, index: int, captures: Captures) -> bool:
        keys = [template.fill(captures) for template in self.rules[index].originals]
        return all(
            self.claim(key) == (index, place, captures) and reason_for(self.ignored, key) is None
            for place, key in enumerate(keys)
        )

    def forward(self, originals: Mapping[str, torch.Tensor]) -> Iterator["Step"]:
        """The rules applied to originals, one step for each group of tensors that a rule reads together."""
        yield from self._steps(originals, self.claim, backward=False)

    def backward(self, ours: Mapping[str, torch.Tensor]) -> Iterator["Step"]:
        """The rules applied to our tensors in reverse."""
        yield from self._steps(ours, self.origin, backward=True)

    def _steps(
        self, tensors: Mapping[str, torch.Tensor], claim: Callable[[str], Claim | None], backward: bool
    ) -> Iterator["Step"]:
        groups: dict[tuple[int, Captures], None] = {}
        for name in tensors:
            if claimed := claim(name):
                groups[claimed[0], claimed[2]] = None
            else:
                yield Step(None, [name], [])
        for index, captures in groups:
            rule = self.rules[index]
            sources, targets = (rule.ours, rule.originals) if backward else (rule.originals, rule.ours)
            step = Step(index, [t.fill(captures) for t in sources], [t.fill(captures) for t in targets])
            step.lacking = [name for name in step.sources if name not in tensors]
            if not step.lacking:
                inputs = [tensors[name] for name in step.sources]
                try:
                    step.tensors = rule.backward(inputs) if backward else rule.forward(inputs)
                except (ValueError, RuntimeError) as error:
                    step.failure = f"{step.sources[0]} {list(inputs[0].shape)}: {error}"
            yield step


@dataclass
class Step:
    """One application of a rule.

    Args:
        rule: its place in the key map; `None` if no rule has the one key in `sources`.
        sources: keys read.
        targets: keys written.
        tensors: one for each of `targets`, if the rule could be applied.
        lacking: which of `sources` are not there.
        failure: why the shapes do not suit the rule.
    """

    rule: int | None
    sources: list[str]
    targets: list[str]
    tensors: list[torch.Tensor] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    failure: str | None = None


@dataclass
class Mapped:
    """What became of a checkpoint.

    Args:
        tensors: {our key: tensor} for every key of the model but the tied ones.
        rules_used: which rules had a key, by their place in the key map.
        ignored: {original key: why it was dropped}.
        completed: our keys that the checkpoint does not publish, see `COMPLETE`.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rules_used: set[int] = field(default_factory=set)
    ignored: dict[str, str] = field(default_factory=dict)
    completed: list[str] = field(default_factory=list)


def reason_for(reasons: Mapping[str, str], key: str) -> str | None:
    """The reason of the first template in `reasons` that matches `key`."""
    return next((reason for text, reason in reasons.items() if Template(text).match(key) is not None), None)


def map_originals(
    module: Conversion,
    model: PreTrainedModel,
    originals: Mapping[str, torch.Tensor],
    original_config: dict[str, Any] | None = None,
) -> Mapped:
    """Maps originals onto the keys of `model` (a `skeleton`), as exactly as the module's docstring says.

    Tensors on the meta device are mapped by name and shape alone: values are not compared and nothing is completed.

    Raises:
        ConversionError: with both sides listed.
    """
    key_map, names = KeyMap.of(module, model.config), Names.of(module, model)
    copies = _copies(module, model.config, originals)
    mapped, faults = Mapped(), Faults(_name(module), type(model).__name__, len(originals), len(names.shapes))

    wanted = {}
    for key, value in {**copies, **originals}.items():
        if reason := reason_for(key_map.ignored, key):
            mapped.ignored[key] = reason
        elif isinstance(value, torch.Tensor):
            wanted[key] = value
        else:
            faults.unmapped.append(f"{key} (a {type(value).__name__}, not a tensor)")

    met = set()
    for step in key_map.forward(wanted):
        if step.rule is None:
            faults.unmapped += [key for key in step.sources if key not in copies]
            continue
        mapped.rules_used.add(step.rule)
        met.update(step.targets)
        faults.missing += [f"{key} (read together with {step.sources})" for key in step.lacking]
        if step.failure:
            faults.misshapen.append(step.failure)
        for name, tensor in zip(step.targets, step.tensors):
            if name in mapped.tensors:
                raise KeyMapError(f"`{_name(module)}` fills `{name}` twice, the second time from {step.sources}.")
            if name not in names.shapes:
                faults.unmapped.append(f"{', '.join(step.sources)} (its place would be {name})")
            elif tensor.shape != names.shapes[name]:
                shapes = f"{list(tensor.shape)} for {name} {list(names.shapes[name])}"
                faults.misshapen.append(f"{', '.join(step.sources)} {shapes}")
            else:
                mapped.tensors[name] = tensor

    _untie(mapped.tensors, names.ties)
    missing = [name for name in names.shapes if name not in names.ties and name not in met | mapped.tensors.keys()]
    elsewhere = _declared(module, "COMPLETE")
    mapped.completed = [name for name in missing if reason_for(elsewhere, name)]
    faults.missing += [name for name in missing if name not in mapped.completed]
    faults.report()

    if mapped.completed and not any(tensor.is_meta for tensor in mapped.tensors.values()):
        mapped.tensors |= _completed(module, model, names, mapped.completed, original_config)
    _refuse_non_finite(mapped.tensors)
    mapped.tensors = _unshared({name.removeprefix(names.prefix): t for name, t in mapped.tensors.items()})
    return mapped


@dataclass
class Faults:
    """What is wrong between the keys of a checkpoint and those of a model, all of it told at once."""

    architecture: str
    model: str
    given: int
    expected: int
    unmapped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def report(self) -> None:
        """Raises the gravest fault, if there is any, with all of them in its message."""
        kinds = [
            (self.unmapped, UnmappedKeysError, "keys of the checkpoint have no place in the model"),
            (self.missing, MissingKeysError, "keys are not in the checkpoint"),
            (self.misshapen, ShapeMismatchError, "shapes differ"),
        ]
        if not (found := [kind for kind in kinds if kind[0]]):
            return
        lines = "; ".join(f"{what}, {listing(names)}" for names, _, what in found)
        advice = (
            "The configuration is not the checkpoint's: pass the right original_config."
            if not self.unmapped
            else "Is it a checkpoint of this architecture, and of this head?"
        )
        raise found[0][1](
            f"`{self.architecture}`: a checkpoint of {self.given} keys does not fill {self.model} with its "
            f"{self.expected} keys: {lines}. {advice}"
        )


def _copies(module: Conversion, config: PreTrainedConfig, originals: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The originals that are computed or copies of others. Where the checkpoint has them, they must agree."""
    copies = {}
    if "derived" in vars(module):
        copies = dict(module.derived(config, _Originals(originals)))
        _require_equal(originals, copies, "what the original computes", 1e-5)
    for alias, source in ((Template(a), Template(s)) for a, s in _declared(module, "ALIASES", config).items()):
        aliased = {
            alias.fill(captures): tensor
            for key, tensor in {**copies, **originals}.items()
            if (captures := source.match(key)) is not None
        }
        _require_equal(originals, aliased, f"its tied weight {source}", 0)
        copies |= aliased
    return copies


def _require_equal(
    originals: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str, tolerance: float
) -> None:
    """Compares where both are; `tolerance` is for floating point, that other versions of torch round otherwise."""
    for key in originals.keys() & expected.keys():
        came, want = originals[key], expected[key]
        if came.shape != want.shape or not (
            came.is_meta or want.is_meta or torch.allclose(came.double(), want.double(), rtol=0, atol=tolerance)
        ):
            raise InconsistentWeightsError(
                f"`{key}` {list(came.shape)} differs from {what} {list(want.shape)}; they must be equal. "
                "Is original_config that of this checkpoint?"
            )


def _untie(tensors: dict[str, torch.Tensor], ties: Mapping[str, str]) -> None:
    """Leaves one tensor for every tied group, in place, under the name of its source."""
    for name in ties.keys() & tensors.keys():
        source, tensor = ties[name], tensors.pop(name)
        if not tensor.is_meta and source in tensors and not torch.equal(tensors[source], tensor):
            raise InconsistentWeightsError(
                f"The model ties {name} to {source}, but the checkpoint has different weights for them. "
                "The configuration should not tie them (`tie_word_embeddings`)."
            )
        tensors.setdefault(source, tensor)


def _completed(
    module: Conversion,
    model: PreTrainedModel,
    names: Names,
    missing: list[str],
    original_config: dict[str, Any] | None,
) -> dict[str, torch.Tensor]:
    """The tensors for keys that the checkpoint does not publish, from where the module finds them."""
    found = {}
    if "complete" in vars(module):
        found = module.complete(model.config, list(missing), original_config)
    lacking = [name for name in missing if name not in found]
    if lacking or len(found) > len(missing):
        elsewhere = sorted({reason_for(module.COMPLETE, name) for name in lacking})
        raise MissingKeysError(
            f"The checkpoint of `{_name(module)}` does not hold the whole model. Still missing are {listing(lacking)} "
            f"({'; '.join(elsewhere)}); superfluous are {listing(set(found) - set(missing))}."
        )
    for name, tensor in found.items():
        if tensor.shape != names.shapes[name]:
            raise ShapeMismatchError(
                f"{name} is {list(names.shapes[name])} in the model and {list(tensor.shape)} in "
                f"{reason_for(module.COMPLETE, name)}."
            )
    return {name: tensor.detach() for name, tensor in found.items()}


def _refuse_non_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    floats = {name: t for name, t in tensors.items() if t.is_floating_point() and not t.is_meta}
    if broken := [name for name, tensor in floats.items() if not tensor.isfinite().all()]:
        raise NonFiniteWeightsError(
            f"NaN or infinite values in {listing(broken)}. The file is damaged, or its training had diverged: "
            "fetch it again or take another one."
        )


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, each the only one of its memory: parts of a cut tensor would keep the whole alive."""
    seen = set()
    for name, tensor in tensors.items():
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        if not tensor.is_meta and (not whole or tensor.data_ptr() in seen):
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensors[name].data_ptr())
    return tensors
