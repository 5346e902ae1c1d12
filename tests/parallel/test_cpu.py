"""The stand-in for CUDA."""

import subprocess
import sys

import pytest
import torch

from armd_scale.parallel.cpu import cpu_stands_in_for_cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA needs no stand-in")


def test_what_asks_for_cuda_gets_the_cpu() -> None:
    with cpu_stands_in_for_cuda():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.ones(2, device=torch.device("cuda", 0)).device.type == "cpu"
        assert torch.arange(2, device="cpu").device.type == "cpu"
        assert torch.cuda.current_device() == torch.device("cpu")
        torch.cuda.synchronize()


def test_it_ends_with_the_block_even_after_an_error() -> None:
    before = (torch.cuda.current_device, torch.cuda.synchronize)
    with pytest.raises(KeyError), cpu_stands_in_for_cuda():
        raise KeyError
    assert (torch.cuda.current_device, torch.cuda.synchronize) == before
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


FAULTS = """
import resource, sys, torch
from armd_scale.parallel.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)
before = faults()
for _ in range(4):
    torch.ones(1 << 24)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_of_freed_tensors_is_used_again() -> None:
    def page_faults(how: str) -> int:
        command = [sys.executable, "-W", "ignore", "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert page_faults("keep") < 100 < page_faults("give back")
