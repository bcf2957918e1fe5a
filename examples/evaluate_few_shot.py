# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Evaluate a vision-language model after 0 to 32 solved examples, each score beside the one without images.

Without a download, on the model of the demo and digit scenes of unseen handwriting:

    make demo
    python examples/evaluate_few_shot.py --model_name_or_path runs/demo/model --task vqa --shots 0 1 2 4

As in the paper, on a dataset with the columns `image`, `question` and `answer`: similar examples, 0 to 32 of them:

    python examples/evaluate_few_shot.py --model_name_or_path runs/flamingo --task vqa --dataset_name owner/questions \
        --selection similar --shots 0 4 8 16 32 --output_file runs/flamingo/few_shot.json

With `--candidates yes no` the answer is the likeliest of these, averaged over `--permutations 6` of the examples.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify import evaluation
from hf_mmunify.data import load_rows


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(
        metadata={"help": "Any model of AutoModelForImageTextToText with an <image> token."}
    )
    task: str = field(default="vqa", metadata={"choices": ["caption", "vqa"], "help": "What is asked."})
    dataset_name: str = field(default="digit-scenes", metadata={"help": "A repository of the Hub, or a folder."})
    support_split: str = field(default="train", metadata={"help": "Where examples are chosen from."})
    query_split: str = field(default="test", metadata={"help": "What is asked about."})
    support_size: int = field(default=200, metadata={"help": "Rows to choose examples from."})
    query_size: int = field(default=100, metadata={"help": "Rows to ask about."})
    shots: list[int] = field(default_factory=lambda: [0, 4, 8], metadata={"help": "Numbers of solved examples."})
    selection: str = field(
        default="random", metadata={"choices": ["random", "similar"], "help": "How they are chosen."}
    )
    template: str | None = field(
        default=None, metadata={"help": "How an example is written, with <image>, {answer} and columns in braces."}
    )
    answer_column: str | None = field(default=None, metadata={"help": "By default `caption` or `answer`."})
    metric: str | None = field(
        default=None,
        metadata={"choices": ["cider", "exact_match", "vqa_accuracy"], "help": "By default cider or vqa_accuracy."},
    )
    candidates: list[str] = field(default_factory=list, metadata={"help": "Possible answers, to choose from."})
    permutations: int = field(default=1, metadata={"help": "Orders of the examples that are averaged (candidates)."})
    batch_size: int = field(default=8, metadata={"help": "Prompts in a batch."})
    num_beams: int = field(default=3, metadata={"help": "Beams of the search."})
    max_new_tokens: int = field(default=20, metadata={"help": "Tokens of an answer at most."})
    dtype: str = field(default="auto", metadata={"help": "Precision: float32, bfloat16, float16 or auto."})
    device: str = field(default="auto", metadata={"help": "Where to put the model: auto, cpu, cuda, ..."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write the scores as JSON."})


def main(argv: list[str] | None = None) -> dict[int, dict[str, float]]:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    model = AutoModelForImageTextToText.from_pretrained(
        args.model_name_or_path, dtype=args.dtype, device_map=args.device
    )
    template = args.template
    if template is None:
        template = evaluation.CAPTION_TEMPLATE if args.task == "caption" else evaluation.QUESTION_TEMPLATE
        # the words of digit scenes have no capitals
        template = template.lower() if args.dataset_name == "digit-scenes" else template
    metrics = {
        "cider": evaluation.cider,
        "exact_match": evaluation.exact_match,
        "vqa_accuracy": evaluation.vqa_accuracy,
    }
    metric = args.metric or {"caption": "cider", "vqa": "vqa_accuracy"}[args.task]
    evaluator = evaluation.FewShotEvaluator(
        model,
        processor,
        load_rows(args.dataset_name, args.task, args.support_split, args.support_size),
        template,
        answer_column=args.answer_column or {"caption": "caption", "vqa": "answer"}[args.task],
        selection=args.selection,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        num_beams=args.num_beams,
    )
    queries = list(load_rows(args.dataset_name, args.task, args.query_split, args.query_size))
    results = evaluator.evaluate(queries, metrics[metric], args.shots, args.candidates or None, args.permutations)
    print(f"{'shots':>5}  {metric:>12}  {'images zeroed':>13}")
    for shots, scores in results.items():
        print(f"{shots:>5}  {scores['score']:>12.3f}  {scores['blind']:>13.3f}")
    if args.output_file is not None:
        Path(args.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output_file).write_text(json.dumps({"metric": metric, "shots": results}, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
