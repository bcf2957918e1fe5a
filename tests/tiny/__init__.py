"""The table: every architecture at its smallest, with a batch it could be trained on.

`TINY[model_type]` makes a model, a batch, its labels, a processor and images; `test_conformance.py` holds each row to
every promise. A row is the `ROW` of the module here that has the name of its architecture.
"""

from importlib import import_module
from pathlib import Path

from .row import IMAGE_SIZE, VISION_TOWER, WORDS, Tiny, auto_class, image_processor, rows_of_answers, word_tokenizer


TINY: dict[str, Tiny] = {
    path.stem: import_module(f".{path.stem}", __name__).ROW
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "row")
}

__all__ = [
    "IMAGE_SIZE",
    "TINY",
    "VISION_TOWER",
    "WORDS",
    "Tiny",
    "auto_class",
    "image_processor",
    "rows_of_answers",
    "word_tokenizer",
]
