"""Is what was saved the whole of it? A new process loads it three ways and is asked again.

    python -m hf_mmunify.demo.reload FOLDER

FOLDER holds `request.json` (prompts, the images' file names, and where model, adapter and LoRA are); the answers go
into `answers.json`, the scores of the next token after each prompt into `scores.safetensors`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from ..evaluation import FewShotPrompt
from ..models.flamingo import FlamingoForConditionalGeneration
from .silence import without_remarks


@dataclass
class Reply:
    """What a model makes of some prompts.

    Args:
        answers (`list[str]`): One for each prompt.
        scores (`Tensor` `[N, V]`): Of the token that follows each prompt.
    """

    answers: list[str]
    scores: torch.Tensor

    def difference(self, other: "Reply") -> float:
        """Largest difference in a score; infinite when an answer differs."""
        if self.answers != other.answers:
            return float("inf")
        return (self.scores - other.scores).abs().max().item()


@torch.no_grad()
def ask(model: PreTrainedModel, processor: ProcessorMixin, prompts: Sequence[FewShotPrompt], length: int) -> Reply:
    """Let a model answer prompts in up to `length` tokens."""
    inputs = processor(
        images=[prompt.images for prompt in prompts],
        text=[prompt.text for prompt in prompts],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    scores = model(**inputs, logits_to_keep=1).logits[:, -1]  # [N, V]
    written = model.generate(**inputs, max_new_tokens=length, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(written, skip_special_tokens=True)
    return Reply([answer.strip() for answer in answers], scores.float().cpu())


def load(way: str, place: str, model: str) -> PreTrainedModel:
    """The model as it was saved: "model" whole, "adapter" on the frozen parts, "lora" on the whole in `model`."""
    if way == "model":
        return AutoModelForImageTextToText.from_pretrained(place)
    if way == "adapter":
        full = {"dtype": torch.float32}  # as in training; parts may be stored in half precision
        return FlamingoForConditionalGeneration.from_flamingo_adapter(place, vision_kwargs=full, text_kwargs=full)
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model), place)


def ask_new_process(
    places: dict[str, Path], prompts: Sequence[FewShotPrompt], length: int, folder: Path
) -> dict[str, Reply]:
    """What a new process answers with each of the saved forms.

    Args:
        places (`dict[str, Path]`): Where "model", "adapter" and "lora" were saved.
        prompts (`Sequence[FewShotPrompt]`): The same for all.
        length (`int`): Most tokens of an answer.
        folder (`Path`): An empty folder for what the two processes tell each other.
    """
    asked = []
    for number, prompt in enumerate(prompts):
        names = [f"{number}-{place}.png" for place in range(len(prompt.images))]
        for name, image in zip(names, prompt.images):
            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            picture.convert("RGB").save(folder / name)
        asked.append({"text": prompt.text, "images": names})
    request = {"places": {way: str(place) for way, place in places.items()}, "prompts": asked, "length": length}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    subprocess.run([sys.executable, "-m", __spec__.name, str(folder)], check=True)
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    scores = load_file(folder / "scores.safetensors")
    return {way: Reply(answers[way], scores[way]) for way in places}


def main(folder: Path) -> None:
    """The new process: read the request, load each form, answer."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    prompts = [
        FewShotPrompt(asked["text"], [Image.open(folder / name) for name in asked["images"]], [])
        for asked in request["prompts"]
    ]
    places = request["places"]
    processor = AutoProcessor.from_pretrained(places["model"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    replies = {
        way: ask(load(way, place, places["model"]).to(device).eval(), processor, prompts, request["length"])
        for way, place in places.items()
    }
    answers = {way: reply.answers for way, reply in replies.items()}
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    save_file({way: reply.scores for way, reply in replies.items()}, folder / "scores.safetensors")


if __name__ == "__main__":
    with without_remarks():
        logging.disable_progress_bar()
        main(Path(sys.argv[1]))
