from .configuration_scan import *
from .modeling_scan import *
from .processing_scan import *
