from .modeling_blip_2 import *
