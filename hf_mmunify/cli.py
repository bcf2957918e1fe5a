"""The command `hf-mmunify`: `list` what there is, `convert` an original checkpoint, `index` images, run the `demo`.

Errors that a user can mend are one line on stderr and exit code 2. A converted model appears whole or not at all: it
is written beside its place and renamed, so that a full disk or a killed process leaves what was there.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .embedding_index import EmbeddingIndex


class UsageError(Exception):
    """What the command was asked for cannot be done; the message says what to do instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own); returns the exit code, 0 or, for a user error, 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["demo"]:  # its options are its own
        from .demo import main as demo

        return demo(argv[1:]) or 0

    arguments = _parser().parse_args(argv)
    if arguments.command == "list":
        print("\n".join(_listing()))
        return 0
    if arguments.command == "tasks":
        from .tasks import task_table

        print(task_table())
        return 0
    from huggingface_hub.errors import HFValidationError
    from safetensors import SafetensorError

    from .conversion.errors import ConversionError
    from .embedding_index import EmbeddingIndexError

    expected = (UsageError, ConversionError, EmbeddingIndexError, OSError, SafetensorError, HFValidationError)
    try:
        _index(arguments) if arguments.command == "index" else _convert(arguments)
    except expected as error:
        print(f"hf-mmunify: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hf-mmunify", description="Multimodal transformers of 2018-2023 in transformers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("list", help="architectures, their classes, and published checkpoints that convert")
    commands.add_parser("tasks", help="which architecture does which task, by which Auto class and script")
    commands.add_parser("demo", help="train and evaluate Flamingo on real handwriting, in minutes; see `demo --help`")
    convert = commands.add_parser(
        "convert",
        help="make a transformers model of an original checkpoint",
        description="Writes config, safetensors, processor and model card of an original checkpoint to a folder.",
    )
    convert.add_argument("architecture", help="one of `hf-mmunify list`")
    convert.add_argument("checkpoint", type=Path, help="file or folder: torch, safetensors, TensorFlow, flax, pickle")
    convert.add_argument("out", type=Path, help="folder to write")
    convert.add_argument(
        "--config", help="the authors' configuration, a json or yaml file in their own names, or a published variant"
    )
    convert.add_argument("--head", help="which of the architecture's heads; default: what the checkpoint holds")
    convert.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="of the weights; default: as in the checkpoint"
    )
    convert.add_argument("--push", metavar="REPOSITORY", help="also push to this repository of the Hub, user/name")
    convert.add_argument("--private", action="store_true", help="make a new repository private")
    convert.add_argument("--overwrite", action="store_true", help="replace the model that is in the folder")
    _add_index(
        commands.add_parser(
            "index",
            help="keep embeddings of images, and find them by text or image",
            description="Encodes images once, and finds them by text or image with the half of the model this needs.",
        )
    )
    return parser


def _add_index(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    abouts = {
        "build": "make an index of the images of a folder or dataset",
        "add": "add the images of a folder or dataset",
        "remove": "remove images from the index; their files stay",
        "query": "find the most similar images",
        "info": "what is in the index, and which model it is of",
    }
    actions = {name: actions.add_parser(name, help=about, description=about) for name, about in abouts.items()}
    for action in actions.values():
        action.add_argument("index", type=Path, help="folder of the index")
    for name in ("build", "add"):
        action = actions[name]
        action.add_argument("source", help="folder of images, saved dataset, dataset of the Hub, or digit-scenes")
        action.add_argument("--split", default="train", help="of a dataset; default: train")
        action.add_argument("--image-column", default="image", help="of a dataset; default: image")
        action.add_argument("--id-column", help="of a dataset; default: rows are numbered")
        action.add_argument("--size", type=_positive, help="only the first so many images")
        action.add_argument("--batch-size", type=_positive, default=64, help="images at once; default: 64")
    actions["build"].add_argument("--model", required=True, help="repository of the Hub or folder of a model")
    actions["build"].add_argument("--revision", help="of the repository; default: its newest")
    actions["build"].add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="of the weights; default: as they were saved"
    )
    actions["build"].add_argument("--overwrite", action="store_true", help="replace the index that is in the folder")
    actions["remove"].add_argument("ids", nargs="+", metavar="id", help="as `query` prints it")
    asked = actions["query"].add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", nargs="+", help="what to find; several texts are several queries")
    asked.add_argument("--image", type=Path, nargs="+", help="file of an image to find similar ones of")
    actions["query"].add_argument("-k", type=_positive, default=10, help="how many to find; default: 10")
    actions["query"].add_argument("--json", action="store_true", help="print json")
    for name in ("build", "add", "query"):
        actions[name].add_argument("--device", default="cpu", help="where to put the model; default: cpu")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _listing() -> Iterator[str]:
    """Everything the package knows, a paragraph for each architecture."""
    from .conversion.declarations import conversion_module, conversion_names, declared
    from .registry import ARCHITECTURES

    for name in sorted({*ARCHITECTURES, *conversion_names()}):
        yield name
        for auto_class, class_name in ARCHITECTURES.get(name, {}).items():
            yield f"  {auto_class:<32} {class_name}"
        if name not in conversion_names():
            continue
        module = conversion_module(name)
        if module.SOURCE is not None:
            yield f"  converts checkpoints of {module.SOURCE.repository}@{module.SOURCE.commit[:8]}"
        if heads := [head for head in module.HEADS if head is not None]:
            yield f"  heads: {', '.join(heads)}"
        for variant, about in declared(module, "VARIANTS").items():
            yield f"    {variant:<40} {about.parameters:>15,} parameters  {about.file}"


def _index(arguments: argparse.Namespace) -> None:
    from .embedding_index import EmbeddingIndex

    if arguments.action == "build":
        _build_index(arguments)
        return
    index = EmbeddingIndex.load(arguments.index)
    if arguments.action == "add":
        added = index.add(_images(arguments), batch_size=arguments.batch_size, device=arguments.device)
        index.save(arguments.index)
        print(f"Added {added} images to {arguments.index}: {len(index)}")
    elif arguments.action == "remove":
        index.remove(arguments.ids)
        index.save(arguments.index)
        print(f"Removed {len(set(arguments.ids))} images from {arguments.index}: {len(index)} are left")
    elif arguments.action == "query":
        _query_index(index, arguments)
    else:
        made = index.fingerprint
        print(f"{arguments.index}: {len(index)} images, features {made.feature_shape} of {made} in {made.dtype}")


def _images(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    from .embedding_index import read_images

    return read_images(arguments.source, arguments.split, arguments.image_column, arguments.id_column, arguments.size)


def _build_index(arguments: argparse.Namespace) -> None:
    from transformers import AutoProcessor, ProcessorMixin

    from .embedding_index import EmbeddingIndex, load_retrieval_model

    out = arguments.index
    if (out / "index.json").exists() and not arguments.overwrite:
        raise UsageError(
            f"There is an index in {out}. Name another folder, `add` to it, or replace it by --overwrite."
        )
    if out.is_file() or not out.resolve().parent.is_dir():
        raise UsageError(f"{out} cannot be a folder: it is a file, or there is no folder to make it in.")
    try:
        model = load_retrieval_model(arguments.model, arguments.revision, arguments.device, arguments.dtype or "auto")
        processor = AutoProcessor.from_pretrained(arguments.model, revision=arguments.revision)
    except (ValueError, RuntimeError) as error:  # a config of no model, a device that is not there
        raise UsageError(f"{arguments.model} cannot be loaded: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise UsageError(f"{arguments.model} has no processor of texts and images, only a {type(processor).__name__}.")
    index = EmbeddingIndex.build(model, processor, _images(arguments), arguments.batch_size)
    index.save(out)
    print(f"Wrote {out}: {len(index)} images, features {index.fingerprint.feature_shape} of {index.fingerprint}")


def _query_index(index: "EmbeddingIndex", arguments: argparse.Namespace) -> None:
    from transformers.image_utils import load_image

    queries, images = arguments.text, None
    if queries is None:
        queries, images = [str(path) for path in arguments.image], []
        for path in queries:
            try:
                images.append(load_image(path))
            except Exception as error:  # Pillow's decoders raise kinds of their own
                raise UsageError(f"{path} cannot be read as an image: {error}") from error
    found = index.query(arguments.text, images, arguments.k, device=arguments.device)
    if arguments.json:
        answers = [
            {"query": query, "matches": [match._asdict() for match in matches]}
            for query, matches in zip(queries, found)
        ]
        print(json.dumps(answers, ensure_ascii=False, indent=1))
        return
    for query, matches in zip(queries, found):
        if len(queries) > 1:
            print(query)
        for match in matches:
            print(f"{match.score:7.4f}  {match.id}")


def _convert(arguments: argparse.Namespace) -> None:
    from huggingface_hub.utils import validate_repo_id

    from .conversion.declarations import conversion_module
    from .conversion.engine import as_original_config, convert

    module = conversion_module(arguments.architecture)
    out = _writable(arguments)
    if arguments.push:
        validate_repo_id(arguments.push)  # now, not after the work
    original_config = as_original_config(module, _config(arguments.config))
    print(f"Reading {arguments.checkpoint}", flush=True)
    model = convert(module, arguments.checkpoint, original_config, arguments.head, arguments.dtype)
    with _replaced(out) as folder:
        model.save_pretrained(folder)
        _save_processor(module, original_config, folder)
        _save_card(model, module, arguments, folder)
    print(f"Wrote {out}: {type(model).__name__}, {model.num_parameters():,} parameters, {model.dtype}", flush=True)
    if arguments.push:
        _push(out, arguments.push, arguments.private)
        print(f"Pushed to {arguments.push}", flush=True)


def _push(folder: Path, repository: str, private: bool) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Convert from the original")
    except Exception as error:  # each layer of the network has its own kinds; the work is done in any case
        raise UsageError(f"The model is in {folder}, but was not pushed to {repository}: {error}") from error


def _writable(arguments: argparse.Namespace) -> Path:
    """The folder to write, if nothing stands there that must not be lost."""
    out = arguments.out.resolve()
    if arguments.checkpoint.resolve().is_relative_to(out):
        raise UsageError(f"{out} holds the checkpoint itself. Name another folder.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Name a folder.")
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent} to write {out.name} in. Make it first.")
    if out.is_dir() and any(out.iterdir()):
        if not arguments.overwrite:
            raise UsageError(f"{out} is not empty. Name another folder, or replace the model there with --overwrite.")
        if not (out / "config.json").is_file():
            raise UsageError(f"{out} holds no model (no config.json), so --overwrite does not replace it.")
    return out


def _config(name: str | None) -> dict[str, Any] | str | None:
    """The file that `--config` names, or the name itself, which must then be a published variant's."""
    if name is None or (path := Path(name)).suffix.lower() not in (".json", ".yaml", ".yml"):
        return name
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:  # also text that is not UTF-8
        raise UsageError(f"{path} is no {path.suffix[1:]}: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds a {type(config).__name__}; expected the authors' configuration by its names.")
    return config


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` when all went well, and leaves no trace otherwise."""
    new = out.with_name(f".{out.name}.new-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    new.mkdir()
    try:
        yield new
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _save_processor(module: Any, original_config: dict[str, Any] | None, folder: Path) -> None:
    """Saves the processor where the configuration says what it is made of; a model without one is still a model."""
    if "processor" not in vars(module):
        return
    why = "the configuration does not say where its parts come from"
    try:
        processor = module.processor(original_config or {})
    except OSError as error:  # no such repository, or no network to reach it
        processor, why = None, " ".join(str(error).split())
    if processor is None:
        print(f"Without a processor: {why}.", file=sys.stderr)
    else:
        processor.save_pretrained(folder)


def _save_card(model: "PreTrainedModel", module: Any, arguments: argparse.Namespace, folder: Path) -> None:
    from .hub import model_card, write_model_card
    from .registry import ARCHITECTURES

    if module.MODEL_TYPE not in ARCHITECTURES or module.SOURCE is None:
        return  # transformers' own architectures have transformers' own cards
    source = module.SOURCE
    card = model_card(
        model,
        arguments.push,
        origin=(
            f"Converted from `{arguments.checkpoint.name}` of "
            f"[{source.repository}](https://github.com/{source.repository}/tree/{source.commit}). "
            f"Licence of the original weights: {source.weights_license}."
        ),
        verified=["Every tensor of the original was placed by its name and shape; none was left over, none made up."],
    )
    write_model_card(card, folder)
