"""What holds in every test: no network, no progress bars, one thread, and the same random numbers each time."""

import os


# Read when huggingface_hub and tokenizers are imported, also by the programs that tests start. A test that has a Hub
# of its own gives its programs other values.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import transformers


torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def same_random_numbers():
    transformers.set_seed(0)
