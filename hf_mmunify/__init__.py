"""Multimodal transformers of 2018-2023 as first-class `transformers` models.

`import hf_mmunify` registers every architecture of `hf_mmunify.registry` with transformers' Auto classes;
from then on `AutoModel.from_pretrained`, processors, `pipeline`, `Trainer` and `push_to_hub` know them.
The authors' checkpoints become such models by `hf-mmunify convert` (`hf_mmunify.conversion`).
"""

from pathlib import Path


__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "conversion" / "engine.py").is_file():
    __path__.append(str(_checkout))  # a clone: `conversion` and `model_cards` lie beside the package

from . import registry  # noqa: E402  (the import is the registration)
from .auto import (  # noqa: E402
    AutoModelForImageTextRetrieval,
    AutoModelForVisualEntailment,
    AutoModelForVisualReasoning,
)
