from .modeling_blip import *
