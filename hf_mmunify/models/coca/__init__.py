from .configuration_coca import *
from .modeling_coca import *
