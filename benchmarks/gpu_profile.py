"""The profile of benchmarks/gpu.py: which kernels a step of ours takes, and what is between them.

PyTorch's profiler sees the kernels of its whole process, ONNX Runtime's as well.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from paddlenlp_codegen_task.runtime.base import decode

if TYPE_CHECKING:
    from gpu_parts import Job

KERNELS = 14  # named; the others are summed up
STEPS = 8


def profile(job: Job) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Milliseconds of a decode step and of a prefill: by the clock, and of each kernel."""
    for graph in (False, True):
        ours = job.ours(job.half, graph)
        mark = ", CUDA graphs" if graph else ""
        for batch in job.batches[:1] + job.batches[-1:]:
            ours.start(job.prompts(batch, 16 if job.dry else 128), 100)

            def step(rows: int = batch, ours: Any = ours) -> None:
                decode(ours.runtime, [1] * rows)

            yield f"first steps, batch {batch}{mark}", partial(_first, step)
            yield f"decode, batch {batch}{mark}", partial(_profiled, job, step, STEPS)
        if not graph:
            for length in job.prefills[-2:]:
                prompts = job.prompts(1, length)

                def prefill(prompts: Any = prompts, ours: Any = ours) -> None:
                    ours.start(prompts)

                yield f"prompt of {length}", partial(_profiled, job, prefill, 2)
        ours.close()


def _first(run: Callable[[], None]) -> list[float]:
    """Milliseconds of each of the first runs: the first one captures a CUDA graph."""
    times = [time.perf_counter()]
    for _ in range(4):
        run()
        times.append(time.perf_counter())
    return [round(1e3 * (after - before), 3) for before, after in itertools.pairwise(times)]


def _profiled(job: Job, run: Callable[[], None], count: int) -> dict[str, Any]:
    """Time of a run without the profiler, then of its kernels with it.

    Args:
        job: the part's.
        run: what is looked at; it ends when the device has.
        count: of runs.
    """
    import torch
    from torch.profiler import ProfilerActivity

    for _ in range(3):  # CUDA graphs are captured
        run()
    begin = time.perf_counter()
    for _ in range(count):
        run()
    seconds = (time.perf_counter() - begin) / count
    activity = ProfilerActivity.CPU if job.dry else ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(count):
            run()
    spent = "self_cpu_time_total" if job.dry else "self_device_time_total"
    kernels = sorted(
        ((getattr(one, spent) / count / 1e3, one.count / count, one.key[:100])
         for one in profiler.key_averages()),
        reverse=True,
    )  # fmt: skip
    return {
        "milliseconds": 1e3 * seconds,
        "of_kernels": sum(one[0] for one in kernels),
        "kernels": sum(one[1] for one in kernels),
        "longest": [
            {"milliseconds": round(spent, 5), "count": round(number, 2), "name": name}
            for spent, number, name in kernels[:KERNELS]
        ],
    }
