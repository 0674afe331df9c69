"""How fast the digest is, beside a copy and a plain checksum of the same bytes in the same run.

    python benchmarks/digest.py                    # 1 GiB per case, one thread
    python benchmarks/digest.py --gib 0.25 --device cuda

Each figure is the median of the repeats; the cases take turns, so that a slow moment of the machine meets all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import xxhash
from torch import Tensor

from ckptrun.digest import digest, digest_leaves
from ckptrun.digest.sums import chunk_sums

SMALL_LEAVES = 20_000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of each large case")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def build_cases(gib: float, device: str) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name of the case -> bytes it works on, what to run."""
    rows = int(gib * 2**30) // (4 * 16384)
    matrix = torch.randn(rows, 16384, device=device)
    flat, narrow = matrix.view(-1), matrix.view(torch.int32).to(torch.bfloat16).repeat(2, 1)
    half = matrix[:, :8192].contiguous()
    small = {f"leaf {i:05d}": matrix.view(-1)[256 * i : 256 * (i + 1)].clone() for i in range(SMALL_LEAVES)}
    target = torch.empty_like(matrix)
    size = matrix.numel() * 4
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "digest, float32 matrix": (size, partial(digest, matrix)),
        "digest, float32 1-D": (size, partial(digest, flat)),
        "digest, bfloat16 matrix": (size, partial(digest, narrow)),
        "digest, shard of dim 1 of 2": (
            size // 2,
            partial(chunk_sums, half, offsets=(0, 8192), shape=tuple(matrix.shape)),
        ),
        f"digest, {SMALL_LEAVES} leaves of 1 KiB": (SMALL_LEAVES * 1024, partial(digest_leaves, small)),
        "torch.clone (new memory)": (size, partial(torch.clone, matrix)),
        "copy into a buffer": (size, partial(target.copy_, matrix)),
    }
    if device == "cpu":
        cases["xxh3-128 of the bytes"] = (size, partial(checksum, matrix))
    return cases


def checksum(tensor: Tensor) -> bytes:
    return xxhash.xxh3_128(tensor.numpy()).digest()


def seconds(run: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    cases = build_cases(arguments.gib, arguments.device)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(arguments.repeats + 1):
        for name, (_, run) in cases.items():
            taken = seconds(run, arguments.device)
            if repeat:  # The first round warms up.
                times[name].append(taken)
    where = torch.cuda.get_device_name() if arguments.device != "cpu" else torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {arguments.device} ({where}), {arguments.threads} thread(s), ", end="")
    print(f"median of {arguments.repeats}")
    print(f"{'case':34} {'seconds':>9} {'GiB/s':>7}")
    for name, (size, _) in cases.items():
        median = statistics.median(times[name])
        print(f"{name:34} {median:9.3f} {size / 2**30 / median:7.2f}")


if __name__ == "__main__":
    main()
