"""Bitwise reproducible training on one layout."""

import torch

from armd_scale.parallel.environment import set_default_variables


def enable_determinism(device: torch.device) -> str:
    """Enable deterministic algorithms. Call before any CUDA work and before NCCL starts.

    On CPU every kernel that training uses is deterministic already, at a fixed number of threads.
    On CUDA, kernels whose result depends on the order of atomic additions are replaced by slower
    ones, or raise an error if there is none:

    * cuBLAS gets workspaces of a fixed size, and cuDNN does not choose kernels by timing them;
    * NCCL reduces along rings, whose order follows from the layout, instead of the algorithm that
      its tuner picks;
    * attention: under this mode the flash kernel's backward pass accumulates in a fixed order, and
      the memory-efficient kernel does not split keys. cuDNN makes no such promise and is disabled.
      The backward kernels of FlexAttention, which serves larger blocks, use no atomic additions.

    Runs are bitwise equal only on the same layout, kind of device and library versions. Another
    layout sums in another order and agrees to rounding. On CUDA it costs speed, most of it in the
    backward pass of attention.

    Args:
        device: the device of this rank.

    Returns:
        A description of the chosen kernels, for the log.
    """
    variables = set_default_variables(CUBLAS_WORKSPACE_CONFIG=":4096:8", NCCL_ALGO="Ring")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type == "cpu":
        return "deterministic: attention by PyTorch's CPU kernels"
    backends = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    enabled = ", ".join(name for name, is_enabled in backends.items() if is_enabled)
    settings = ", ".join(f"{name}={value}" for name, value in variables.items())
    return (
        f"deterministic: causal attention by the first supported kernel of {enabled}; other "
        f"attention by FlexAttention; {settings}"
    )
