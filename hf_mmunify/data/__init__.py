"""What models learn from: digit scenes, the offline data of every task."""

from .digit_scenes import VOCABULARY, DigitScenes, PlacedDigit, Scene, load_digit_scenes
