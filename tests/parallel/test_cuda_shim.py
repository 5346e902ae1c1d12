"""The CUDA shim."""

import pytest
import torch

from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is a no-op with CUDA")


def test_cuda_calls_are_redirected_to_the_cpu() -> None:
    with patch_cuda_for_cpu():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.ones(2, device=torch.device("cuda", 0)).device.type == "cpu"
        assert torch.arange(2, device="cpu").device.type == "cpu"
        assert torch.cuda.current_device() == torch.device("cpu")
        torch.cuda.synchronize()


def test_the_patch_is_undone_after_an_exception() -> None:
    originals = (torch.cuda.current_device, torch.cuda.synchronize)
    with pytest.raises(KeyError), patch_cuda_for_cpu():
        raise KeyError
    assert (torch.cuda.current_device, torch.cuda.synchronize) == originals
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")
