from .modeling_clip import *
