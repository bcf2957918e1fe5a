# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmunify"]
# ///
"""Publish a model: weights, processor and card, loadable by anyone with `AutoModelForImageTextToText`.

    hf auth login
    python examples/push_to_hub.py --model_name_or_path runs/flamingo --repo_id you/flamingo --private

Whoever has `hf_mmunify` loads it after `import hf_mmunify`; a repository pushed from here also loads without the
import by `trust_remote_code=True`.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import hf_mmunify  # noqa: F401  (registers the architectures)


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "A folder that `save_pretrained` or `Trainer` wrote."})
    repo_id: str = field(metadata={"help": 'The repository, "owner/name"; it is made if there is none.'})
    private: bool = field(default=False, metadata={"help": "Whether only you can see it."})
    commit_message: str = field(default="Upload model and processor", metadata={"help": "Of the upload."})


def main(argv: list[str] | None = None) -> str:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    settings = {"private": args.private, "commit_message": args.commit_message}
    model = AutoModelForImageTextToText.from_pretrained(args.model_name_or_path)
    commit = model.push_to_hub(args.repo_id, **settings)
    AutoProcessor.from_pretrained(args.model_name_or_path).push_to_hub(args.repo_id, **settings)
    print(commit.repo_url)
    return str(commit.repo_url)


if __name__ == "__main__":
    main()
