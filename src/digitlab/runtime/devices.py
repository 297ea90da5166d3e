"""What the processors of this machine can do."""

import os

import torch


def uses_cuda(accelerator: str) -> bool:
    """Whether a Trainer with this accelerator runs on a CUDA GPU."""
    return accelerator in ("auto", "gpu") and torch.cuda.is_available()


def require_devices(accelerator: str, devices: int) -> None:
    """Raise ValueError if the accelerator or the number of devices is not available."""
    missing_gpu = accelerator == "gpu" and not uses_cuda("gpu")
    missing_mps = accelerator == "mps" and not torch.backends.mps.is_available()
    if missing_gpu or missing_mps:
        raise ValueError(
            f"trainer.accelerator={accelerator}: is not available here; choose auto or cpu"
        )
    # Each process takes half a gigabyte.
    most, unit = max(2, os.cpu_count() or 1), "core"
    if uses_cuda(accelerator):
        most, unit = torch.cuda.device_count(), "GPU (per core with trainer.accelerator=cpu)"
    if devices > most:
        raise ValueError(
            f"trainer.devices={devices}: must be <= {most} here, one process per {unit}"
        )


def has_native_bfloat16(accelerator: str) -> bool:
    """Whether the hardware of an accelerator computes in bfloat16 without emulation."""
    if uses_cuda(accelerator):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return accelerator != "mps" and bool(capabilities.get("avx512_bf16", False))
