"""Finding among 100,000 embeddings: the index of this package beside numpy, torch and faiss, all of them exact.

    python benchmarks/retrieval_index.py [--entries 100000] [--size 512] [--rounds 5] [--threads 1]

Embeddings are random unit vectors, and queries those of entries with noise on top. Before anything is timed, every
contender must find the same ten entries of every query. faiss is left out where it is not installed (`faiss-cpu`).

Times are processor seconds of this process, so that other work on the machine disturbs them little; the contenders
take turns in every round, and a ratio is taken within its round. Memory is that of a fresh process for each: how much
higher its peak is than before it searched, when it held the embeddings alone.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


_THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = _THREADS  # read when numpy is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

from hf_mmunify.embedding_index import EmbeddingIndex, ModelFingerprint  # noqa: E402


K = 10
Search = Callable[[torch.Tensor], np.ndarray]


def embeddings(entries: int, size: int, queries: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(entries, size, generator=draw), dim=-1)
    chosen = torch.randint(entries, (queries,), generator=draw)
    noise = torch.randn(queries, size, generator=draw) / size**0.5
    return features, torch.nn.functional.normalize(features[chosen] + noise, dim=-1)


def our_index(features: torch.Tensor) -> EmbeddingIndex:
    nobody = ModelFingerprint("", None, "none", "float32", "", "", "", "", "", list(features.shape[1:]))
    return EmbeddingIndex(features, [str(place) for place in range(len(features))], nobody)


def ours(features: torch.Tensor) -> Search:
    index = our_index(features)
    return lambda queries: index.search(queries, K, "exact")[1].numpy()


def ours_by_faiss(features: torch.Tensor) -> Search:
    index = our_index(features)
    index.search(features[:1], 1, "faiss")  # which makes faiss's own index
    return lambda queries: index.search(queries, K, "faiss")[1].numpy()


def faiss_alone(features: torch.Tensor) -> Search:
    import faiss

    faiss.omp_set_num_threads(int(_THREADS))
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    return lambda queries: index.search(queries.numpy(), K)[1]


def torch_at_once(features: torch.Tensor) -> Search:
    return lambda queries: (queries @ features.T).topk(K, dim=1).indices.numpy()


def numpy_at_once(features: torch.Tensor) -> Search:
    vectors = features.numpy()

    def search(queries: torch.Tensor) -> np.ndarray:
        scores = queries.numpy() @ vectors.T
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


CONTENDERS = {"ours": ours, "torch": torch_at_once, "numpy": numpy_at_once}
if importlib.util.find_spec("faiss") is not None:
    CONTENDERS |= {"faiss": faiss_alone, "ours by faiss": ours_by_faiss}


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    features, queries = embeddings(arguments.entries, arguments.size)
    searches = {name: make(features) for name, make in CONTENDERS.items()}
    expected = searches["numpy"](queries)
    for name, search in searches.items():
        wrong = (search(queries) != expected).any(axis=1).sum()
        if wrong:
            raise SystemExit(
                f"{name} finds others than numpy for {wrong} of {len(queries)} queries: nothing is timed."
            )
    print(f"Recall@{K} of all contenders is that of a full sort: {len(queries)} queries agree.", flush=True)
    tasks = {
        "building": (1, lambda name: CONTENDERS[name](features)),
        "one query at a time": (50, lambda name: [searches[name](queries[i : i + 1]) for i in range(50)]),
        "1,000 queries at once": (1000, lambda name: searches[name](queries)),
    }
    found = {task: {name: [] for name in CONTENDERS} for task in tasks}
    names = list(CONTENDERS)
    for number in range(arguments.rounds):
        for task, (size, run) in tasks.items():
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[task][name].append(seconds(lambda name=name, run=run: run(name)) / size)
    with tempfile.TemporaryDirectory() as folder:
        index = our_index(features)
        found["saving"] = {"ours": [seconds(lambda: index.save(f"{folder}/index")) for _ in range(arguments.rounds)]}
        found["loading"] = {
            "ours": [seconds(lambda: EmbeddingIndex.load(f"{folder}/index")) for _ in range(arguments.rounds)]
        }
    return found


def memory(name: str, arguments: argparse.Namespace) -> float:
    """Megabytes that making and asking `name` adds to the peak of a fresh process."""
    command = [sys.executable, __file__, "--peak", name, "--threads", _THREADS]
    command += ["--entries", str(arguments.entries), "--size", str(arguments.size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def resident(field: str) -> float:
    """Megabytes of this process, "VmRSS" now or "VmHWM" at most (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def table(found: dict, megabytes: dict[str, float]) -> str:
    """Medians, and the ratio of each peer to ours with its lowest and highest round."""
    names = list(CONTENDERS)
    peers = names[1:]
    header = ["", *names, *(f"{name} / ours" for name in peers)]
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for task, times in found.items():
        cells = [task]
        for name in names:
            if name not in times:
                cells.append("")
                continue
            median = statistics.median(times[name])
            cells.append(f"{1 / median:,.0f} queries/s" if "quer" in task else f"{1000 * median:,.0f} ms")
        for peer in peers:
            ratios = sorted(a / b for a, b in zip(times.get(peer, []), times["ours"]) if "quer" in task)
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else "")
        rows.append("| " + " | ".join(cells) + " |")
    cells = ["memory, 1,000 queries at once", *(f"{megabytes[name]:,.0f} MB" for name in names), *[""] * len(peers)]
    return "\n".join([*rows, "| " + " | ".join(cells) + " |"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000, help="embeddings in the index")
    parser.add_argument("--size", type=int, default=512, help="numbers in an embedding")
    parser.add_argument("--rounds", type=int, default=5, help="how often every contender does every task")
    parser.add_argument("--threads", type=int, default=1, help="of torch, numpy and faiss")
    parser.add_argument("--output", type=Path, help="a json file for all measured seconds")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        features, queries = embeddings(arguments.entries, arguments.size)
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        before = resident("VmRSS")
        CONTENDERS[arguments.peak](features)(queries)
        print(resident("VmHWM") - before)
        return
    found = measure(arguments)
    megabytes = {name: memory(name, arguments) for name in CONTENDERS}
    print(table(found, megabytes))
    if arguments.output:
        arguments.output.write_text(json.dumps({"seconds": found, "megabytes": megabytes}, indent=1))


if __name__ == "__main__":
    main()
