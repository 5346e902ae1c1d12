"""What a command line asks of the sampler, checked before anything is loaded; what it prints."""

from pathlib import Path

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.generation.generate import continuations, infillings
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


def check_layout(tensor: int, world_size: int) -> None:
    """Refuses a number of processes that is not the tensor-parallel layout's.

    Raises:
        GenerationError: it is not.
    """
    if tensor < 1 or tensor != world_size:
        raise GenerationError(
            f"tensor-parallel generation must run on as many processes as --tp says, got --tp "
            f"{tensor} on {world_size}: start it through torchrun --nproc-per-node {max(tensor, 1)}"
        )


def build_specs(
    *,
    prompt: str | None,
    holes: str | None,
    num_tokens: int,
    num_samples: int,
    strategy: Strategy,
    sampling: Sampling,
    tokenizer: Tokenizer | None,
) -> list[GenerationSpec]:
    """The outlines of samples that continue a prompt, or fill the holes of a text.

    Raises:
        GenerationError: both at once, or a text that cannot be read.
    """
    numbers = range(num_samples)
    if holes is None:
        opening = encode_prompt(prompt, tokenizer)
        return continuations(
            [opening] * num_samples,
            numbers,
            num_tokens=num_tokens,
            strategy=strategy,
            sampling=sampling,
        )
    if prompt is not None:
        raise GenerationError(
            "a text must be continued or infilled, got --prompt and --infill: write the prompt "
            "into the text with holes"
        )
    text = encode_infill_template(holes, tokenizer)
    return infillings([text] * num_samples, numbers, strategy=strategy, sampling=sampling)


def print_and_write(
    made: GenerationOutput,
    tokenizer: Tokenizer | None,
    *,
    records: Path | None,
    replay: Path | None,
) -> None:
    """Writes the files that were asked for, then prints texts and what they took.

    Raises:
        GenerationError: a file cannot be written.
    """
    texts = text_records(made, tokenizer)
    if records is not None:
        write_records(records, texts)
    if replay is not None:
        write_replay(replay, made, tokenizer)
    for text in texts:
        print(f"{text.text}\n[unigram entropy {text.entropy_bits:.2f} bits]\n")
    rate = made.acceptance_rate
    drafts = "" if rate is None else f", {rate:.0%} of drafts accepted"
    print(
        f"{made.rounds} rounds, {made.tokens_per_round:.2f} tokens a round{drafts}, "
        f"{made.seconds:.2f} s, {made.tokens_per_second:.1f} tokens/s"
    )
