"""``caffetools device-query``: which devices there are to compute on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from caffetools.cli.gflags import Gpu
from caffetools.cli.show import console, print_json


def device_query(
    gpu: Gpu = "",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the GPUs that torch sees here, and what the CPU offers, as [bold]caffe device_query[/bold] does."""
    import torch

    from caffetools.layers.native import status
    from caffetools.solver.launch import devices
    from caffetools.util.threads import cpu_count

    numbers = devices(gpu) if gpu else list(range(torch.cuda.device_count()))
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cores": cpu_count(),
        "native": status(),
        "devices": [_facts(number) for number in numbers],
    }
    if json:
        print_json(facts)
        return
    for device in facts["devices"]:
        for name, value in device.items():
            console.print(f"{name + ':':<30} {value}", markup=False)
        console.print()
    cuda = f"CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
    console.print(f"torch {facts['torch']} ({cuda}), {facts['cores']} CPU cores, {facts['threads']} threads for computing")
    console.print(facts["native"], markup=False)
    if not facts["devices"]:
        console.print("No GPU is visible; training and all other work run on the CPU.")


def _facts(number: int) -> dict[str, Any]:
    """Return a CUDA device's facts, under Caffe's names where it has one; memory in bytes."""
    import torch

    found = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    return {
        "Device id": number,
        "Major revision number": found.major,
        "Minor revision number": found.minor,
        "Name": found.name,
        "Total global memory": total,
        "Free global memory": free,
        "Warp size": found.warp_size,
        "Maximum threads per multiprocessor": found.max_threads_per_multi_processor,
        "Number of multiprocessors": found.multi_processor_count,
        "Computes in bfloat16": torch.cuda.is_bf16_supported(),
    }
