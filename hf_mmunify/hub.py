"""What a saved or pushed model carries beside its weights: the way back to this package, and a card.

The way back. Every `config.json`, `processor_config.json` or `preprocessor_config.json` that a class of ours writes
names, in `auto_map`, classes of a few lines of Python saved next to it (`STUB_CODE`). With `trust_remote_code=True`
transformers runs these in a process that never imported `hf_mmunify`, and gets the classes of the installed package.
The registry attaches this to every class it registers (`carry_stub`); model files know nothing of it. Where
`hf_mmunify` was imported, neither the stub nor the flag is needed, and nothing asks.

The card. `model_card` writes one for given weights: from the architecture's own (`model_cards/<model_type>.md`) and
from what only the caller knows. `push_to_hub` puts it in place of the empty one that transformers makes;
`save_pretrained` alone writes none, so that no training checkpoint carries a card. A README that somebody wrote is
never replaced.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME


STUB = "from_hf_mmunify"  # `auto_map` then reads "from_hf_mmunify.FlamingoConfig"

STUB_CODE = '''\
"""The model of this repository is defined by the Python package hf-mmunify; this file leads transformers to it.

It is read by `from_pretrained(..., trust_remote_code=True)`. After `import hf_mmunify` it is not needed.
"""

try:
    from hf_mmunify.hub import served_class
except ImportError as error:
    raise ImportError(
        "The model of this repository is defined by the Python package hf-mmunify, which cannot be imported here. "
        "Run `pip install --upgrade hf-mmunify`."
    ) from error


def __getattr__(name):
    return served_class(name)
'''

# The sections of `model_cards/<model_type>.md`, in this order, after its title.
CARD_SECTIONS = (
    "What it is",
    "How to load",
    "How to train",
    "How to convert",
    "What was verified",
    "Limits",
    "Licence of the weights",
    "Citation",
)

# The task under which the Hub lists what an Auto class loads. For the others the architecture's card says it.
PIPELINE_TAGS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForVideoClassification": "video-classification",
    "AutoModelForVisualQuestionAnswering": "visual-question-answering",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}

# With this description transformers fills the Hub's template when it pushes a model to a repository without a README.
_EMPTY_CARD_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. "
    "This model card has been automatically generated."
)

_served: dict[str, type] = {}  # class name -> what the stub hands out under it
_auto_maps: dict[type, dict[str, str | dict[str, str]]] = {}  # class -> its Auto classes; for a config, all of its row


def served_class(name: str) -> type:
    """The registered class called `name`: what the stub of a repository asks the installed package for.

    Raises:
        AttributeError: the installed version has no such class; the message says how to upgrade.
    """
    if name not in _served:
        raise AttributeError(
            f"The installed hf-mmunify has no class `{name}`, which this repository was saved with. "
            "Run `pip install --upgrade hf-mmunify`."
        )
    return _served[name]


def carry_stub(row: dict[str, str], classes: Iterable[type]) -> None:
    """Make whatever the classes of an architecture save loadable in a process that did not import `hf_mmunify`.

    Configs, processors and image processors write the stub beside their file, and `auto_map` into it. No class lets
    transformers copy its source into the repository, as happens to one that was found through `auto_map`: the copy
    would take the stub's place, and could not be imported. A model that is pushed gets a card. Classes of transformers
    itself stay as they are.

    Args:
        row (`dict[str, str]`):
            The architecture's row of the registry: Auto class -> class name.
        classes (iterable of `type`):
            The classes that were registered for it, in any order.

    Raises:
        ValueError: another class of ours has the same name, so that a repository could not say which one it needs.
    """
    ours = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("transformers.")}
    references = {
        auto_name: _reference(auto_name, name)
        for auto_name, name in row.items()
        if name in ours or f"{name}Pil" in ours  # the second: an image processor where torchvision is missing
    }
    for name, cls in ours.items():
        if _served.setdefault(name, cls) is not cls:
            raise ValueError(
                f"Two classes are called {name}, in {_served[name].__module__} and in {cls.__module__}: rename one, "
                "because a saved repository names its classes without their module."
            )
        if cls not in _auto_maps:
            _attach(cls)
        _auto_maps[cls] = {
            auto_name: reference
            for auto_name, reference in references.items()
            if issubclass(cls, PreTrainedConfig) or row[auto_name] == name.removesuffix("Pil")
        }


def _reference(auto_name: str, name: str) -> str | dict[str, str]:
    """The entry of `auto_map`: transformers picks the backend of an image processor where it is loaded."""
    if auto_name == "AutoImageProcessor":
        return {"pil": f"{STUB}.{name}Pil", "torchvision": f"{STUB}.{name}"}
    return f"{STUB}.{name}"


def _attach(cls: type) -> None:
    """Replace the methods of `cls` that decide what a repository carries; for its subclasses nothing changes."""
    inherited_registration = cls.register_for_auto_class.__func__

    @functools.wraps(inherited_registration)
    def register_for_auto_class(cls, *args, **kwargs):
        if cls not in _auto_maps:  # a registered class stays an installed one: its source is never copied
            inherited_registration(cls, *args, **kwargs)

    cls.register_for_auto_class = classmethod(register_for_auto_class)

    if issubclass(cls, PreTrainedModel):
        inherited_upload = cls._upload_modified_files

        @functools.wraps(inherited_upload)
        def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
            if type(self) in _auto_maps:
                _fill_empty_card(Path(working_dir) / "README.md", self, repo_id)
            return inherited_upload(self, working_dir, repo_id, *args, **kwargs)

        cls._upload_modified_files = _upload_modified_files
    else:
        inherited_write = cls.to_json_file

        @functools.wraps(inherited_write)
        def to_json_file(self, json_file_path, *args, **kwargs):
            path = Path(json_file_path)
            # Only beside a file that `from_pretrained` reads. And in this method, not in `save_pretrained`: of what is
            # in the folder, that pushes the files written after it has begun.
            if type(self) in _auto_maps and path.name in (CONFIG_NAME, PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
                parts = self.get_attributes() if isinstance(self, ProcessorMixin) else []
                for part in [self, *(getattr(self, name) for name in parts)]:
                    if type(part) in _auto_maps:
                        part.auto_map = dict(_auto_maps[type(part)])
                path.with_name(f"{STUB}.py").write_text(STUB_CODE, encoding="utf-8")
            inherited_write(self, json_file_path, *args, **kwargs)
            if isinstance(self, ProcessorMixin):  # it stays equal to what is loaded; a config keeps its own there
                vars(self).pop("auto_map", None)

        cls.to_json_file = to_json_file


def architecture_card(model_type: str) -> ModelCard:
    """The packaged card of an architecture: what it is, how it is used, what was verified, its limits and citation.

    Raises:
        ValueError: there is no card of that name; the message lists those that exist.
    """
    room = files(f"{__package__}.model_cards")
    file = room / f"{model_type}.md"
    if not file.is_file():
        known = sorted(card.name.removesuffix(".md") for card in room.iterdir() if card.name.endswith(".md"))
        raise ValueError(f"There is no card of an architecture called {model_type!r}. There are: {', '.join(known)}.")
    return ModelCard(file.read_text(encoding="utf-8"))


def card_sections(text: str) -> dict[str, str]:
    """The second-level sections of a card's Markdown, title -> text, in their order. Code blocks are left alone."""
    sections: dict[str, list[str]] = {}
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            lines = sections.setdefault(line.removeprefix("## ").strip(), [])
        else:
            lines.append(line)
    return {title: "\n".join(lines).strip() for title, lines in sections.items()}


def model_card(
    model: PreTrainedModel,
    repo_id: str | None = None,
    *,
    origin: str | None = None,
    base_model: str | Sequence[str] | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    results: Sequence[EvalResult] = (),
    verified: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> ModelCard:
    """The card of particular weights: converted, fine-tuned or freshly made.

    What holds for every model of the architecture comes from its packaged card; nothing about these weights is claimed
    that the caller did not give. To put it online, `model_card(...).push_to_hub(repo_id)`; into a folder,
    [`write_model_card`].

    Args:
        model ([`PreTrainedModel`]):
            A model of a registered class.
        repo_id (`str`, *optional*):
            Where it will be loaded from: a repository `"user/name"` or a folder.
        origin (`str`, *optional*):
            One or more sentences: where the weights come from, how they were made.
        base_model (`str` or sequence of `str`, *optional*):
            Repositories the weights started from. Defaults to the one the model was loaded from, or those that its
            sub-models were.
        license (`str`, *optional*):
            Licence of the weights, as the Hub spells it (`"apache-2.0"`, `"cc-by-nc-4.0"`). Without it the card says
            that none was stated.
        datasets (sequence of `str`, *optional*):
            Names, on the Hub, of the data they were trained with.
        results (sequence of [`~huggingface_hub.EvalResult`], *optional*):
            Measured scores: a table of the card, and the Hub's model index.
        verified (sequence of `str`, *optional*):
            What was checked for these weights, a sentence each.
        tags (sequence of `str`, *optional*):
            Added to the architecture's.

    Returns:
        [`~huggingface_hub.ModelCard`]: front matter and text.

    Raises:
        ValueError: the class of the model is not a registered one of this package.
    """
    name, model_type = type(model).__name__, model.config.model_type
    if type(model) not in _auto_maps:
        raise ValueError(
            f"A card is written for a model of a class that hf_mmunify registers, got {name}: "
            "take transformers' own card, or subclass and register the class."
        )
    packaged = architecture_card(model_type)
    sections = card_sections(packaged.text)
    autos = list(_auto_maps[type(model)])
    title = repo_id.split("/")[-1] if repo_id else name
    bases = _known_bases(model.config, repo_id) if base_model is None else base_model
    bases = [bases] if isinstance(bases, str) else list(bases)

    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=next(
            (PIPELINE_TAGS[auto] for auto in autos if auto in PIPELINE_TAGS), packaged.data.pipeline_tag
        ),
        tags=list(dict.fromkeys(["hf_mmunify", model_type, *(packaged.data.tags or []), *tags])),
        base_model=bases or None,
        license=license,
        datasets=list(datasets) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    if origin is None:
        started = " and ".join(f"`{base}`" for base in bases)
        origin = f"It started from {started}." if bases else "Where its weights come from was not recorded."
    body = {
        "": f"`{name}` with {model.num_parameters():,} parameters. {origin}",
        "How to load": _loading_code(autos[0], repo_id or "path/to/this/folder"),
        "What it is": sections["What it is"],
        "Results": _table(results),
        "What was verified": "\n".join(f"- {fact}" for fact in verified)
        or "Nothing was recorded for these weights; what the tests of the package verify holds for the architecture.",
        "Limits": sections["Limits"],
        "Licence of the weights": f"`{license}`" if license else "None was stated; that of the base model may apply.",
        "Citation": sections["Citation"],
    }
    text = "\n\n".join(f"## {heading}\n\n{part}" if heading else part for heading, part in body.items() if part)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}\n")


def write_model_card(card: ModelCard, folder: str | Path) -> bool:
    """Save `card` as the folder's `README.md`, unless there is one.

    Returns:
        `bool`: whether it was written.
    """
    path = Path(folder) / "README.md"
    if path.exists():
        return False
    card.save(path)
    return True


def _fill_empty_card(path: Path, model: PreTrainedModel, repo_id: str) -> None:
    """Put our card where transformers left its unfilled template; whatever front matter that has stays."""
    if not path.is_file():
        return
    card = ModelCard.load(path)
    empty = ModelCard.from_template(ModelCardData(), model_description=_EMPTY_CARD_DESCRIPTION)
    if card.text.split() != empty.text.split():
        return
    stated = {key: value for key, value in card.data.to_dict().items() if value}
    filled = model_card(model, repo_id, license=stated.get("license"), tags=stated.pop("tags", ()))
    for key, value in stated.items():
        filled.data[key] = value
    filled.save(path)


def _known_bases(config: PreTrainedConfig, repo_id: str | None) -> list[str]:
    """Repositories that the model was loaded from, or its sub-models were."""

    def is_base(name: str) -> bool:
        return name != repo_id and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()

    if is_base(config.name_or_path):
        return [config.name_or_path]
    parts = [getattr(config, key) for key in config.sub_configs]
    names = [part.name_or_path for part in parts if part is not None]
    return [name for name in dict.fromkeys(names) if is_base(name)]


def _loading_code(auto_name: str, place: str) -> str:
    """A Python block that loads the model and its processor."""
    from . import auto

    names = [auto_name, "AutoProcessor"]
    lines = ["import hf_mmunify  # or pass `trust_remote_code=True` below"]
    if auto_name in auto.__all__:
        lines = [f"from hf_mmunify import {names.pop(0)}"]
    lines += [f"from transformers import {', '.join(names)}", ""]
    lines += [
        f'model = {auto_name}.from_pretrained("{place}")',
        f'processor = AutoProcessor.from_pretrained("{place}")',
    ]
    return "\n".join(["```python", *lines, "```", "", "The classes come from `pip install hf-mmunify`."])


def _table(results: Sequence[EvalResult]) -> str:
    """The scores as a Markdown table; empty without any."""
    if not results:
        return ""
    rows = [
        f"| {result.dataset_name} | {result.metric_name or result.metric_type} | {result.metric_value} |"
        for result in results
    ]
    return "\n".join(["| data | metric | value |", "|---|---|---|", *rows])
