"""The demo from beginning to end: parts, bridge, evaluation, saving and loading, LoRA, and the page about it all."""

import json
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from peft import get_peft_model
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin, set_seed

from ..data.digit_scenes import END_OF_CHUNK_TOKEN, IMAGE_TOKEN
from ..training import lora_config
from .bridge import Answers, answer, attach, collator_of, groups_for_optimizer
from .data import TRAIN_ROWS, FewShotDocuments, Task, dataset_tasks, digit_scene_tasks
from .options import DemoError, Options
from .parts import learn_to_see, learn_to_speak
from .reload import ask, ask_new_process
from .report import Answered, Result, Story, page
from .training import GateRecorder, fit


VISION_STEPS, VISION_BATCH = 350, 128
LANGUAGE_STEPS, LANGUAGE_BATCH = 120, 64
LORA_STEPS = 30
SHOWN = 8  # examples of a task on the page without shots, and half as many after some
ASKED_AGAIN = 8  # prompts of a task to compare models by, after loading

Loaded = TypeVar("Loaded")


def run(options: Options) -> None:
    """Do everything that `options` ask for, and write it to `options.output`.

    Raises:
        DemoError: a part or the dataset cannot be loaded.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one device is plenty; several would be used by threads
    begin = time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "index.html"):  # of an earlier run: they would not belong to this one's model
        (options.output / name).unlink(missing_ok=True)
    set_seed(options.seed)

    tasks = load_tasks(options)
    vision, language, curves, about = frozen_parts(options, tasks)
    model, processor = or_explain("attach these parts", attach, vision, language, options.language_model is None)

    print("2/5 Adapters between the frozen parts learn from documents of images and words")
    max_shots = max(options.shots)
    collator = collator_of(processor, max_shots, options.seed)
    documents = FewShotDocuments(tasks, options.steps * options.batch_size, max_shots, options.seed)
    gates = GateRecorder()
    curves["adapters"] = fit(
        "adapters",
        model,
        documents,
        collator,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        output=str(options.output),
        parameter_groups=groups_for_optimizer(model, options.learning_rate),
        callbacks=[gates],
    )

    print("3/5 Held-out examples, after " + ", ".join(map(str, options.shots)) + " shots, seeing and blind")
    answers = {
        task.name: answer(model, processor, task, options.shots, 4 * options.batch_size, options.seed)
        for task in tasks
    }
    few = options.shots[len(options.shots) // 2]
    results = summarize(tasks, answers, few)
    for result in results:
        for shots, values in result.scores.items():
            print(f"    {result.name:8} {shots} shots: {values['score']:.3f}, blind {values['blind']:.3f}")

    print("4/5 Saved, loaded in a new process, and asked again; a LoRA on top")
    length = max(task.answer_length for task in tasks)
    prompts = [prompt for task in tasks for prompt in answers[task.name][few].prompts[:ASKED_AGAIN]]
    checks, curves["LoRA"] = save_and_reload(model, processor, documents, prompts, length, options)

    print("5/5 The page")
    adapter_bytes = sum(file.stat().st_size for file in (options.output / "adapter").iterdir())
    seconds = time.perf_counter() - begin
    write_results(options.output / "results.json", results, checks, seconds, adapter_bytes)
    story = Story(
        results=results,
        curves=curves,
        gate_steps=gates.steps,
        attention_gates=gates.attention,
        feed_forward_gates=gates.feed_forward,
        facts=facts(results, seconds, adapter_bytes),
        parts={**about, "adapter": about_adapter(model)},
        checks=checks,
        command=command(options),
        folder=options.output.as_posix(),
    )
    (options.output / "index.html").write_text(page(story, IMAGE_TOKEN, END_OF_CHUNK_TOKEN), encoding="utf-8")
    print(f"Done in {seconds:.0f} seconds: open {options.output / 'index.html'}")


def or_explain(what: str, load: Callable[..., Loaded], *arguments: Any) -> Loaded:
    """What `load` returns; errors of loading in one line, since the user can mend them.

    Raises:
        DemoError: it does not load.
    """
    try:
        return load(*arguments)
    except (OSError, ValueError) as error:
        raise DemoError(f"Cannot {what}: {error}") from error


def load_tasks(options: Options) -> list[Task]:
    """The tasks of the dataset that was named, or those of digit scenes."""
    if options.dataset is None:
        return digit_scene_tasks(options.test_examples, 60 if options.quick else TRAIN_ROWS, options.seed)
    return or_explain(
        f"load the dataset {options.dataset}", dataset_tasks, options.dataset, options.test_examples, options.seed
    )


def frozen_parts(
    options: Options, tasks: Sequence[Task]
) -> tuple[str, str, dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Where the two frozen parts are, after those that were not named have learned; loss curves, and what they are."""
    curves, about = {}, {}
    vision, language = options.vision_model, options.language_model
    parts = options.output / "parts"
    if vision is None or language is None:
        print("1/5 The parts learn, each for itself: to see handwriting, to speak of it")
    about["vision"] = f"{vision}, as it is."
    about["language"] = f"{language}, as it is."
    if vision is None:
        vision = str(parts / "vision")
        steps, batch_size = (4, 4) if options.quick else (VISION_STEPS, VISION_BATCH)
        curves["vision tower"], share = learn_to_see(parts / "vision", steps, batch_size, options.seed)
        about["vision"] = (
            "A small ViT. It learned to name what is in each cell, digit, color and which in reading order, and gets "
            f"{share:.0%} of digits and colors right in handwriting of people it never saw."
        )
    if language is None:
        language = str(parts / "language")
        steps, batch_size = (4, 4) if options.quick else (LANGUAGE_STEPS, LANGUAGE_BATCH)
        words = FewShotDocuments(tasks, steps * batch_size, max(options.shots), options.seed + 1, with_images=False)
        curves["language model"] = learn_to_speak(parts / "language", words, steps, batch_size, options.seed)
        about["language"] = "A small Llama. It learned from text alone, and never saw an image."
    return vision, language, curves, about


def summarize(tasks: Sequence[Task], answers: dict[str, dict[int, Answers]], few: int) -> list[Result]:
    """Scores, and examples without and after `few` shots.

    Tasks like "label: digit" and "label: color" count as one, "label": its score is their mean.
    """
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.name.partition(":")[0], []).append(task)
    results = []
    for name, members in groups.items():
        scores, examples = {}, {}
        for shots in answers[members[0].name]:
            replies = [answers[member.name][shots] for member in members]
            scores[shots] = {
                "score": sum(reply.score for reply in replies) / len(replies),
                "blind": sum(reply.blind_score for reply in replies) / len(replies),
            }
            if shots in (0, few):
                size = (SHOWN if shots == 0 else SHOWN // 2) // len(members)
                examples[shots] = [
                    Answered(prompt, seeing, blind, truth_of(row))
                    for member, reply in zip(members, replies)
                    for prompt, seeing, blind, row in zip(reply.prompts[:size], reply.seeing, reply.blind, member.test)
                ]
        results.append(Result(name, members[0].metric.__name__.replace("_", " "), scores, examples))
    return results


def truth_of(row: Mapping[str, Any]) -> str:
    """The right answer to a test example; of several the first."""
    truth = row["answer"]
    return truth if isinstance(truth, str) else truth[0]


def save_and_reload(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    documents: FewShotDocuments,
    prompts: Sequence[Any],
    length: int,
    options: Options,
) -> tuple[dict[str, float], list[tuple[int, float]]]:
    """Save the model, the adapter alone, and a LoRA trained on top; compare what each says here and in a new process.

    Returns:
        Largest difference of a score by what was loaded, and the loss curve of the LoRA.
    """
    places = {way: options.output / way for way in ("model", "adapter", "lora")}
    model.save_pretrained(places["model"])
    processor.save_pretrained(places["model"])
    model.save_flamingo_adapter(places["adapter"])
    here = {"model": ask(model, processor, prompts, length)}
    here["adapter"] = here["model"]

    adapted = AutoModelForImageTextToText.from_pretrained(places["model"])
    adapted = get_peft_model(adapted, lora_config(adapted, r=8, modules_to_save=None))  # the adapter stays as it is
    curve = fit(
        "LoRA",
        adapted,
        documents,
        collator_of(processor, documents.max_shots, options.seed),
        steps=4 if options.quick else LORA_STEPS,
        batch_size=options.batch_size,
        learning_rate=1e-3,
        seed=options.seed + 1,
        output=str(options.output),
    )
    adapted.save_pretrained(places["lora"])
    here["lora"] = ask(adapted, processor, prompts, length)
    with tempfile.TemporaryDirectory() as folder:
        there = ask_new_process(places, prompts, length, Path(folder))
    return {way: here[way].difference(there[way]) for way in places}, curve


def write_results(
    file: Path, results: Sequence[Result], checks: dict[str, float], seconds: float, adapter_bytes: int
) -> None:
    """`{task: {shots: {"score", "blind"}}}` beside `seconds`, `adapter_bytes`, and what differed after loading."""
    scores = {
        result.name: {
            str(shots): {name: round(value, 4) for name, value in values.items()}
            for shots, values in result.scores.items()
        }
        for result in results
    }
    told = {
        "caption": {},
        "vqa": {},
        **scores,
        "seconds": round(seconds, 1),
        "adapter_bytes": adapter_bytes,
        "reload_difference": checks,
    }
    file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def facts(results: Sequence[Result], seconds: float, adapter_bytes: int) -> dict[str, str]:
    """The head of the page: the best score of each task, and what all of it took."""
    names = {"caption": "captions", "vqa": "questions", "label": "labels"}
    last = {names[result.name]: list(result.scores.items())[-1] for result in results}
    told = {f"{name}, {shots} shots": f"{values['score']:.2f}" for name, (shots, values) in last.items()}
    return {**told, "adapter": f"{adapter_bytes / 1e6:.1f} MB", "all of it": f"{seconds / 60:.1f} min"}


def about_adapter(model: PreTrainedModel) -> str:
    """A sentence on what was trained."""
    adapter, config = model.base_model.adapter, model.config
    size = sum(parameter.numel() for parameter in adapter.parameters())
    return (
        f"{size:,} parameters: each image becomes {config.resampler_num_latents} latents, which "
        f"{len(config.cross_attention_layers)} of the language model's {config.decoder_config.num_hidden_layers} "
        "layers look at."
    )


def command(options: Options) -> str:
    """The command line that was run, without what is as it is by default."""
    words = ["hf-mmunify", "demo"]
    for name in ("language_model", "vision_model", "dataset"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", value]
    words += ["--steps", str(options.steps), "--output", str(options.output), "--seed", str(options.seed)]
    return shlex.join(words + (["--quick"] if options.quick else []))
