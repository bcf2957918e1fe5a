# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Ask a vision-language model about images: what it writes after a prompt in which images and text alternate.

Without a download, on the model of the demo and three digit scenes it never saw:

    make demo
    python examples/generate.py --model_name_or_path runs/demo/model

Two solved examples and a question, with images of your own:

    python examples/generate.py --model_name_or_path runs/flamingo --images cat.png dog.png bird.png \
        --prompt "<image>Output: a cat<|endofchunk|><image>Output: a dog<|endofchunk|><image>Output:"
"""

from dataclasses import dataclass, field

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import DigitScenes


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(
        metadata={"help": "Any model of AutoModelForImageTextToText with an <image> token."}
    )
    images: list[str] = field(
        default_factory=list, metadata={"help": "Paths or addresses, one for each <image> of the prompt."}
    )
    prompt: str = field(default="<image>output:", metadata={"help": "Text with an <image> for each image."})
    max_new_tokens: int = field(default=30, metadata={"help": "Tokens to write at most."})
    num_beams: int = field(default=3, metadata={"help": "Beams of the search; 1 is greedy."})
    dtype: str = field(default="auto", metadata={"help": "Precision: float32, bfloat16, float16 or auto."})
    device: str = field(default="auto", metadata={"help": "Where to put the model: auto, cpu, cuda, ..."})


def main(argv: list[str] | None = None) -> list[str]:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    model = AutoModelForImageTextToText.from_pretrained(
        args.model_name_or_path, dtype=args.dtype, device_map=args.device
    )
    rows, truths = [args.images], [None]
    if not args.images:
        scenes = DigitScenes("test").examples("caption", 3)
        rows = [[Image.fromarray(scene["image"])] for scene in scenes]
        truths = [scene["caption"] for scene in scenes]
    inputs = processor(images=rows, text=[args.prompt] * len(rows), return_tensors="pt").to(model.device)
    written = model.generate(**inputs, max_new_tokens=args.max_new_tokens, num_beams=args.num_beams, do_sample=False)
    written = written[:, inputs["input_ids"].shape[1] :]
    answers = [answer.strip() for answer in processor.batch_decode(written, skip_special_tokens=True)]
    for answer, truth in zip(answers, truths):
        print(f"{args.prompt} {answer}" + ("" if truth is None else f"    (it is {truth})"))
    return answers


if __name__ == "__main__":
    main()
