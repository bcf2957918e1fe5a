"""Random flips and colours of training images; the frames of a video change together.

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), appendix B.1.1 names left-right
flips and colour augmentation, without their strengths; the strengths here are our own.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance


@dataclass(frozen=True)
class ImageAugmentation:
    """Frames -> frames, flipped and recoloured at random: the `transform` of `InterleavedCollator`.

    Flipping changes what "left" means, and letters and digits: set `flip=0` where texts speak of them.

    Args:
        flip (`float`, defaults to 0.5): Probability of a left-right flip.
        brightness (`float`, defaults to 0.2), contrast (`float`, defaults to 0.2), saturation (`float`, defaults to
            0.2): Largest relative change.
        hue (`float`, defaults to 0.05): Largest turn of the colour wheel, as a share of it.
    """

    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __call__(self, frames: list, generator: np.random.Generator) -> list[Image.Image]:
        """Augment frames (PIL images, or uint8 arrays `[H, W, 3]`), all in the same way."""
        flips = generator.random() < self.flip
        brightness, contrast, saturation, hue = (
            change * generator.uniform(-1, 1) for change in (self.brightness, self.contrast, self.saturation, self.hue)
        )
        changed = []
        for frame in frames:
            image = frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame))
            image = image.convert("RGB")
            if flips:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image = ImageEnhance.Brightness(image).enhance(1 + brightness)
            image = ImageEnhance.Contrast(image).enhance(1 + contrast)
            image = ImageEnhance.Color(image).enhance(1 + saturation)
            if self.hue:
                wheel, *others = image.convert("HSV").split()
                turned = np.asarray(wheel) + np.uint8(round(255 * hue) % 256)  # uint8 wraps, as the wheel does
                image = Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB")
            changed.append(image)
        return changed


__all__ = ["ImageAugmentation"]
