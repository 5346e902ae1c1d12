"""Rounds of decoding of a 1B model, in bfloat16 and float32, in one stream and in four."""

from functools import partial
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.gpu_check.results import Recorder
from armd_scale.bench.gpu_check.steps import TINY
from armd_scale.bench.suites.decode import PROMPT
from armd_scale.bench.suites.step import WORKLOADS, Workload, build_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.generation import Strategy, generate_tokens
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

MAX_ROUND_MS = 8
"""Reading the weights takes 0.8 ms of a round (bfloat16) or 1.6 ms (float32), launching about 700
kernels 5 ms."""
STREAMS = (1, 4)


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    workload = TINY if dry else WORKLOADS["1b"]
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        for dtype in (torch.bfloat16, torch.float32):
            network = _build(workload, groups, dtype, environment.device)
            _time_rounds(recorder, network, workload, dtype=dtype)
            del network  # before the next one is built
            if environment.device.type == "cuda":
                torch.cuda.empty_cache()


def _build(
    workload: Workload, groups: ProcessGroupCollection, dtype: torch.dtype, device: torch.device
) -> ArmdModel:
    return build_model(workload.model, workload, groups, dtype=dtype, device=device).eval()


def _time_rounds(
    recorder: Recorder, network: ArmdModel, workload: Workload, *, dtype: torch.dtype
) -> None:
    on_cuda = next(network.parameters()).is_cuda
    num_tokens = min(96 if on_cuda else 24, workload.seq_length // 2)
    for streams in STREAMS:
        strategy = Strategy(streams=streams)
        decode = partial(
            generate_tokens, network, [PROMPT], num_tokens=num_tokens, strategy=strategy
        )
        # The clock of `generate_tokens` needs no synchronize: it stops after the tokens have been
        # copied to the host. Prompt and first round are included, loading the model is not.
        decode()  # warms up
        output = decode()
        milliseconds = 1e3 * output.seconds / output.rounds
        value = f"{milliseconds:.2f} ms a round, {num_tokens / output.seconds:.0f} tokens/s"
        noun = "stream" if streams == 1 else "streams"
        name = f"decoding, {str(dtype).removeprefix('torch.')}, {streams} {noun}"
        if on_cuda:
            recorder.check(milliseconds < MAX_ROUND_MS, name, value, f"< {MAX_ROUND_MS} ms")
        else:
            recorder.info(name, value)
