"""Layers that at least two architectures share unchanged.

Shapes at the ends of lines are written in the letters that the docstring of the file declares, batch first.
"""

from .attention import eager_attention_forward
from .composed import ComposedModelMixin
from .copying import copy_what_is_new
from .feature_queue import FeatureQueue
from .momentum import MomentumMixin
from .patch_dropout import keep_patches
from .quantized import QuantizedLoadingMixin, is_quantized
from .regions import Regions, detect_regions, pad_regions
