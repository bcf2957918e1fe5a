from .configuration_albef import *
from .modeling_albef import *
