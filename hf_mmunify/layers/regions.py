"""Regions of images: boxes and what a detector sees in them, for the models that read these in the place of pixels.

    given: features [R, F], boxes [R, 4] in any format -> Regions --.
                                                                     |--> pad_regions -> [B, R, F], [B, R, 4], [B, R]
    images -> any detector of transformers -> detect_regions --------'

R regions of an image, F the width of a feature. Boxes are (left, top, right, bottom), as fractions of the image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel


BOX_FORMATS = ("xyxy", "xywh", "cxcywh")
TOLERANCE = 1e-3
"""By how much a box may reach beyond its image, as detectors' do: it is cut off there."""


@dataclass(frozen=True)
class Regions:
    """The regions of one image.

    Args:
        features (`torch.Tensor` of shape `(regions, width)`):
            What a detector sees in each.
        boxes (`torch.Tensor` of shape `(regions, 4)`, *optional*):
            Left, top, right and bottom of each, as fractions of the image; see [`Regions.of_boxes`] for other formats.
        scores (`torch.Tensor` of shape `(regions,)`, *optional*):
            How sure the detector is of each.

    Raises:
        ValueError: when the shapes do not belong together, there is no region, a feature is not finite, or a box is
            none of this format.
    """

    features: torch.Tensor
    boxes: torch.Tensor | None = None
    scores: torch.Tensor | None = None

    def __post_init__(self):
        features = torch.as_tensor(self.features)
        if features.dim() != 2 or len(features) == 0 or not features.is_floating_point():
            raise ValueError(
                f"features are numbers [regions, width] of at least one region, got {features.dtype} of shape "
                f"{list(features.shape)}."
            )
        if not features.isfinite().all():
            raise ValueError("features of regions hold NaN or infinity: what computed them failed.")
        object.__setattr__(self, "features", features)
        if self.boxes is not None:
            boxes = torch.as_tensor(self.boxes, dtype=torch.float32)
            _check_boxes(boxes, len(features))
            object.__setattr__(self, "boxes", boxes.clamp(0, 1))
        if self.scores is not None:
            scores = torch.as_tensor(self.scores, dtype=torch.float32)
            if scores.shape != (len(features),):
                raise ValueError(f"expected a score for each of {len(features)} regions, got {list(scores.shape)}.")
            object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of(cls, value: Any) -> "Regions":
        """Regions as they are; of a mapping with "features" and, if known, "boxes" and "scores"; of features alone.

        Raises:
            ValueError: when it is none of these.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            if "features" not in value:
                raise ValueError(f'regions have "features" (and "boxes", "scores"), got the keys {sorted(value)}.')
            return cls(value["features"], value.get("boxes"), value.get("scores"))
        if isinstance(value, Image.Image | str):
            raise ValueError(
                f"expected the regions of an image, got {type(value).__name__}: the model reads what a detector sees. "
                "Use `hf_mmunify.data.detect_regions(images, detector, image_processor)`, or features of your own."
            )
        return cls(torch.as_tensor(value))

    @classmethod
    def of_boxes(
        cls,
        features: torch.Tensor,
        boxes: torch.Tensor,
        box_format: str = "xyxy",
        image_size: tuple[int, int] | None = None,
        scores: torch.Tensor | None = None,
    ) -> "Regions":
        """Regions with boxes of another format.

        Args:
            features, scores: As of [`Regions`].
            boxes (`torch.Tensor` of shape `(regions, 4)`):
                The boxes.
            box_format (`str`, *optional*, defaults to `"xyxy"`):
                `"xyxy"` (two corners), `"xywh"` (left, top, width, height; COCO) or `"cxcywh"` (center; DETR).
            image_size (`tuple[int, int]`, *optional*):
                Height and width of the image, if boxes are in pixels; they are fractions of it by default.

        Raises:
            ValueError: when `box_format` is another word, or the boxes are none of that format.
        """
        if box_format not in BOX_FORMATS:
            raise ValueError(f"box_format is one of {', '.join(BOX_FORMATS)}; got {box_format!r}.")
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        if boxes.dim() == 2 and boxes.shape[-1] == 4:  # others are refused by `Regions`
            start, end = boxes.split(2, dim=-1)
            if box_format == "xywh":
                end = start + end
            elif box_format == "cxcywh":
                start, end = start - end / 2, start + end / 2
            boxes = torch.cat([start, end], dim=-1)
            if image_size is not None:
                height, width = image_size
                boxes = boxes / boxes.new_tensor([width, height, width, height])
        return cls(features, boxes, scores)


def _check_boxes(boxes: torch.Tensor, number: int) -> None:
    if boxes.shape != (number, 4):
        raise ValueError(f"expected a box of 4 numbers for each of {number} regions, got {list(boxes.shape)}.")
    outside = (boxes < -TOLERANCE) | (boxes > 1 + TOLERANCE) | ~boxes.isfinite()
    if outside.any():
        row = int(outside.any(dim=1).int().argmax())
        raise ValueError(
            f"boxes are (left, top, right, bottom) as fractions of the image, but box {row} is "
            f"{[round(x, 3) for x in boxes[row].tolist()]}: use `Regions.of_boxes` for pixels and other formats."
        )
    turned = (boxes[:, 2:] < boxes[:, :2]).any(dim=1)
    if turned.any():
        row = int(turned.int().argmax())
        raise ValueError(
            f"boxes are (left, top, right, bottom), but box {row} ends before it starts: "
            f"{[round(x, 3) for x in boxes[row].tolist()]}. Is it (left, top, width, height)? Use `Regions.of_boxes`."
        )


def pad_regions(
    regions: Sequence[Any], width: int | None = None, max_regions: int | None = None
) -> dict[str, torch.Tensor]:
    """Regions of several images as a batch.

    Args:
        regions (`Sequence`):
            Of each image, as [`Regions.of`] takes them. Boxes of all images, or of none.
        width (`int`, *optional*):
            What the width of the features has to be; that of the first image by default.
        max_regions (`int`, *optional*):
            How many regions of an image are kept: those of the highest scores, or the first, where there are none.

    Returns:
        `dict`: "region_features" `(batch, regions, width)`, zero where there is none; "region_mask" `(batch,
        regions)`; and "region_boxes" `(batch, regions, 4)`, if there are boxes.

    Raises:
        ValueError: when there is no image, widths differ, or some images have boxes and others none.
    """
    if len(regions) == 0:
        raise ValueError("The batch is empty: give the regions of at least one image.")
    regions = [Regions.of(value) for value in regions]
    width = regions[0].features.shape[1] if width is None else width
    for number, one in enumerate(regions):
        if one.features.shape[1] != width:
            raise ValueError(
                f"regions have features of width {width}, but those of image {number} have {one.features.shape[1]}: "
                "they come from another detector."
            )
    has_boxes = [one.boxes is not None for one in regions]
    if any(has_boxes) and not all(has_boxes):
        raise ValueError(f"image {has_boxes.index(False)} has no boxes, but others do: give boxes of all, or of none.")
    kept = [_most_certain(one, max_regions) for one in regions]
    longest = max(map(len, kept))
    features = kept[0].features.new_zeros(len(kept), longest, width)
    mask = torch.zeros(len(kept), longest, dtype=torch.long)
    boxes = torch.zeros(len(kept), longest, 4)
    for row, one in enumerate(kept):
        features[row, : len(one)] = one.features
        mask[row, : len(one)] = 1
        if one.boxes is not None:
            boxes[row, : len(one)] = one.boxes
    batch = {"region_features": features, "region_mask": mask}
    return {**batch, "region_boxes": boxes} if all(has_boxes) else batch


def _most_certain(regions: Regions, number: int | None) -> Regions:
    """At most `number` of the regions, in their order."""
    if number is None or len(regions) <= number:
        return regions
    order = torch.arange(number) if regions.scores is None else regions.scores.topk(number).indices.sort().values
    parts = (regions.boxes, regions.scores)
    return Regions(regions.features[order], *(None if part is None else part[order] for part in parts))


@torch.no_grad()
def detect_regions(
    images: Iterable[Image.Image],
    detector: PreTrainedModel,
    image_processor: BaseImageProcessor,
    num_regions: int = 36,
    batch_size: int = 8,
) -> list[Regions]:
    """What a detector sees in images: the boxes it is most sure of, and its states of them.

    Any detector of transformers whose output has `logits`, `pred_boxes` and the states that these are read off
    (`last_hidden_state`), such as DETR, RT-DETR and YOLOS. A region's feature is the detector's state of it, as wide
    as the detector.

    Args:
        images (`Iterable[PIL.Image.Image]`):
            The images.
        detector (`PreTrainedModel`):
            The detector, on any device; it should be in evaluation mode.
        image_processor (`BaseImageProcessor`):
            The one that belongs to the detector.
        num_regions (`int`, *optional*, defaults to 36):
            How many regions of each image (36 in SCAN, of a Faster R-CNN); all, where the detector has fewer queries.
        batch_size (`int`, *optional*, defaults to 8):
            Images that are looked at together.

    Returns:
        `list[Regions]`: of each image, the surest first, on the CPU.

    Raises:
        ValueError: when the model is no such detector.
    """
    images, found = list(images), []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        inputs = image_processor(images=[image.convert("RGB") for image in batch], return_tensors="pt")
        outputs = detector(**inputs.to(detector.device))
        names = ("logits", "pred_boxes", "last_hidden_state")
        missing = [name for name in names if outputs.get(name) is None]
        if missing:
            raise ValueError(
                f"{type(detector).__name__} gives no {', '.join(missing)}: regions come from an object detector such "
                "as DetrForObjectDetection."
            )
        logits = outputs.logits.float()  # [B, Q, classes]
        # Detectors with one class more than labels choose among them and "no object"; the others judge each label
        has_no_object = logits.shape[-1] == detector.config.num_labels + 1
        certainty = logits.softmax(-1)[..., :-1] if has_no_object else logits.sigmoid()
        scores, order = certainty.amax(-1).sort(dim=1, descending=True)  # [B, Q]
        states = outputs.last_hidden_state[:, -logits.shape[1] :]  # in front of YOLOS's queries are patches
        for row in range(len(batch)):
            chosen = order[row, :num_regions]
            boxes = outputs.pred_boxes[row, chosen].float().cpu()
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=-1)
            features = states[row, chosen].float().cpu()
            found.append(Regions(features, corners.clamp(0, 1), scores[row, :num_regions].cpu()))
    return found
