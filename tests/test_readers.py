"""Every format of published checkpoints is read without its framework, and nothing in a file is ever run.

`golden/containers` holds files that TensorFlow, flax and torch wrote. Their checksums were taken with an independent
first version of these readers; neither those frameworks nor the package that the pickled module of the DALL-E file
comes from are installed here.
"""

import argparse
import enum
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_mmunify.conversion.errors import NotACheckpointError, UnsafeCheckpointError
from hf_mmunify.conversion.readers import flax, pickled, read
from hf_mmunify.conversion.readers.tensorflow import _unsnappy


CONTAINERS = Path(__file__).parent / "golden" / "containers"
WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1, 2], dtype=torch.int64)}
HALF = {"half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "scalar": torch.tensor(3.0)}


def flat(tree, path=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def checksum(tensors: dict[str, torch.Tensor]) -> int:
    total = 0
    for key in sorted(tensors):
        total = zlib.crc32(tensors[key].contiguous().numpy().tobytes(), zlib.crc32(key.encode(), total))
    return total


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


# --- what the frameworks wrote ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, count, key, shape, expected",
    [
        (
            "ckpt_pix2seq_vit",
            107,
            "model/decoder/ar_decoder.Sseq_pos_embedding/.ATTRIBUTES/VARIABLE_VALUE",
            (40, 24),
            0x5C87241F,
        ),
        ("unified_io_decoder.msgpack", 40, "decoder/cross_position_k_linear/kernel", (32, 16), 0xE3430FEC),
        ("dalle_tiny_encoder.pkl", 74, "blocks.group_1.block_1.res_path.conv_1.w", (4, 16, 3, 3), 0xB0A3F9C9),
    ],
)
def test_files_of_other_frameworks_are_read_bit_by_bit(name, count, key, shape, expected):
    tensors = dict(flat(read(CONTAINERS / name)))
    assert len(tensors) == count
    assert tensors[key].shape == shape
    assert checksum(tensors) == expected


@pytest.mark.parametrize("name", ["ckpt-7", "ckpt-7.index", "ckpt-7.data-00000-of-00001"])
def test_a_tensorflow_checkpoint_goes_by_its_prefix_or_by_any_of_its_files(name):
    step = read(CONTAINERS / "ckpt_pix2seq_vit" / name)["global_step/.ATTRIBUTES/VARIABLE_VALUE"]
    assert step.dtype == torch.int64 and step.shape == () and step == 7


# --- torch and safetensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(tmp_path, zipped):
    path = tmp_path / "model.pth"
    torch.save({"model": {**WEIGHTS, **HALF}, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    tree = read(path)
    assert tree["epoch"] == 3
    assert equal(tree["model"], {**WEIGHTS, **HALF})


def mixed_checkpoint() -> dict:
    """What `weights_only` refuses: arguments, numpy scalars and arrays, paths, defaultdicts, optimiser classes."""
    shared = torch.arange(12.0)
    return {
        "model": OrderedDict(WEIGHTS, **HALF, tied=WEIGHTS["a.weight"], view=shared[3:9].view(2, 3).t()),
        "args": argparse.Namespace(lr=1e-3, output=Path("runs/x")),
        "best": np.float64(0.5),
        "order": np.arange(6, dtype=np.int16).reshape(2, 3),
        "names": np.array(["cat", "dog"], dtype=object),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_training_scripts_leave_in_a_checkpoint_is_inert_data(tmp_path, zipped, protocol):
    path = tmp_path / "model.pth"
    expected = mixed_checkpoint()
    torch.save(expected, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    tree = read(path)
    assert equal(tree["model"], expected["model"])
    assert vars(tree["args"]) == {"lr": 1e-3, "output": "runs/x"}
    assert not isinstance(tree["args"], argparse.Namespace)
    assert tree["best"] == 0.5 and tree["size"] == (2, 3) and tree["dtype"] is torch.float16
    assert np.array_equal(tree["order"], expected["order"]) and list(tree["names"]) == ["cat", "dog"]
    assert torch.equal(tree["parameter"], torch.ones(2))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "features.pkl"
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.float16(2.5)}
    path.write_bytes(pickle.dumps(weights, protocol))
    if protocol < 2:  # these begin as text does; no published file is this old
        with pytest.raises(NotACheckpointError):
            read(path)
        return
    tree = read(path)
    assert np.array_equal(tree["w"], weights["w"]) and tree["half"] == 2.5 and tree["half"].dtype == np.float16


class Encoder(torch.nn.Module):
    """Pickled whole, and then read as if its class did not exist."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        self.nothing = None
        self.register_buffer("position_ids", torch.arange(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_module_gives_its_state_dict(tmp_path, zipped, monkeypatch):
    module, path = Encoder(), tmp_path / "encoder.pkl"
    torch.save({"net": module}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delattr(sys.modules[__name__], "Encoder")
    assert equal(read(path)["net"], module.state_dict())


def test_safetensors_alone_and_in_shards(tmp_path):
    save_file(WEIGHTS, tmp_path / "model-00001-of-00002.safetensors")
    save_file(HALF, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(WEIGHTS, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(HALF, "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert equal(read(tmp_path / "model-00001-of-00002.safetensors"), WEIGHTS)
    assert equal(read(index), {**WEIGHTS, **HALF})
    assert equal(read(tmp_path), {**WEIGHTS, **HALF})

    index.write_text(json.dumps({"weight_map": {**weight_map, "absent": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(NotACheckpointError, match="promises keys that its shards lack, 1: absent"):
        read(index)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(NotACheckpointError, match="outside its own folder"):
        read(index)
    index.write_text(json.dumps({"weight_map": {"a": "model-00003-of-00003.safetensors"}}))
    with pytest.raises(NotACheckpointError, match="no file"):
        read(index)


def test_a_folder_needs_exactly_one_checkpoint(tmp_path):
    with pytest.raises(NotACheckpointError, match="no checkpoint"):
        read(tmp_path)
    torch.save(WEIGHTS, tmp_path / "a.pt")
    (tmp_path / "README.md").write_text("A model.")
    assert equal(read(tmp_path), WEIGHTS)
    torch.save(WEIGHTS, tmp_path / "b.pt")
    with pytest.raises(NotACheckpointError, match=r"several checkpoints, 2: a.pt, b.pt"):
        read(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert equal(read(tmp_path), WEIGHTS)


# --- flax ---------------------------------------------------------------------------------------------------------


def packed(value) -> bytes:
    """msgpack of what a flax tree is made of, in the widest form of each type, which flax itself rarely needs."""
    match value:
        case dict():
            return b"\xdf" + struct.pack(">I", len(value)) + b"".join(packed(k) + packed(v) for k, v in value.items())
        case tuple() | list():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))
        case str():
            return b"\xdb" + struct.pack(">I", len(value)) + value.encode()
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return b"\xd3" + struct.pack(">q", value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case torch.Tensor():
            dtype = str(value.dtype).removeprefix("torch.")
            raw = value.view(torch.int16) if dtype == "bfloat16" else value
            inner = packed((tuple(value.shape), dtype, raw.numpy().tobytes()))
            return b"\xc9" + struct.pack(">IB", len(inner), 1) + inner
    raise TypeError(type(value))


def test_flax_trees(tmp_path):
    path = tmp_path / "checkpoint"
    whole = torch.arange(10.0).view(2, 5)
    chunks = {"0": whole.flatten()[:7], "1": whole.flatten()[7:]}
    tree = {
        "params": {"kernel": WEIGHTS["a.weight"], "half": HALF["half"]},
        "large": {flax.CHUNKED: True, "shape": {"0": 2, "1": 5}, "chunks": chunks},
        "step": -3,
        "lr": 0.25,
        "rng": None,
    }
    path.write_bytes(packed(tree))
    found = read(path)
    assert equal(found["params"], tree["params"])
    assert torch.equal(found["large"], whole)
    assert (found["step"], found["lr"], found["rng"]) == (-3, 0.25, None)


@pytest.mark.parametrize(
    "data, reason",
    [
        (packed({"w": torch.ones(4)})[:-3], "truncated or damaged"),
        (packed({"w": torch.ones(4)}) + b"\x00", "goes on after"),
        (b"\x81\xa1w" + b"\x91" * 300, "more than 200 deep"),
        (b"\x81\xa1w\xd4\x07\x00", "extension type 7"),
        (b"\x81\xa1w\xc1", "0xc1 begins no msgpack value"),
    ],
)
def test_damaged_flax_files(tmp_path, data, reason):
    path = tmp_path / "checkpoint.msgpack"
    path.write_bytes(data)
    with pytest.raises(NotACheckpointError, match=reason):
        read(path)


# --- TensorFlow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packed, text",
    [
        (b"\x05\x10hello", b"hello"),
        (b"\x0b\x04ab\x1d\x02\x00", None),  # says 11 bytes, gives 10
        (b"\x0a\x04ab\x11\x02", b"ababababab"[:10]),
        (b"\x0a\x04ab\x1e\x02\x00", b"ab" * 5),
        (b"\x48\xf0\x47" + bytes(72), bytes(72)),
    ],
)
def test_compressed_blocks(packed, text):
    if text is None:
        with pytest.raises(ValueError, match="unpacks to"):
            _unsnappy(packed)
    else:
        assert _unsnappy(packed) == text


@pytest.mark.parametrize(
    "damage, reason",
    [
        ("index", "truncated, or another thing"),
        ("data", "needs .* bytes and has"),
        ("absent", "data-00000-of-00001 is missing"),
        ("middle", "truncated or damaged"),
    ],
)
def test_damaged_tensorflow_checkpoints(tmp_path, damage, reason):
    for file in (CONTAINERS / "ckpt_pix2seq_vit").glob("ckpt-7*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index, data = tmp_path / "ckpt-7.index", tmp_path / "ckpt-7.data-00000-of-00001"
    match damage:
        case "index":
            index.write_bytes(index.read_bytes()[:-9])
        case "data":
            data.write_bytes(data.read_bytes()[:1000])
        case "absent":
            data.unlink()
        case "middle":
            index.write_bytes(index.read_bytes()[:500] + b"\xff" * 64 + index.read_bytes()[564:])
    with pytest.raises(NotACheckpointError, match=reason):
        read(tmp_path / "ckpt-7")


def test_of_several_tensorflow_checkpoints_the_latest_is_read(tmp_path):
    for name in ("ckpt-7", "ckpt-8"):
        for file in (CONTAINERS / "ckpt_pix2seq_vit").glob("ckpt-7*"):
            (tmp_path / file.name.replace("ckpt-7", name)).write_bytes(file.read_bytes())
    with pytest.raises(NotACheckpointError, match="2: ckpt-7, ckpt-8"):
        read(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/trained/elsewhere/ckpt-8"\n')
    assert len(read(tmp_path)) == 107


# --- what is no checkpoint ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Quota exceeded</body></html>", "HTML page"),
        (b"\n <HTML>Sign in</HTML>", "HTML page"),
        (b"learning_rate: 0.1\nepochs: 3\n", "text file that begins with 'learning_rate: 0.1'"),
        (b"\x1f\x8b\x08\x00" + bytes(32), "gzip archive; unpack it first"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(32), "HDF5"),
        (bytes(range(200, 256)), "56 bytes, beginning with c8 c9"),
        (bytes(8) + b"{}", "safetensors file, but is truncated or damaged"),
        (pickle.dumps([torch.ones(1).numpy()]), "holds a list"),
        (pickle.dumps({"w": 1})[:-3], "a pickle, but is truncated or damaged"),
    ],
)
def test_other_files_are_told_from_checkpoints(tmp_path, content, reason):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(NotACheckpointError, match=reason):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotACheckpointError, match=r"no file or folder .*nowhere\.pt"):
        read(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_files(tmp_path, kind, share):
    path = tmp_path / "model"
    weights = {f"layers.{i}.weight": torch.randn(16, 16) for i in range(8)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(NotACheckpointError, match="truncated"):
        read(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_archives_that_are_no_torch_files(tmp_path):
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(NotACheckpointError, match=r"zip archive, but not of torch.*1: readme\.txt"):
        read(path)


class Scripted(torch.nn.Module):
    """What TorchScript keeps beside weights: constants, typed lists and dicts, buffers that are not persistent."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).half())
        self.register_buffer("input_resolution", torch.tensor(224))
        self.names, self.sizes, self.places, self.ratio = ["a", "b"], [1, 2], {"a": 1}, (1, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = len(self.names) + self.sizes[0] + self.places["a"] + self.ratio[0] + self.input_resolution
        return self.blocks[0](x) * self.scale + count


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_programs_give_their_weights_and_are_not_run(tmp_path, monkeypatch, how):
    module, path = Scripted(), tmp_path / "program.pt"
    program = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(1, 2))
    torch.jit.save(program, path)
    for loader in ("torch.jit.load", "torch.load"):
        monkeypatch.setattr(loader, lambda *_, **__: pytest.fail("the program was loaded to be run"))
    weights, expected = read(path), module.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    assert all(weights[key].dtype == tensor.dtype for key, tensor in expected.items())


# --- what wants to be run -----------------------------------------------------------------------------------------


class Payload:
    """An object that, when it is unpickled as pickle does it, calls `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Colour(enum.Enum):
    RED = 1


def write_malicious(path: Path, kind: str, payload: Payload) -> None:
    if kind == "plain":
        path.write_bytes(pickle.dumps({"model": payload}))
    elif kind == "first":  # before the magic number of a legacy file
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save({"model": WEIGHTS, "args": payload}, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "first"])
@pytest.mark.parametrize(
    "function, name",
    [(os.system, f"{os.name}.system"), (eval, "builtins.eval"), (shutil.rmtree, "shutil.rmtree")],
    ids=["system", "eval", "rmtree"],
)
def test_a_malicious_pickle_is_refused_by_name_and_does_not_run(tmp_path, kind, function, name):
    trace, path = tmp_path / "trace", tmp_path / "model.pth"
    command = f"open({str(trace)!r}, 'w')" if function is eval else f"touch {trace}"
    write_malicious(path, kind, Payload(function, command))
    with pytest.raises(UnsafeCheckpointError, match=rf"asks to call `{name}`.*nothing was run"):
        read(path)
    assert not trace.exists()


def test_gadgets_are_refused(tmp_path):
    """Ways around a table of names: attributes of harmless things, old opcodes, other codecs, wrong classes."""
    trace, path = tmp_path / "trace", tmp_path / "model.pth"
    for program in (
        b"\x80\x04\x8c\x08builtins\x8c\x0bdict.fromkeys\x93\x8c\x01a\x85R.",  # a dotted name
        b"\x80\x02(cos\nsystem\nU\x04true" + b"o.",  # OBJ
        b"\x80\x02(U\x04trueios\nsystem\n.",  # INST
        b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R.",  # another codec
        b"\x80\x02ccopyreg\n_reconstructor\ncnumpy\ndtype\nc__builtin__\nobject\nN\x87R.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x01O\x85RU\x08aaaaaaaa\x86R.",  # object pointers
        b"\x80\x02K\x01Q.",  # a storage in a plain pickle
        b"\x80\x02\x82\x01.",  # the extension registry
        pickle.dumps(Payload(open, str(trace), "w")),
        pickle.dumps({"colour": Colour.RED}),
    ):
        path.write_bytes(program)
        with pytest.raises(NotACheckpointError):
            read(path)
    assert not trace.exists()


def test_a_storage_cannot_be_read_past_its_end(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"w": torch.arange(4.0), "args": argparse.Namespace()}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in entries if name.endswith("data.pkl"))
    entries[program] = entries[program].replace(b"K\x04", b"K\x64")  # every size 4 becomes 100
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(NotACheckpointError):
        pickled.read_zip(path)
    with pytest.raises(NotACheckpointError):
        read(path)
