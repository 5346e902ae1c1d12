"""What tools/generate.py needs besides generation: checks of its options, and its output."""

from pathlib import Path

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.generation.batch import continuation_specs, infill_specs
from armd_scale.generation.replay import write_replay
from armd_scale.generation.result import GenerationOutput
from armd_scale.generation.sampling import Sampling
from armd_scale.generation.strategy import GenerationSpec, Strategy
from armd_scale.generation.text import (
    encode_infill_template,
    encode_prompt,
    text_records,
    write_records,
)


def check_num_processes(tensor_parallel: int, world_size: int) -> None:
    """Check that the number of processes is the tensor-parallel size.

    Raises:
        GenerationError: it is not.
    """
    if tensor_parallel < 1 or tensor_parallel != world_size:
        raise GenerationError(
            f"--tp must equal the number of processes (got --tp {tensor_parallel} on {world_size}):"
            f" start the command with torchrun --nproc-per-node {max(tensor_parallel, 1)}"
        )


def build_specs(
    *,
    prompt: str | None,
    infill: str | None,
    num_tokens: int,
    num_samples: int,
    strategy: Strategy,
    sampling: Sampling,
    tokenizer: Tokenizer | None,
) -> list[GenerationSpec]:
    """Return the specs of samples that continue a prompt, or that fill the holes of a text.

    Args:
        prompt: text to continue; None: start a document.
        infill: text with holes ({{n}}), in place of a prompt.
        num_tokens: number of tokens to continue by; holes have their own.
        num_samples: number of samples.
        strategy: order of generation.
        sampling: its seed draws random orders.
        tokenizer: the model's.

    Raises:
        GenerationError: both texts are set, or the text cannot be encoded.
    """
    # The index of a sample keys its random numbers: n samples begin with those of a smaller n.
    sample_ids = range(num_samples)
    if infill is None:
        start = encode_prompt(prompt, tokenizer)
        return continuation_specs(
            [start] * num_samples,
            sample_ids,
            num_tokens=num_tokens,
            strategy=strategy,
            sampling=sampling,
        )
    if prompt is not None:
        raise GenerationError(
            "a text can be continued or infilled, not both (got --prompt and --infill): write the "
            "prompt into the text with holes"
        )
    template = encode_infill_template(infill, tokenizer)
    return infill_specs([template] * num_samples, sample_ids, strategy=strategy, sampling=sampling)


def print_and_write(
    output: GenerationOutput,
    tokenizer: Tokenizer | None,
    *,
    json_file: Path | None,
    replay_file: Path | None,
) -> None:
    """Write the requested files, then print the texts and a line of figures.

    Raises:
        GenerationError: a file cannot be written.
    """
    records = text_records(output, tokenizer)
    # Files first: a closed pipe behind the printed text must not lose them.
    if json_file is not None:
        write_records(json_file, records)
    if replay_file is not None:
        write_replay(replay_file, output, tokenizer)
    for record in records:
        print(f"{record.text}\n[unigram entropy {record.entropy_bits:.2f} bits]\n")
    # The rate is None unless drafts were verified, and the line then says nothing of drafts.
    rate = output.acceptance_rate
    drafts = "" if rate is None else f", {rate:.0%} of drafts accepted"
    print(
        f"{output.rounds} rounds, {output.tokens_per_round:.2f} tokens per round{drafts}, "
        f"{output.seconds:.2f} s, {output.tokens_per_second:.1f} tokens/s"
    )
