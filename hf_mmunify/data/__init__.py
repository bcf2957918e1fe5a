"""What models learn from: digit scenes, the offline data of every task, and documents of text and images."""

from ..layers import Regions, detect_regions
from .collators import (
    CaptioningCollator,
    LabelCollator,
    PreTrainingCollator,
    QuestionAnsweringCollator,
    RetrievalCollator,
    TaskCollator,
    VideoClassificationCollator,
    VisualEntailmentCollator,
    VisualReasoningCollator,
    answer_vocabulary,
    human_answers,
)
from .digit_scenes import VOCABULARY, DigitScenes, PlacedDigit, Scene, load_digit_scenes
from .interleaved import READ_PACKED_AS_ONE, InterleavedCollator, InterleavedDocument
from .masking import mask_tokens
from .pictures import as_frames, as_picture
from .sources import DigitSceneRows, load_rows
