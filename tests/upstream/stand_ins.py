"""Modules that transformers' common tests import and its source distribution lacks.

Where a distribution has the real module, the real one is used. Exporting and generating, of which upstream's tests are
not distributed, are proven on every architecture by `test_conformance.py`.
"""

import sys
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from PIL import Image

from hf_mmunify.registry import ARCHITECTURES


class ExportTesterMixin:
    """No tests: upstream's are not distributed."""


class GenerationTesterMixin:
    """No tests: upstream's are not distributed."""


# Fields that every config has, at other values than their defaults: upstream checks that a config keeps them.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "chunk_size_feed_forward": 3,
    "problem_type": "single_label_classification",
    "architectures": ["AnyModel"],
    "dtype": "float16",
}


def painted(url: str) -> str:
    """In the place of the picture at `url`, one that needs no network: a small red square, in the address itself."""
    if not url.endswith((".jpg", ".png")):
        return url  # videos and sound: upstream tests them where torchcodec and librosa are installed
    file = BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, format="png")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def our_classes() -> list[tuple[str, str, type]]:
    """Architecture, Auto class and class of all that the registry offers, save what upstream has itself."""
    modules = {model_type: import_module(f"hf_mmunify.models.{model_type}") for model_type in ARCHITECTURES}
    return [
        (model_type, auto_name, getattr(modules[model_type], name))
        for model_type, autos in ARCHITECTURES.items()
        for auto_name, name in autos.items()
        if name in dir(modules[model_type])
    ]


def causal_lms() -> dict[type, type]:
    """Our config classes and what generates of them: in groups of processes, upstream makes every model by
    `AutoModelForCausalLM`, under which the registry has none of ours."""
    models = [cls for _, auto_name, cls in our_classes() if auto_name.startswith("AutoModel")]
    return {model.config_class: model for model in models if model.can_generate()}


def run_rank(rank: int, function: Callable, *args) -> None:
    """What one process of a group does: `function(rank, *args)`."""
    torch.set_num_threads(1)
    transformers.AutoModelForCausalLM._model_mapping._extra_content.update(causal_lms())
    function(rank, *args)


def start_rank_processes(function: Callable, args: tuple, nprocs: int) -> None:
    """Run `function(rank, *args)` in `nprocs` new processes; an error in one is raised here."""
    mp.spawn(run_rank, args=(function, *args), nprocs=nprocs)


def run_connected(rank: int, world_size: int, port: int, function: Callable, args: tuple) -> None:
    """`function(rank, *args)` in a process of a group on this machine's CPU, which meets in the store at `port`."""
    store = dist.TCPStore("localhost", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()


def run_distributed(world_size: int) -> Callable:
    """Make a function of a rank run in `world_size` processes: `run_distributed(2)(function)(*args)`."""

    def run(function: Callable, *args) -> None:
        # Held until the processes end, so that no other test can take the port
        store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        start_rank_processes(run_connected, (world_size, store.port, function, args), world_size)

    return lambda function: partial(run, function)


STAND_INS = {
    "exporters/test_export.py": {"ExportTesterMixin": ExportTesterMixin},
    "generation/test_utils.py": {"GenerationTesterMixin": GenerationTesterMixin},
    "utils/test_configuration_utils.py": {"config_common_kwargs": CONFIG_COMMON_KWARGS},
    "distributed_testing_utils.py": {
        "run_distributed": run_distributed,
        "_start_rank_processes": start_rank_processes,
        "_get_distributed_backend": lambda: "gloo",
        "_get_distributed_device_type": lambda: "cpu",
        "_get_rank_device": lambda rank: torch.device("cpu"),
        "_set_rank_device": lambda rank: None,
    },
}


def stand_in(tests: Path) -> None:
    """Offer each module that the folder `tests` lacks under the name that upstream's tests import it by."""
    for path, content in STAND_INS.items():
        if not (tests / path).is_file():
            names = [__package__, *Path(path).with_suffix("").parts]
            for depth in range(2, len(names)):  # the packages that it is in
                package = ModuleType(".".join(names[:depth]))
                package.__path__ = [str(tests.joinpath(*names[1:depth]))]
                sys.modules.setdefault(package.__name__, package)
            _offer(".".join(names), content)
    _offer("fetch_hub_objects_for_ci", {"url_to_local_path": painted})  # outside of their package


def _offer(name: str, content: dict) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
