"""Where to resume a run of `Trainer` that was killed, perhaps while it was saving."""

import json
from pathlib import Path

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint in `output_dir` that was written to its end.

    `Trainer.train(resume_from_checkpoint=True)` takes the newest folder whatever is in it: from one that a kill or a
    full disk cut short it stops with an error, or starts the optimizer anew. The state of the run is the last file of
    a checkpoint, so one that has it has everything.

    Args:
        output_dir (`str` or `Path`): the `output_dir` of the run; it need not exist yet.

    Returns:
        `str` or `None`: for `resume_from_checkpoint`; `None`, which starts from the beginning, where there is none.

    Example:

    ```python
    >>> trainer.train(resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir))
    ```
    """
    complete = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            step = TrainerState.load_from_json(folder / "trainer_state.json").global_step
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        complete[step] = str(folder)
    return complete[max(complete)] if complete else None


__all__ = ["last_complete_checkpoint"]
