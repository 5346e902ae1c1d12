"""What tools/generate.py needs besides generation: its options, its progress, and its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.files import require_parent_dir
from armd_scale.generation.batch import continuation_specs, generate_from_specs, infill_specs
from armd_scale.generation.live_view import live_progress
from armd_scale.generation.memory import require_memory_for_texts
from armd_scale.generation.output_rules import OutputRules, rules_of
from armd_scale.generation.replay import write_replay
from armd_scale.generation.result import GenerationOutput
from armd_scale.generation.sampling import Sampling
from armd_scale.generation.strategy import ConfidenceSchedule, GenerationSpec, Strategy
from armd_scale.generation.text import (
    TextTemplate,
    encode_infill_template,
    encode_prompt,
    text_records,
    write_records,
)
from armd_scale.model.armd_model import ArmdModel


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """Options of the generate command, except for the model."""

    prompt: str | None
    """Text to continue; None: start a document."""
    infill: str | None
    """Text with holes ({{n}}), in place of a prompt."""
    tokens: int
    """Number of tokens to continue by; holes have their own."""
    num_samples: int
    stop_at_eos: bool | None
    """Cut each sample before its first end-of-text token; None: if the model is for chats."""
    stop: Sequence[str]
    """Cut each sample before the first of these strings."""

    streams: int
    group: int | None
    random_order: bool
    dynamic: str | None
    """`RULE:k`, see `ConfidenceSchedule.parse`."""
    speculative: int | None

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    """Seed of the sampled tokens and of random orders."""

    tp: int
    """Tensor-parallel size."""
    json: Path | None
    """Output file for the texts and their figures."""
    replay_html: Path | None
    """Output file for a page that replays the order."""

    @cached_property
    def strategy(self) -> Strategy:
        """Order of generation.

        Raises:
            GenerationError: a number is invalid, or two strategies exclude each other.
        """
        return Strategy(
            streams=self.streams,
            group=self.group,
            random_order=self.random_order,
            dynamic=None if self.dynamic is None else ConfidenceSchedule.parse(self.dynamic),
            speculative=self.speculative,
        )

    @cached_property
    def sampling(self) -> Sampling:
        """How tokens are drawn.

        Raises:
            GenerationError: a number is invalid.
        """
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    def check(self, world_size: int) -> None:
        """Check all that does not depend on the model, before its folder is opened.

        Args:
            world_size: number of processes of the command.

        Raises:
            GenerationError: an option is invalid, or the folder of an output file does not exist.
        """
        # Both are built on first access, and raise then.
        _ = self.strategy, self.sampling
        check_num_processes(self.tp, world_size)
        require_parent_dir(self.json, "--json", error_class=GenerationError)
        require_parent_dir(self.replay_html, "--replay-html", error_class=GenerationError)

    def encode_text(self, tokenizer: Tokenizer | None) -> TextTemplate:
        """Tokenize the prompt, or the text with holes.

        Args:
            tokenizer: the model's.

        Raises:
            GenerationError: both texts are set, or the text cannot be encoded.
        """
        if self.infill is None:
            return encode_prompt(self.prompt, tokenizer)
        if self.prompt is not None:
            raise GenerationError(
                "a text can be continued or infilled, not both (got --prompt and --infill): write "
                "the prompt into the text with holes"
            )
        return encode_infill_template(self.infill, tokenizer)

    def rules_for(self, tokenizer: Tokenizer | None, *, is_chat_model: bool) -> OutputRules:
        """Return which tokens may be generated, and what ends a text early.

        Args:
            tokenizer: the model's; without one, nothing ends a text early.
            is_chat_model: whether the model was trained to end its answers.

        Raises:
            GenerationError: a stop string is empty, or there is no tokenizer to find it with.
        """
        if self.stop and self.infill is not None:
            raise GenerationError(
                "--stop ends the continuation of a prompt (got it with --infill, whose holes have "
                "a number of tokens of their own): leave it out"
            )
        stops = is_chat_model if self.stop_at_eos is None else self.stop_at_eos
        # Holes have a number of tokens of their own.
        return rules_of(tokenizer, stop_at_eos=stops and self.infill is None, stops=self.stop)

    def build_specs(self, template: TextTemplate) -> list[GenerationSpec]:
        """Return the specs of samples that continue the prompt, or that fill the holes of a text.

        Args:
            template: what `encode_text` returned.

        Raises:
            GenerationError: a number is invalid, or the texts do not fit into memory.
        """
        # The index of a sample keys its random numbers: n samples begin with those of a smaller n.
        sample_ids = range(self.num_samples)
        require_memory_for_texts(self.num_samples, 1)  # before the lists below exist
        if self.infill is None:
            return continuation_specs(
                [template.tokens] * self.num_samples,
                sample_ids,
                num_tokens=self.tokens,
                strategy=self.strategy,
                sampling=self.sampling,
            )
        return infill_specs(
            [template.tokens] * self.num_samples,
            sample_ids,
            strategy=self.strategy,
            sampling=self.sampling,
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


def generate_from_request(
    request: GenerateRequest,
    network: ArmdModel,
    specs: Sequence[GenerationSpec],
    rules: OutputRules,
    *,
    is_rank0: bool,
) -> GenerationOutput:
    """Generate the texts, with a live view on a terminal; every rank must call it.

    Args:
        request: the options.
        network: the model, in evaluation mode.
        specs: what `request.build_specs` returned.
        rules: what `request.rules_for` returned.
        is_rank0: whether this process shows the live view.

    Raises:
        GenerationError: the model cannot serve the request.
    """
    with live_progress(specs, rules.tokenizer, is_rank0=is_rank0) as on_round:
        return generate_from_specs(
            network,
            specs,
            strategy=request.strategy,
            sampling=request.sampling,
            rules=rules,
            on_round=on_round,
            # Several ranks would stop in different rounds.
            keep_on_interrupt=request.tp == 1,
        )


def print_and_write(
    request: GenerateRequest,
    output: GenerationOutput,
    template: TextTemplate,
    rules: OutputRules,
) -> None:
    """Write the requested files, then print the texts and a line of figures.

    Raises:
        GenerationError: a file cannot be written.
    """
    records = text_records(output, template, rules=rules)
    # Files first: a closed pipe behind the printed text must not lose them.
    if request.json is not None:
        write_records(request.json, records)
    if request.replay_html is not None:
        write_replay(request.replay_html, output, template.tokenizer)
    for record in records:
        print(f"{record.text}\n[unigram entropy {record.entropy_bits:.2f} bits]\n")
    # The rate is None unless drafts were verified, and the line then says nothing of drafts.
    rate = output.acceptance_rate
    drafts = "" if rate is None else f", {rate:.0%} of drafts accepted"
    print(
        f"{output.rounds} rounds, {output.tokens_per_round:.2f} tokens per round{drafts}, "
        f"{output.seconds:.2f} s, {output.tokens_per_second:.1f} tokens/s"
    )
