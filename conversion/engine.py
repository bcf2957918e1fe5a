"""The engine: applies the key map of a conversion module to a checkpoint, exactly, in both directions.

Exactly means: every original key is mapped or ignored for a stated reason, every key of the model is filled, shapes
and dtypes are kept, and nothing is guessed; else a named error of `hf_mmunify.conversion.errors` lists both sides.
What a conversion module declares is told in `hf_mmunify.conversion.declarations`, what its rules are in
`hf_mmunify.conversion.rules`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mmunify.conversion.declarations import (
    MACHINERY,
    Conversion,
    Source,
    Variant,
    conversion_module,
    conversion_names,
    declared,
    key_map_of,
    name_of,
    reason_for,
    variant_of,
)
from hf_mmunify.conversion.errors import (
    ConversionError,
    InconsistentWeightsError,
    KeyMapError,
    MissingKeysError,
    NonFiniteWeightsError,
    NotACheckpointError,
    ShapeMismatchError,
    UnknownHeadError,
    UnmappedKeysError,
    WrongConfigError,
    listing,
)
from hf_mmunify.conversion.readers import read
from hf_mmunify.conversion.rules import KeyMap, Merge, Permute, Rename, Reshape, Rule, Split, Template, Transpose
from hf_mmunify.registry import ARCHITECTURES


__all__ = [
    "MACHINERY",
    "ConversionError",
    "Merge",
    "MissingKeysError",
    "Permute",
    "Rename",
    "Reshape",
    "Rule",
    "Source",
    "Split",
    "Transpose",
    "UnmappedKeysError",
    "Variant",
    "WrongConfigError",
    "bind",
    "conversion_module",
    "conversion_names",
    "convert",
    "export",
    "export_tensors",
]

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net")
"""Under which names training scripts keep the weights inside a checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and `torch.compile` put before every key."""

REFUSALS = (StrictDataclassError, TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError)
"""What configurations and models raise over values that make no model."""

DERIVED_TOLERANCE = 1e-5
"""How far what the original computes itself may be from ours: other versions of its framework round otherwise."""


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
        ConversionError: one of the subclasses in `hf_mmunify.conversion.errors`. Weights that are NaN or infinite are
            among the reasons: no training that worked leaves any, so the file is damaged.
    """
    module = conversion_module(architecture)
    original_config = as_original_config(module, original_config)
    dtype = _float_dtype(dtype)
    tree = checkpoint if isinstance(checkpoint, Mapping) else read(checkpoint)
    if original_config is None:
        original_config = declared(module, "CONFIG_IN_CHECKPOINT", tree) or None
    originals = read_originals(module, tree, is_shared=tree is checkpoint)
    model_class = head_class(module, head, originals, original_config)
    model = skeleton(model_class, our_config(module, original_config, originals))
    return _filled(model, map_originals(module, model, originals, original_config).tensors, dtype)


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
    elsewhere = declared(module, "COMPLETE")
    if homeless := [name for name in homeless if reason_for(elsewhere, name) is None]:
        raise KeyMapError(
            f"`{name_of(module)}` has no rule that leads from these keys of {type(model).__name__} to the original: "
            f"{listing(homeless)}. If the model was changed (adapters, added layers), export it before that."
        )
    return {**_copies(module, _config_with_class(model), originals), **originals}


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
    key_map = key_map_of(module, _config_with_class(model))
    names = Names.of(model, key_map)
    ours = {names.prefix + name: tensor.detach() for name, tensor in tensors.items()}
    originals, left = {}, []
    for step in key_map.backward(_one_of_each_tie(ours, names.ties, key_map)):
        if step.rule is None or step.lacking:
            left += [name for name in step.sources if name not in step.lacking]
        elif step.failure:
            raise ShapeMismatchError(f"`{name_of(module)}` cannot lead back: {step.failure}.")
        originals |= {key: tensor.contiguous() for key, tensor in zip(step.targets, step.tensors)}
    return originals, left


def _one_of_each_tie(
    tensors: dict[str, torch.Tensor], ties: Mapping[str, str], key_map: KeyMap
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


class _Originals(dict):
    """The tensors of a checkpoint; a key that is looked up in vain is named in the error."""

    def __missing__(self, key: str) -> torch.Tensor:
        raise MissingKeysError(
            f"The checkpoint has no `{key}`, only {listing(self)}. Is it one of this architecture and configuration?"
        )


def read_originals(
    module: Conversion, checkpoint: str | Path | Mapping[str, Any], is_shared: bool = True
) -> dict[str, Any]:
    """The tensors of a checkpoint under the authors' names, out of the wrappings of training scripts.

    Containers (`CONTAINERS`, such as `{"model": ..., "epoch": 3}`) are opened; trees are joined with `/`, lists of
    state dicts with `.`; a prefix that every key has (`PREFIXES`, such as `module.`) is taken off. A module that needs
    others declares its own. Tensors of a state dict that others hold too (`is_shared`) are copied.

    Raises:
        NotACheckpointError: there are no tensors in it.
    """
    tree = checkpoint if isinstance(checkpoint, Mapping) else read(checkpoint)
    is_shared = is_shared and tree is checkpoint
    containers = vars(module).get("CONTAINERS", CONTAINERS)
    prefixes = vars(module).get("PREFIXES", PREFIXES)
    while isinstance(tree, Mapping) and (inside := [name for name in containers if _is_tree(tree.get(name))]):
        tree = tree[inside[0]]
    originals = {key: _as_tensor(value, is_shared) for key, value in _leaves(tree)}
    if not any(isinstance(value, torch.Tensor) for value in originals.values()):
        raise NotACheckpointError(
            f"No tensors in this checkpoint; its entries are {listing(tree)}. Expected a state dict, or a dict that "
            f"holds one under one of {', '.join(containers)}."
        )
    while prefix := next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in originals)), None):
        originals = {key.removeprefix(prefix): value for key, value in originals.items()}
    return originals


def _is_tree(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and len(value) > 0


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    is_list = isinstance(tree, list | tuple)
    for key, value in enumerate(tree) if is_list else tree.items():
        if _is_tree(value):
            yield from _leaves(value, f"{path}{key}{'.' if is_list else '/'}")
        else:
            yield f"{path}{key}", value


def _as_tensor(value: Any, is_shared: bool) -> Any:
    """`value` as a tensor of its own memory; what is neither a tensor nor an array stays and is reported later."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if is_shared else value.detach()
    if isinstance(value, np.generic | np.ndarray):
        array = np.array(value)
        if array.dtype.name == "bfloat16":  # the type that jax brings along; torch takes its bits
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(array)
    return value


def as_original_config(module: Conversion, original_config: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """The authors' configuration as a dict: a copy, or that of the published variant whose name is given.

    Raises:
        WrongConfigError: there is no such variant, or it is no dict.
    """
    if original_config is None:
        return None
    if isinstance(original_config, str):
        return dict(variant_of(module, original_config).config)
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
    advice = "Pass the authors' configuration in their own names, or the name of a published variant"
    if variants := declared(module, "VARIANTS"):
        advice += f" ({listing(variants)})"
    try:
        return module.config_from_original(original_config, _Originals(originals))
    except ConversionError:
        raise
    except KeyError as error:
        raise WrongConfigError(
            f"original_config of `{name_of(module)}` lacks {error}; it has {listing(original_config or {})}. {advice}."
        ) from error
    except REFUSALS as error:
        what = "none was given" if original_config is None else f"it makes no model ({_one_line(error)})"
        raise WrongConfigError(f"original_config of `{name_of(module)}`: {what}. {advice}.") from error


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
            f"`{name_of(module)}` has no head {head!r}; it has {listing(module.HEADS, 99)}. Name one with `head`."
        )
    found = module.HEADS[head]
    if not isinstance(found, str):
        return found
    is_ours = module.MODEL_TYPE in ARCHITECTURES
    package = import_module(f"hf_mmunify.models.{module.MODEL_TYPE}") if is_ours else transformers
    return vars(package)[found] if found in vars(package) else getattr(transformers, found)


def skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model without memory: names and shapes on the meta device, whatever its size.

    Raises:
        WrongConfigError: the class refuses the configuration.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)
    except REFUSALS as error:
        raise WrongConfigError(
            f"{model_class.__name__} cannot be built from this configuration: {_one_line(error)}"
        ) from error
    _config_with_class(model)
    return model


def _config_with_class(model: PreTrainedModel) -> PreTrainedConfig:
    """The model's config, which names its class, as saving it does: heads of one config may differ in their names."""
    model.config.architectures = [type(model).__name__]
    return model.config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Names:
    """The keys of a model as the key map writes them.

    Args:
        prefix: what the key map writes before the names of this model, if it is a base model.
        shapes: {name: shape} of all of them.
        ties: {name: its source} of those that share their source's memory.
    """

    prefix: str
    shapes: dict[str, torch.Size]
    ties: dict[str, str]

    @classmethod
    def of(cls, model: PreTrainedModel, key_map: KeyMap) -> "Names":
        prefix = f"{model.base_model_prefix}."
        is_prefixed = any(template.text.startswith(prefix) for rule in key_map.rules for template in rule.ours)
        if model.base_model is not model or not is_prefixed:
            prefix = ""
        return cls(
            prefix,
            {prefix + name: tensor.shape for name, tensor in model.state_dict().items()},
            {prefix + name: prefix + source for name, source in model.all_tied_weights_keys.items()},
        )


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


def map_originals(
    module: Conversion,
    model: PreTrainedModel,
    originals: Mapping[str, Any],
    original_config: dict[str, Any] | None = None,
) -> Mapped:
    """Maps originals onto the keys of `model` (a `skeleton`), as exactly as the module's docstring says.

    Tensors on the meta device are mapped by name and shape alone: values are not compared and nothing is completed.

    Raises:
        ConversionError: with both sides listed.
    """
    key_map = key_map_of(module, model.config)
    names = Names.of(model, key_map)
    mapped, faults = Mapped(), Faults(name_of(module), type(model).__name__, len(originals), len(names.shapes))

    weights = {}
    for key, value in originals.items():
        if reason := reason_for(key_map.ignored, key):
            mapped.ignored[key] = reason
        elif isinstance(value, torch.Tensor):
            weights[key] = value
        else:
            faults.unmapped.append(f"{key} (a {type(value).__name__}, not a tensor)")
    copies = _copies(module, model.config, weights)

    met = set()
    for step in key_map.forward({**copies, **weights}):
        if step.rule is None:
            faults.unmapped += [key for key in step.sources if key not in copies]
            continue
        mapped.rules_used.add(step.rule)
        met.update(step.targets)
        faults.missing += [f"{key} (to be read together with {step.sources[0]})" for key in step.lacking]
        if step.failure:
            faults.misshapen.append(step.failure)
        for name, tensor in zip(step.targets, step.tensors):
            whence = ", ".join(step.sources)
            if name in mapped.tensors:
                raise KeyMapError(f"`{name_of(module)}` fills `{name}` twice, the second time from {whence}.")
            if name not in names.shapes:
                if not copies.keys() >= set(step.sources):  # a copy need not have a place
                    faults.unmapped.append(f"{whence} (its place would be {name})")
            elif tensor.shape != names.shapes[name]:
                faults.misshapen.append(f"{whence} {list(tensor.shape)} for {name} {list(names.shapes[name])}")
            else:
                mapped.tensors[name] = tensor

    _untie(mapped.tensors, names.ties)
    missing = [name for name in names.shapes if name not in names.ties and name not in met | mapped.tensors.keys()]
    elsewhere = declared(module, "COMPLETE")
    mapped.completed = [name for name in missing if reason_for(elsewhere, name)]
    faults.missing += [name for name in missing if name not in mapped.completed]
    faults.report()

    if mapped.completed and not any(tensor.is_meta for tensor in mapped.tensors.values()):
        mapped.tensors |= _completed(module, model.config, names, mapped.completed, original_config)
    _refuse_non_finite(mapped.tensors)
    mapped.tensors = _unshared({name.removeprefix(names.prefix): t for name, t in mapped.tensors.items()})
    return mapped


@dataclass
class Faults:
    """What is wrong between the keys of a checkpoint and those of a model, collected so that all is told at once."""

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
            (self.missing, MissingKeysError, "keys of the model are not in the checkpoint"),
            (self.misshapen, ShapeMismatchError, "shapes differ"),
        ]
        if found := [kind for kind in kinds if kind[0]]:
            faults = "; ".join(f"{what}, {listing(names)}" for names, _, what in found)
            raise found[0][1](
                f"A checkpoint of {self.given} keys does not fill {self.model} with its {self.expected}: {faults}. Is "
                f"it an original checkpoint of `{self.architecture}`, of this head and of this original_config?"
            )


def _copies(
    module: Conversion, config: PreTrainedConfig, originals: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The originals that are computed, or copies of others. Where the checkpoint has them, they must agree."""
    copies = {}
    if "derived" in vars(module):
        copies = dict(module.derived(config, _Originals(originals)))
        _require_equal(originals, copies, "what the original computes", DERIVED_TOLERANCE)
    for alias, source in declared(module, "ALIASES", config).items():
        aliased = {
            Template.of(alias).fill(captures): tensor
            for key, tensor in {**copies, **originals}.items()
            if (captures := Template.of(source).match(key)) is not None
        }
        _require_equal(originals, aliased, f"`{source}`, to which the original ties it", 0)
        copies |= aliased
    return copies


def _require_equal(
    originals: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str, tolerance: float
) -> None:
    """Compares the keys that both have."""
    for key in originals.keys() & expected.keys():
        came, want = originals[key], expected[key]
        is_known = not (came.is_meta or want.is_meta)
        if came.shape != want.shape or (
            is_known and not torch.allclose(came.double(), want.double(), rtol=0, atol=tolerance)
        ):
            raise InconsistentWeightsError(
                f"`{key}` {list(came.shape)} differs from {what} {list(want.shape)}, but they must be equal. Is "
                "original_config that of this checkpoint?"
            )


def _untie(tensors: dict[str, torch.Tensor], ties: Mapping[str, str]) -> None:
    """Leaves one tensor of every tied group, in place, under the name of its source."""
    for name in ties.keys() & tensors.keys():
        source, tensor = ties[name], tensors.pop(name)
        if not tensor.is_meta and source in tensors and not torch.equal(tensors[source], tensor):
            raise InconsistentWeightsError(
                f"The model ties {name} to {source}, but the checkpoint has different weights for them. Its "
                "configuration must not tie them (`tie_word_embeddings`)."
            )
        tensors.setdefault(source, tensor)


def _completed(
    module: Conversion,
    config: PreTrainedConfig,
    names: Names,
    missing: list[str],
    original_config: dict[str, Any] | None,
) -> dict[str, torch.Tensor]:
    """The tensors for keys that the checkpoint does not publish, from where the module finds them."""
    found = module.complete(config, list(missing), original_config) if "complete" in vars(module) else {}
    lacking, superfluous = [name for name in missing if name not in found], found.keys() - set(missing)
    if lacking or superfluous:
        elsewhere = "; ".join(sorted({reason_for(module.COMPLETE, name) for name in lacking}))
        raise MissingKeysError(
            f"The checkpoint of `{name_of(module)}` does not hold the whole model. The rest comes from elsewhere "
            f"({elsewhere}), where these were not found: {listing(lacking)}; superfluous: {listing(superfluous)}."
        )
    for name, tensor in found.items():
        if tensor.shape != names.shapes[name]:
            raise ShapeMismatchError(
                f"{name} is {list(names.shapes[name])} in the model, but {list(tensor.shape)} in "
                f"{reason_for(module.COMPLETE, name)}. Is it the one that the checkpoint was trained with?"
            )
    return {name: tensor.detach() for name, tensor in found.items()}


def _refuse_non_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    floats = {name: t for name, t in tensors.items() if t.is_floating_point() and not t.is_meta}
    if broken := [name for name, tensor in floats.items() if not tensor.isfinite().all()]:
        raise NonFiniteWeightsError(
            f"NaN or infinite values in {listing(broken)}. The file is damaged, or its training had diverged: "
            "fetch it again, or take another one."
        )


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors with memory of their own: safetensors asks for it, and a part would keep the whole alive."""
    seen = set()
    for name, tensor in tensors.items():
        if tensor.is_meta:
            continue
        is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        if not is_whole or tensor.data_ptr() in seen:
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensors[name].data_ptr())
    return tensors


def _filled(model: PreTrainedModel, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None) -> PreTrainedModel:
    """Gives a skeleton its weights; buffers outside the state dict are computed by the model's own `_init_weights`."""
    if dtype is not None:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    model.to_empty(device="cpu")
    model.load_state_dict(tensors, strict=False, assign=True)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # what `init_weights` then finds without it are those buffers
    model.init_weights()
    float_dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(float_dtypes) == 1:
        model.config.dtype = float_dtypes.pop()
    return model.eval()


def _float_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = vars(torch).get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise WrongConfigError(f"dtype is {dtype!r}; expected a floating-point one, such as float16 or bfloat16.")
    return found
