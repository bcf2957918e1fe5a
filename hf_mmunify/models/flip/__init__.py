from .configuration_flip import *
from .modeling_flip import *
