"""`hf-mmunify demo`: the whole Flamingo story in small, on real handwriting, offline, in minutes on two CPU cores.

    options.py   the command line
    data.py      digit scenes or a dataset of yours -> tasks -> few-shot documents
    parts.py     1. a vision tower learns to see, a language model learns to speak, apart; both are frozen
    bridge.py    2. a resampler and gated cross-attention between them learn from documents   (training.py)
                 3. captions and answers after 0, 1, 2 and 4 shots, each beside its blind baseline
    reload.py    4. what was saved answers alike in a new process: the model, the adapter alone, a LoRA on top
    report.py    5. results.json and index.html, one page with everything                      (charts.py, page.html)
    story.py     the five in their order

`--language-model`, `--vision-model` and `--dataset` put real ones in the place of each.
"""

import sys
from collections.abc import Sequence

from .options import DemoError, parse
from .silence import without_remarks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo with the command line `argv` (default: the process's own).

    Returns:
        `int`: the exit code: 0, or 2 after one line on stderr that says what the user can mend.
    """
    try:
        options = parse(argv)
        with without_remarks():
            from .story import run  # seconds to import, which an error or --help need not wait for

            run(options)
    except DemoError as error:
        print(f"hf-mmunify demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
