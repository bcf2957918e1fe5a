"""The recipes of `examples/accelerate`: valid, described, and started on as many processes as they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file


RECIPES = Path(__file__).resolve().parents[1] / "examples" / "accelerate"
EXPECTED = {
    "one_cpu": ("NO", 1),
    "one_gpu": ("NO", 1),
    "multi_gpu": ("MULTI_GPU", 8),
    "fsdp2": ("FSDP", 8),
    "zero3": ("DEEPSPEED", 8),
}
WORLD = """
import sys
from pathlib import Path
from transformers import TrainingArguments
args = TrainingArguments(sys.argv[1], use_cpu="--use_cpu" in sys.argv)
Path(sys.argv[1], f"{args.process_index} of {args.world_size} on {args.device.type}").touch()
"""


def test_every_recipe_is_one_that_accelerate_reads():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(EXPECTED)
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    for name, (kind, processes) in EXPECTED.items():
        config = load_config_from_file(str(RECIPES / f"{name}.yaml"))
        assert (config.distributed_type, config.num_processes) == (kind, processes), name
        assert config.use_cpu is (name == "one_cpu")
        assert f"`{name}.yaml`" in text
    assert load_config_from_file(str(RECIPES / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2
    assert load_config_from_file(str(RECIPES / "zero3.yaml")).deepspeed_config["zero_stage"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, environment, processes",
    [
        ("torch.distributed.run --nproc_per_node 2 {} --use_cpu", {}, 2),
        ("torch.distributed.run --nproc_per_node 2 {}", {"ACCELERATE_USE_CPU": "true"}, 2),
        (
            "accelerate.commands.launch --config_file {recipe} --num_processes 2 --mixed_precision no {}",
            {"ACCELERATE_USE_CPU": "true"},
            2,
        ),
        ("accelerate.commands.launch --cpu --num_processes 2 {}", {}, 1),  # a trap: it does not say so
    ],
)
def test_what_really_starts_two_processes_on_a_cpu(tmp_path, command, environment, processes):
    script = tmp_path / "world.py"
    script.write_text(WORLD)
    started = tmp_path / "started"
    started.mkdir()
    words = command.format(f"{script} {started}", recipe=RECIPES / "multi_gpu.yaml").split()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    result = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    found = sorted(path.name for path in started.iterdir())
    assert found == [f"{rank} of {processes} on cpu" for rank in range(processes)]
