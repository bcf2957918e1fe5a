"""The rules of a key map: how tensors of an original checkpoint become tensors of our model, and back.

A rule joins templates of original keys to templates of our keys. In a template `{}` stands for a number and `{*}` for
any non-empty run of characters, dots included; the n-th `{}` (or `{*}`) of one side is the n-th of the other, so every
rule reads in both directions:

    Rename("visual_encoder.blocks.{}.norm1.{*}", "model.vision_model.layers.{}.layernorm_before.{*}")
    Split("visual_encoder.blocks.{}.attn.qkv.{*}", ["...{}.q_proj.{*}", "...{}.k_proj.{*}", "...{}.v_proj.{*}"])

Rules only move numbers, they never compute new ones; that is what makes the way back bit-exact, and what lets
gradients travel by the same rules as weights.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from hf_mmunify.conversion.errors import KeyMapError


_HOLE = re.compile(r"(\{\}|\{\*\})")
_PATTERNS = {"{}": r"(\d+)", "{*}": r"(.+)"}

Captures = tuple[tuple[str, ...], tuple[str, ...]]
"""What the holes of a template stood for: the numbers, then the wildcards, each in the order they appear."""

Claim = tuple[int, int, Captures]
"""Who has a key: the place of a rule in its key map, of a template among the rule's, and what its holes stood for."""


class Template:
    """A key with holes: `{}` for a number, `{*}` for any non-empty rest. It matches whole keys only."""

    def __init__(self, text: str):
        self.text = text
        pieces = _HOLE.split(text)
        if any(brace in piece for piece in pieces[::2] for brace in "{}"):
            raise KeyMapError(f"Template `{text}` has a stray brace; only `{{}}` and `{{*}}` are holes.")
        self.holes = pieces[1::2]
        self._literals = pieces[::2]
        self._regex = re.compile("".join(_PATTERNS.get(piece, re.escape(piece)) for piece in pieces))

    @classmethod
    @cache
    def of(cls, text: str) -> "Template":
        """The template of `text`, made once."""
        return cls(text)

    def match(self, key: str) -> Captures | None:
        """The captures if `key` is an instance of this template, else `None`."""
        if not (found := self._regex.fullmatch(key)):
            return None
        numbers, wildcards = [], []
        for hole, text in zip(self.holes, found.groups()):
            (numbers if hole == "{}" else wildcards).append(text)
        return tuple(numbers), tuple(wildcards)

    def fill(self, captures: Captures) -> str:
        """The key in which the holes are filled by `captures`."""
        numbers, wildcards = iter(captures[0]), iter(captures[1])
        key = self._literals[0]
        for hole, literal in zip(self.holes, self._literals[1:]):
            key += next(numbers if hole == "{}" else wildcards) + literal
        return key

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Cut:
    """One tensor becomes several along `dim`: `parts` equal ones, or parts of the sizes given."""

    parts: int | tuple[int, ...]
    dim: int = 0

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        (tensor,) = tensors
        length = tensor.shape[self.dim]
        if isinstance(self.parts, int):
            if length % self.parts:
                raise ValueError(f"dimension {self.dim} of {list(tensor.shape)} does not divide into {self.parts}")
            return list(tensor.split(length // self.parts, self.dim))
        if length != sum(self.parts):
            raise ValueError(f"dimension {self.dim} of {list(tensor.shape)} is not the sum of {self.parts}")
        return list(tensor.split(self.parts, self.dim))

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.cat(tensors, self.dim)]


@dataclass(frozen=True)
class Join:
    """Several tensors become one along `dim`; on the way back it is cut into `parts`, as `Cut` does."""

    parts: int | tuple[int, ...]
    dim: int = 0

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return Cut(self.parts, self.dim).backward(tensors)

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return Cut(self.parts, self.dim).forward(tensors)


@dataclass(frozen=True)
class Turn:
    """Each tensor's axes in another order: axis `i` of ours is axis `dims[i]` of the original's."""

    dims: tuple[int, ...]

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.permute(self.dims) for tensor in tensors]

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return [tensor.permute(inverse) for tensor in tensors]


@dataclass(frozen=True)
class View:
    """Each tensor in another shape: `ours` on the way in, `original` on the way out; -1 is inferred."""

    ours: tuple[int, ...]
    original: tuple[int, ...]

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.reshape(self.ours) for tensor in tensors]

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.reshape(self.original) for tensor in tensors]


Operation = Cut | Join | Turn | View


class Rule:
    """Original tensors through `operations`, in order, to ours; backwards in reverse order.

    Args:
        originals: one template of an original key, or several that are read together.
        ours: one template of our key, or several that are written together.
        operations: what happens between; none is a plain renaming of one key.

    Raises:
        KeyMapError: the templates do not have the same holes, so that the rule could not be reversed.
    """

    def __init__(self, originals: str | Sequence[str], ours: str | Sequence[str], *operations: Operation):
        self.originals = [Template(text) for text in ([originals] if isinstance(originals, str) else originals)]
        self.ours = [Template(text) for text in ([ours] if isinstance(ours, str) else ours)]
        self.operations = operations
        if len({tuple(sorted(template.holes)) for template in self.originals + self.ours}) != 1:
            raise KeyMapError(f"{self} cannot be reversed: all its templates need the same number of each hole.")

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Original tensors, one per template of `originals`, to ours, one per template of `ours`."""
        for operation in self.operations:
            tensors = operation.forward(tensors)
        return tensors

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The inverse of `forward`."""
        for operation in reversed(self.operations):
            tensors = operation.backward(tensors)
        return tensors

    def __repr__(self) -> str:
        sides = [side[0].text if len(side) == 1 else [t.text for t in side] for side in (self.originals, self.ours)]
        return f"{type(self).__name__}({sides[0]!r} -> {sides[1]!r})"


class Rename(Rule):
    """The tensor as it is, under our name."""

    def __init__(self, original: str, ours: str):
        super().__init__(original, ours)


class Split(Rule):
    """One original tensor cut along `dim` into several of ours, equal ones unless `sizes` says otherwise."""

    def __init__(self, original: str, ours: Sequence[str], dim: int = 0, sizes: Sequence[int] | None = None):
        super().__init__(original, ours, Cut(len(ours) if sizes is None else tuple(sizes), dim))


class Merge(Rule):
    """Several original tensors joined along `dim` into one of ours, equal ones unless `sizes` says otherwise."""

    def __init__(self, originals: Sequence[str], ours: str, dim: int = 0, sizes: Sequence[int] | None = None):
        super().__init__(originals, ours, Join(len(originals) if sizes is None else tuple(sizes), dim))


class Permute(Rule):
    """The tensor with its axes reordered: axis `i` of ours is axis `dims[i]` of the original's."""

    def __init__(self, original: str, ours: str, dims: Sequence[int]):
        super().__init__(original, ours, Turn(tuple(dims)))


class Transpose(Permute):
    """A matrix turned over: flax and TensorFlow keep kernels as (in, out), torch as (out, in)."""

    def __init__(self, original: str, ours: str):
        super().__init__(original, ours, (1, 0))


class Reshape(Rule):
    """The tensor in another shape, -1 inferred: `Reshape("temp", "model.logit_scale", (1,), ())` for a 0-d scalar."""

    def __init__(self, original: str, ours: str, ours_shape: Sequence[int], original_shape: Sequence[int]):
        super().__init__(original, ours, View(tuple(ours_shape), tuple(original_shape)))


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


@dataclass(frozen=True)
class KeyMap:
    """The rules of a module for one configuration, and the templates of what it ignores with their reasons."""

    rules: list[Rule]
    ignored: dict[str, str]

    def is_ignored(self, original: str) -> bool:
        """Whether an original key is dropped for a stated reason."""
        return any(Template.of(text).match(original) is not None for text in self.ignored)

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
            self.claim(key) == (index, place, captures) and not self.is_ignored(key) for place, key in enumerate(keys)
        )

    def forward(self, originals: Mapping[str, torch.Tensor]) -> Iterator[Step]:
        """The rules applied to originals, one step for each group of tensors that a rule reads together."""
        yield from self._steps(originals, self.claim, backward=False)

    def backward(self, ours: Mapping[str, torch.Tensor]) -> Iterator[Step]:
        """The rules applied to our tensors in reverse."""
        yield from self._steps(ours, self.origin, backward=True)

    def _steps(
        self, tensors: Mapping[str, torch.Tensor], claim: Callable[[str], Claim | None], backward: bool
    ) -> Iterator[Step]:
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
                except (ValueError, RuntimeError, IndexError) as error:
                    step.failure = f"{step.sources[0]} {list(inputs[0].shape)}: {error}"
            yield step
