"""What holds in every test: no network, no progress bars, one thread, and the same random numbers each time."""

import os


# Read when huggingface_hub and tokenizers are imported, also by the programs that tests start. A test that has a Hub
# of its own gives its programs other values.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
# transformers' own tests (test_upstream.py) run on the CPU, as in CI; they look for an accelerator otherwise
os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")

from collections import Counter

import pytest
import torch
import transformers


torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def same_random_numbers():
    transformers.set_seed(0)


MARKS_OF_TRANSFORMERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in MARKS_OF_TRANSFORMERS:
        config.addinivalue_line("markers", f"{mark}: set by transformers' own tests")


def pytest_terminal_summary(terminalreporter):
    """For each reason that transformers' own tests were skipped for, how many were."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if "test_upstream.py::" in report.nodeid
    )
    if reasons:
        terminalreporter.section(f"{reasons.total()} of transformers' own tests skipped, and why")
        for reason, number in reasons.most_common():
            terminalreporter.line(f"{number:4}  {reason}")
