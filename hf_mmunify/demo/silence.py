"""Keep the terminal for the story: no remarks of libraries on things that are meant."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def without_remarks() -> Iterator[None]:
    """Neither that a table gets new rows (those of `<image>` and the end of a chunk), nor what PEFT still calls by an
    old name, nor that bitsandbytes, which PEFT imports where it is installed, misses a kernel. Errors stay errors.
    """
    verbosity = transformers_logging.get_verbosity()
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    transformers_logging.set_verbosity_error()
    bitsandbytes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        bitsandbytes.setLevel(level)
