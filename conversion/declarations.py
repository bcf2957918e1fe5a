"""What a conversion module declares.

| name | what |
|---|---|
| `MODEL_TYPE` | the `model_type` of the configuration it makes |
| `SOURCE` | `Source`: repository, commit, licence of the code and of the weights; `None` if none was published |
| `HEADS` | {head name or `None`: model class, or its name in the architecture's package or in `transformers`} |
| `config_from_original(original_config, state_dict)` | their configuration (or `None`) and tensors -> ours |
| `KEY_MAP` or `key_map(config)` | list of rules (`hf_mmunify.conversion.rules`); the first that matches a key has it |
| `VARIANTS` | optional: {published name: `Variant`} |
| `UNPUBLISHED` | optional: {template of an original key: why it has a rule, though no published checkpoint has it} |
| `IGNORE` or `ignore(config)` | optional: {template of an original key: why it is dropped}; asked before the rules |
| `ALIASES` or `aliases(config)` | optional: {template of an original key: template of the key that it is a copy of} |
| `derived(config, originals)` | optional: {original key: tensor} that the original computes itself (position ids) |
| `COMPLETE` | optional: {template of our key: where it comes from when the checkpoint does not publish it} |
| `complete(config, missing, original_config)` | optional: {our key: tensor} for `missing`, which `COMPLETE` names |
| `head_from_state_dict(state_dict, original_config)` | optional: the head, when the caller names none |
| `processor(original_config)` | optional: the processor to save beside the model |
| `config_in_checkpoint(checkpoint)` | optional: their configuration, if the caller gives none and the file holds it |
| `CONTAINERS`, `PREFIXES` | optional: see `hf_mmunify.conversion.engine.read_originals` |

A `config` is that of the model, and its `architectures` name the class, where heads differ in more than their keys.
Our keys are written as a model with a head has them; for the bare base model the engine takes its prefix off. Keys of
`ALIASES` and `derived` are checked where a checkpoint has them, supplied where it lacks them, and always exported.
The module ends with `convert, export = bind(__name__)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType, SimpleNamespace
from typing import Any

from hf_mmunify.conversion.errors import NotACheckpointError, UnknownArchitectureError, WrongConfigError, listing
from hf_mmunify.conversion.rules import KeyMap, Template


MACHINERY = {"declarations", "engine", "errors", "readers", "rules"}
"""The modules of this folder that are no conversion of an architecture."""

MANIFESTS = Path(__file__).parent / "manifests"

Conversion = ModuleType | SimpleNamespace


@dataclass(frozen=True)
class Source:
    """Where the original is: `repository` (owner/name), its `commit`, and the licences of its code and weights."""

    repository: str
    commit: str
    code_license: str
    weights_license: str


@dataclass(frozen=True)
class Variant:
    """One published checkpoint. Its keys and shapes are in `manifests/<x>/<manifest>.txt`.

    Args:
        config: the authors' configuration, in their own names.
        parameters: number of parameters of the whole converted model, tied ones counted once.
        file: name of the published file.
        head: key of `HEADS`.
        sha256: of the published file, if known.
        manifest: name of the variant that has the same keys and shapes; by default its own.
    """

    config: Mapping[str, Any]
    parameters: int
    file: str
    head: str | None = None
    sha256: str | None = None
    manifest: str | None = None


def conversion_names() -> list[str]:
    """The architectures that have a conversion module, sorted."""
    return sorted({found.name for found in iter_modules([str(Path(__file__).parent)])} - MACHINERY)


def conversion_module(architecture: str | Conversion) -> Conversion:
    """The conversion module of an architecture, by its name or its `model_type`; a module passes through.

    Raises:
        UnknownArchitectureError: there is none.
    """
    if not isinstance(architecture, str):
        return architecture
    architecture = architecture.replace("-", "_")  # as in "blip-2"
    if architecture not in conversion_names():
        raise UnknownArchitectureError(
            f"No conversion for architecture `{architecture}`; there are {listing(conversion_names(), 99)}."
        )
    return import_module(f"hf_mmunify.conversion.{architecture}")


def name_of(module: Conversion) -> str:
    """What a conversion module is called on the command line and in errors."""
    return vars(module).get("__name__", module.MODEL_TYPE).rpartition(".")[2]


def declared(module: Conversion, constant: str, *arguments: Any) -> Any:
    """An optional declaration: what the function `name` of the module returns for `arguments`, or its `NAME`."""
    declarations = vars(module)
    if arguments and constant.lower() in declarations:
        return declarations[constant.lower()](*arguments)
    return declarations.get(constant, {})


def key_map_of(module: Conversion, config: Any) -> KeyMap:
    """The rules of a module, and what it ignores, for a configuration of ours."""
    return KeyMap(list(declared(module, "KEY_MAP", config)), dict(declared(module, "IGNORE", config)))


def variant_of(module: Conversion, name: str) -> Variant:
    """A published variant by its name.

    Raises:
        WrongConfigError: there is no such variant.
    """
    variants = declared(module, "VARIANTS")
    if name not in variants:
        raise WrongConfigError(
            f"`{name_of(module)}` has no published variant `{name}`; it has {listing(variants, 99)}."
        )
    return variants[name]


def reason_for(reasons: Mapping[str, str], key: str) -> str | None:
    """The reason of the first template in `reasons` that matches `key`."""
    return next((reason for text, reason in reasons.items() if Template.of(text).match(key) is not None), None)


def manifest_path(module: Conversion, variant: str) -> Path:
    """Where the keys and shapes of a published variant are listed."""
    return MANIFESTS / name_of(module) / f"{variant_of(module, variant).manifest or variant}.txt"


def read_manifest(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The original keys of a checkpoint and their shapes: lines of `key<TAB>2,3`, nothing behind the tab for a scalar.

    Raises:
        NotACheckpointError: a line is something else.
    """
    shapes = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, tab, sizes = line.partition("\t")
        if not tab or key in shapes or not all(size.isdigit() for size in sizes.split(",") if sizes):
            raise NotACheckpointError(
                f"{path} has the line {line!r}; expected a new key, a tab and sizes such as 2,3."
            )
        shapes[key] = tuple(int(size) for size in sizes.split(",") if size)
    return shapes


def write_manifest(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The inverse of `read_manifest`; keys in their own order."""
    lines = [f"{key}\t{','.join(map(str, shape))}\n" for key, shape in shapes.items()]
    Path(path).write_text("".join(lines), encoding="utf-8")
