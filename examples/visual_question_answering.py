# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
r"""Train a model to answer questions about images, and evaluate it beside what the questions alone are worth.

Every kind of model: those that choose among known answers (ViLT), those that read the question and write the answer
(BLIP, ALBEF), and, with `--prompt`, those that go on with a text (BLIP-2, Flamingo). From nothing, in minutes:

    python examples/small_model.py --architecture vilt --pretrain_vision 400 --output_dir runs/small/vilt
    python examples/visual_question_answering.py --model_name_or_path runs/small/vilt --output_dir runs/vqa \
        --learning_rate 5e-4 --max_steps 1500

    python examples/small_model.py --architecture blip --pretrain_vision 500 --output_dir runs/small/blip
    python examples/visual_question_answering.py --model_name_or_path runs/small/blip --freeze vision \
        --output_dir runs/vqa-written --learning_rate 1.5e-3 --max_steps 1600

A published model on data of your own, with a LoRA, and afterwards on the Hub:

    python examples/visual_question_answering.py --model_name_or_path Salesforce/blip-vqa-base --lora \
        --dataset owner/questions --answer_column answers --output_dir runs/blip-vqa --bf16 \
        --push_to_hub --hub_model_id you/blip-vqa

Many GPUs: `accelerate launch --config_file examples/accelerate/multi_gpu.yaml examples/visual_question_answering.py`
and the same options. The same command goes on where a killed run stopped.
"""

from dataclasses import dataclass, field

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    HfArgumentParser,
    set_seed,
)

import hf_mmunify  # noqa: F401  (registers the architectures)
from hf_mmunify.data import CaptioningCollator, QuestionAnsweringCollator, answer_vocabulary, human_answers
from hf_mmunify.evaluation import vqa_accuracy
from hf_mmunify.training import (
    FineTuningArguments,
    TaskArguments,
    TaskTrainer,
    finish,
    fit,
    load_for_task,
    score,
    task_rows,
)


@dataclass
class ScriptArguments(TaskArguments):
    image_column: str = field(default="image", metadata={"help": "Images."})
    question_column: str = field(default="question", metadata={"help": "Questions."})
    answer_column: str = field(default="answer", metadata={"help": "The answer, or those of several people."})
    vocabulary_rows: int = field(default=2000, metadata={"help": "Digit scenes from which answers are collected."})
    min_occurrences: int = field(default=1, metadata={"help": "Rarer answers are not chosen from (VQAv2: 9)."})
    prompt: str | None = field(
        default=None, metadata={"help": 'For models that go on with a text: "question: {question} answer:".'}
    )
    rank_answers: bool = field(default=False, metadata={"help": "Choose among known answers instead of writing."})
    max_new_tokens: int = field(default=10, metadata={"help": "Tokens of an answer at most."})
    num_beams: int = field(default=1, metadata={"help": "Beams of the search."})


@dataclass
class Arguments(FineTuningArguments):
    output_dir: str = "runs/vqa"


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    script_args, args = HfArgumentParser((ScriptArguments, Arguments)).parse_args_into_dataclasses(argv)
    set_seed(args.seed)  # a new head is drawn before there is a Trainer
    train, test = task_rows(script_args, "vqa")
    answer_column = script_args.answer_column
    config = AutoConfig.from_pretrained(script_args.model_name_or_path)

    if script_args.prompt is not None:
        is_writer = True
    else:
        with torch.device("meta"):
            is_writer = hasattr(AutoModelForVisualQuestionAnswering.from_config(config), "generate")
    known = config.label2id
    if (not is_writer and "LABEL_0" in known) or script_args.rank_answers:
        rows = (train[place] for place in range(min(len(train), script_args.vocabulary_rows)))
        known = answer_vocabulary((row[answer_column] for row in rows), script_args.min_occurrences)

    columns = {"image_column": script_args.image_column}
    if script_args.prompt is not None:
        model, processor = load_for_task(AutoModelForImageTextToText, script_args)
        columns |= {"text_column": answer_column, "prompt": script_args.prompt}
        collator = CaptioningCollator(processor, **columns)
    else:
        labels = {"label2id": known, "id2label": {number: name for name, number in known.items()}}
        model, processor = load_for_task(
            AutoModelForVisualQuestionAnswering, script_args, **({} if is_writer else labels)
        )
        collator = QuestionAnsweringCollator(
            processor,
            **columns,
            question_column=script_args.question_column,
            answer_column=answer_column,
            vocabulary=None if is_writer else known,
            start_token_id=config.get_text_config(decoder=True).bos_token_id,
        )

    def answer(model, batch: dict[str, torch.Tensor]) -> list[str]:
        if not is_writer:
            return [model.config.id2label[place] for place in model(**batch).logits.argmax(dim=-1).tolist()]
        if script_args.rank_answers:
            texts = list(known)
            candidates = {name: value.to(model.device) for name, value in collator.answers(texts).items()}
            best, _ = model.rank_answers(**batch, **candidates, num_candidates=len(texts))
            return [texts[place] for place in best[:, 0].tolist()]
        return collator.decode(
            model.generate(**batch, max_new_tokens=script_args.max_new_tokens, num_beams=script_args.num_beams), batch
        )

    trainer = TaskTrainer(model, args, collator, train_dataset=train, eval_dataset=test, processing_class=processor)
    fit(trainer, script_args)
    truth = [human_answers(row[answer_column]) for row in test]
    result = score(
        trainer.model,
        collator,
        test,
        answer,
        lambda answers: vqa_accuracy(answers, truth)["vqa_accuracy"],
        args.per_device_eval_batch_size,
    )
    return finish(trainer, script_args, "visual-question-answering", {"vqa_accuracy": result})


if __name__ == "__main__":
    main()
