"""What benchmarks ask of a CUDA device: times, memory, graphs, synchronisations of the host and kernels."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def event_seconds(way: Step) -> float:
    """Seconds of one run between two CUDA events."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started.record()
    way()
    ended.record()
    torch.cuda.synchronize()
    return started.elapsed_time(ended) / 1000


def peak_mib(way: Step) -> float:
    """Memory of one run beyond what was allocated before."""
    free_memory()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def free_memory() -> None:
    """Give cached memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def captured(run: Step) -> Step:
    """Capture ``run`` in a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def host_syncs(way: Step) -> int:
    """Synchronisations in one run: none if PyTorch's error mode lets it pass, else its warnings are counted."""
    way()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        way()
        return 0
    except RuntimeError:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            way()
        return max(1, sum("synchroniz" in str(warning.message) for warning in caught))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches(way: Step) -> tuple[int, str]:
    """Kernels of one run, and a table of the ten that take longest."""
    way()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        way()
        torch.cuda.synchronize()
    count = sum(event.device_type == DeviceType.CUDA for event in profiler.events() or ())
    averages = profiler.key_averages()
    return count, averages.table(sort_by="self_cuda_time_total", row_limit=10, max_name_column_width=60)
