"""Reads pickles without running them: what they name is looked up in a short table, never imported.

A class that is not in the table becomes a `Record`, which holds the attributes of the pickled object and does nothing
else; so `argparse.Namespace`, optimisers and whole `nn.Module`s can be read without the packages that define them. A
pickle that wants to *call* anything outside the table is refused by name.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from hf_mmunify.conversion.errors import NotACheckpointError, UnsafeCheckpointError


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a file that `torch.save` wrote before torch 1.6."""


def read_zip(path: Path) -> Any:
    """What `torch.save` wrote, in its zip format; or `torch.jit.save`, whose format holds code beside the same."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        program = next(name for name in names if name.endswith("data.pkl"))
        folder = program.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise NotACheckpointError(f"{path.name} was written on a big-endian machine. Save it on another one.")

        def storage(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
            entry = archive.getinfo(f"{folder}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < numel * dtype.itemsize:
                raise NotACheckpointError(f"{path.name}: storage {key} is not as `torch.save` writes it.")
            return _elements(archive.read(entry), dtype, numel)

        with archive.open(program) as file:
            return plain(_Unpickler(file, _once(storage)).load())


def read_stream(path: Path) -> Any:
    """What `torch.save` wrote in its legacy format, or a plain pickle."""
    with path.open("rb") as file:
        first = _Unpickler(file, _no_storage).load()
        if not isinstance(first, int) or first != LEGACY_MAGIC:
            return plain(first)
        for _ in range(2):  # protocol version and byte order of the machine
            _Unpickler(file, _no_storage).load()
        size = path.stat().st_size
        storages = {}

        def storage(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
            if numel * dtype.itemsize > size:
                raise NotACheckpointError(f"{path.name} is truncated: storage {key} is larger than the file.")
            return storages.setdefault(key, torch.empty(numel, dtype=dtype))

        tree = _Unpickler(file, storage).load()
        for key in _Unpickler(file, _no_storage).load():
            raw = file.read(8 + storages[key].nbytes)[8:]  # the first 8 bytes say how many elements
            storages[key].copy_(_elements(raw, storages[key].dtype, storages[key].numel()))
        return plain(tree)


def plain(tree: Any) -> Any:
    """The tree with every pickled `nn.Module`, and every module of TorchScript, replaced by its state dict."""
    if _is_scripted(tree):
        return _scripted_state_dict(tree)
    if isinstance(tree, Record) and "_modules" in vars(tree):
        return _state_dict(tree)
    if isinstance(tree, Mapping) and not isinstance(tree, Record):
        return {key: plain(value) for key, value in tree.items()}
    return tree


def _state_dict(module: "Record", prefix: str = "") -> dict[str, torch.Tensor]:
    state = vars(module)
    transient = state.get("_non_persistent_buffers_set", ())
    named = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    tensors = {prefix + name: t for name, t in named.items() if t is not None and name not in transient}
    for name, child in state["_modules"].items():
        if child is not None:
            tensors |= _state_dict(child, f"{prefix}{name}.")
    return tensors


def _is_scripted(tree: Any) -> bool:
    return isinstance(tree, Record) and type(tree).__module__.partition(".")[0] == "__torch__"


def _scripted_state_dict(module: "Record", prefix: str = "") -> dict[str, torch.Tensor]:
    """TorchScript keeps parameters, buffers and children side by side, as plain attributes, among constants."""
    tensors = {}
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        elif _is_scripted(value):
            tensors |= _scripted_state_dict(value, f"{prefix}{name}.")
    return tensors


class _Uncallable(type):
    """The classes of records: they can be instantiated as pickle does it, but not called."""

    def __call__(cls, *arguments, **options):
        raise UnsafeCheckpointError(
            f"This pickle asks to call `{cls.__module__}.{cls.__qualname__}`, which no checkpoint needs; "
            "nothing was run. If you trust its author, load it where it was made and save its state dict alone."
        )


class Record(dict, metaclass=_Uncallable):
    """An inert stand-in for an object of a class that is not imported: attributes, and items if it was a dict."""

    __hash__ = object.__hash__

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, Mapping):
                vars(self).update(part)


class _Unpickler(pickle.Unpickler):
    """pickle's own machine, over the table below instead of over everything that can be imported."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], torch.Tensor]):
        super().__init__(file, encoding="latin1")  # how numpy arrays of python 2 are read
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGES:
            return STORAGES[name]
        known = HARMLESS.get(f"{module}.{name}")
        return known if known is not None else _Uncallable(name, (Record,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the legacy format keeps the source text of a module's class beside it
            return pid[1]
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(numel, int) or numel < 0:
            raise ValueError(f"{pid!r:.80} is no storage of a tensor")
        storage = self._storage(str(key), dtype, numel)
        if view and view[0] is not None:
            _, offset, length = view[0]
            storage = storage[offset : offset + length]
        return storage


def _once(storage: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Keeps shared storages shared: tied weights are stored once."""
    loaded = {}

    def get(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        if key not in loaded:
            loaded[key] = storage(key, dtype, numel)
        return loaded[key]

    return get


def _no_storage(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
    raise ValueError(f"a plain pickle refers to the tensor storage {key}")


def _elements(raw: bytes, dtype: torch.dtype, numel: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=dtype, count=numel) if numel else torch.empty(0, dtype=dtype)


# What the table offers in place of the functions that pickles name. None of them runs anything of the file's.


def _tensor(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


def _array(_class, _shape, _dtype):
    return np.ndarray((0,), np.int8)  # pickle then gives it shape, type and bytes through `__setstate__`


def _filled_array(raw, dtype, shape, order):
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _scalar(dtype, raw):
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, dtype)[0]


def _encode(text, encoding):
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


def _object(record_class, base, _state):
    if not isinstance(record_class, _Uncallable) or base not in (object, dict):
        raise ValueError(f"{record_class!r:.80} is no class of a plain object")
    return record_class.__new__(record_class)


def _inert(name: str) -> Callable[..., Record]:
    def make(*_arguments):
        record_class = _Uncallable(name, (Record,), {})
        return record_class.__new__(record_class)

    return make


STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}

HARMLESS: dict[str, Any] = {
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, complex, slice, object, list, dict, tuple)},
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _object,
    "functools.partial": _inert("partial"),
    **{f"pathlib.{name}": lambda *parts: "/".join(parts) for name in ("Path", "PosixPath", "WindowsPath")},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    # TorchScript's typed lists and dicts
    **{f"torch.jit._pickle.build_{kind}list": lambda values: values for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda value, _type: value,
    "torch.device": lambda *arguments: ":".join(map(str, arguments)),
    "torch.Size": tuple,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _filled_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
