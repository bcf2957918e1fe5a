"""What models learn from: digit scenes, the offline data of every task, and documents of text and images."""

from .digit_scenes import VOCABULARY, DigitScenes, PlacedDigit, Scene, load_digit_scenes
from .interleaved import InterleavedCollator, InterleavedDocument
from .masking import mask_tokens
from .sources import load_rows
