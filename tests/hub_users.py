"""The users of a Hub, for `test_hub.py`: a program that pushes and pulls when it is asked to.

It imports transformers, but not hf_mmunify. It reads questions, a line each ("which function, with which arguments"),
and answers every one in a forked process of its own, so that each finds a process in which nothing of ours was
imported.
"""

import json
import os
import sys
import traceback
from multiprocessing import get_context
from pathlib import Path


# Text that only somebody who wrote a README can have put there.
OWN_README = "---\nlicense: mit\n---\n# Mine\n\nWritten by hand.\n"


def publish(model_type, auto_name, folder):
    """Push a model, its processor and a LoRA; save as Trainer does; leave a batch and the answers to it."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from tiny import TINY

    import hf_mmunify  # noqa: F401  (registers the architectures)

    row, folder = TINY[model_type], Path(folder)
    model, processor, batch = row.model(auto_name), row.processor(), row.batch(auto_name=auto_name)
    processor.push_to_hub("user/model")  # first: transformers then leaves its empty card there
    model.push_to_hub("user/model", tags=["tiny"])

    base = getattr(transformers, auto_name).from_pretrained("user/model")
    lora = get_peft_model(base, LoraConfig(target_modules=row.lora, init_lora_weights=False)).eval()
    lora.push_to_hub("user/adapter")

    arguments = transformers.TrainingArguments(folder / "runs", hub_model_id="user/trained")
    trainer = transformers.Trainer(model, arguments, processing_class=processor)
    trainer.save_model(folder / "checkpoint")
    trainer.push_to_hub()

    with torch.no_grad():
        answers = {"model": model(**batch).logits, "adapter": lora(**batch).logits}
    save_file({**{f"batch.{key}": value for key, value in batch.items()}, **answers}, folder / "reference.safetensors")
    return {"processor": described(processor), "trained": lora.get_nb_trainable_parameters()[0]}


def described(processor):
    """A processor as its file describes it, but for the way to its class."""
    return {key: value for key, value in json.loads(processor.to_json_string()).items() if key != "auto_map"}


def distance(model, folder, answer):
    """The largest difference between the logits of `model` and what the publisher's model answered."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / "reference.safetensors")
    batch = {key.removeprefix("batch."): value for key, value in tensors.items() if key.startswith("batch.")}
    with torch.no_grad():
        return (model(**batch).logits - tensors[answer]).abs().max().item()


def load(place, auto_name, folder, answer="model", first=None, resave=None, **kwargs):
    """Load the model at `place`; say of which class it is, and how far its answers are from the publisher's."""
    import transformers

    if first == "import":
        import hf_mmunify  # noqa: F401
    if first == "hide":
        sys.modules["hf_mmunify"] = None  # importing it now fails as it does where it is not installed
    model, report = getattr(transformers, auto_name).from_pretrained(place, output_loading_info=True, **kwargs)
    if resave is not None:
        model.save_pretrained(resave)
        transformers.AutoProcessor.from_pretrained(place, **kwargs).save_pretrained(resave)
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "distance": distance(model, folder, answer),
        "unfilled": [*report["missing_keys"], *report["unexpected_keys"]],
    }


def load_part(place, auto_name, **kwargs):
    """Load what a repository holds beside its model, in a process that has loaded nothing else."""
    import transformers

    part = getattr(transformers, auto_name).from_pretrained(place, **kwargs)
    return {"class": type(part).__name__, "described": described(part) if auto_name == "AutoProcessor" else None}


def load_with_peft(auto_name, folder):
    """Load the LoRA with PEFT, onto a base that was loaded beforehand."""
    import transformers
    from peft import PeftModel

    base = getattr(transformers, auto_name).from_pretrained("user/model", trust_remote_code=True)
    return {"distance": distance(PeftModel.from_pretrained(base, "user/adapter").eval(), folder, "adapter")}


def push_again(auto_name, repository):
    """Push a model that came from the Hub; the repository may have a README of its owner."""
    import transformers

    model = getattr(transformers, auto_name).from_pretrained("user/model", trust_remote_code=True)
    model.push_to_hub(repository)
    return {}


def write_readme(repository):
    """Make a repository whose README somebody wrote."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repository)
    HfApi().upload_file(path_or_fileobj=OWN_README.encode(), path_in_repo="README.md", repo_id=repository)
    return {}


def share_dataset():
    """Push images with captions as a dataset; load it back whole, and as a stream."""
    from datasets import Dataset, Features, Image, Value, load_dataset
    from PIL import Image as PILImage

    rows = {"image": [PILImage.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 200)], "caption": ["black", "red"]}
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict(rows, features=features).push_to_hub("user/captions")
    whole = load_dataset("user/captions", split="train")
    stream = load_dataset("user/captions", split="train", streaming=True)
    return [[[row["caption"], *row["image"].getpixel((0, 0))] for row in dataset] for dataset in (whole, stream)]


def answer_questions():
    """Read questions from stdin, and write the answers where stdout was; whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import peft  # noqa: F401
    from transformers import AutoModel, AutoProcessor, Trainer  # noqa: F401  (the slow imports, once)

    for question in sys.stdin:
        name, arguments, named = json.loads(question)
        with get_context("fork").Pool(1) as pool:
            try:
                answer = pool.apply(globals()[name], arguments, named)
            except Exception as error:
                traceback.print_exc()
                answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    answer_questions()
