from .configuration_flamingo import *
from .modeling_flamingo import *
from .processing_flamingo import *
