from .modeling_vilt import *
