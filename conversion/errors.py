"""What can go wrong between an original checkpoint and a model: one class per cause, all `ValueError`s.

Every message says what was expected, what came, and what to do; lists of names show the first few and the count.
"""

from collections.abc import Iterable


class ConversionError(ValueError):
    """Base class: anything that keeps a checkpoint from becoming a model, or a model from becoming a checkpoint."""


class NotACheckpointError(ConversionError):
    """The path holds no weights that a reader understands: absent, empty, truncated, or something else altogether."""


class UnsafeCheckpointError(NotACheckpointError):
    """A pickle that asks for a function outside the short list of harmless ones. Nothing of it was run."""


class UnknownArchitectureError(ConversionError):
    """No conversion module answers for the architecture asked for."""


class UnknownHeadError(ConversionError):
    """The architecture has no such head."""


class KeyMapError(ConversionError):
    """The declarations of a conversion module contradict each other: a fault of the module, not of the checkpoint."""


class WrongConfigError(ConversionError):
    """The original configuration is missing, incomplete, or of another model."""


class UnmappedKeysError(ConversionError):
    """The checkpoint holds keys that no rule maps and no reason lets us drop."""


class MissingKeysError(ConversionError):
    """The checkpoint lacks keys that the model, or a rule, needs."""


class ShapeMismatchError(ConversionError):
    """Names agree, sizes do not."""


class InconsistentWeightsError(ConversionError):
    """Two keys that must be equal (tied, or computed by the original itself) differ."""


class NonFiniteWeightsError(ConversionError):
    """Weights are NaN or infinite: the file is damaged, or the training run had diverged."""


def listing(names: Iterable[str], limit: int = 6) -> str:
    """The first `limit` of `names`, and how many there are: `3: a, b, c`."""
    names = [str(name) for name in names]
    more = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return f"{len(names)}: {', '.join(names[:limit])}{more}"
