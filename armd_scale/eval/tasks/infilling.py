"""Infilling: generate the middle of a text from both sides; compare with the original by ROUGE.

The usual data is ROCStories (Mostafazadeh et al., 2016, arXiv 1604.01696): five-sentence stories
with some of the middle sentences removed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.base import TaskOptions, read_examples
from armd_scale.eval.text_metrics import rouge, words
from armd_scale.generation import TO_GENERATE, GenerationSpec, Sampling, generate_from_specs
from armd_scale.generation.output_rules import rules_of
from armd_scale.generation.text_decoder import decode_rest
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import OrderPolicy


@dataclass(frozen=True, eq=False)
class InfillExample:
    """A text without its middle."""

    text: Int64[np.ndarray, " P"]
    """Tokens, with those that the tokenizer puts in front; TO_GENERATE for each token of the
    middle."""
    middle: str
    """The original middle."""


@dataclass(frozen=True, kw_only=True)
class InfillResult:
    """ROUGE of generated middles against the original ones."""

    task: str
    order: str
    """SPEC of the order in which the tokens of the middles were generated."""
    rouge_1: float
    rouge_2: float
    rouge_l: float
    """Mean F1 over passages, 0 to 1, of lower-case words without stemming."""
    rouge_1_standard_error: float | None
    rouge_2_standard_error: float | None
    rouge_l_standard_error: float | None
    """Standard errors of the means over passages; None for a single passage."""
    num_passages: int
    num_tokens: int
    """Number of generated tokens."""

    def format_line(self) -> str:
        """The figures as one line of text."""
        figures = []
        for name in InfillTask.score_names:
            error = getattr(self, f"{name}_standard_error")
            figures.append(
                f"{name.upper().replace('_', '-')} {getattr(self, name):.4f}"
                + ("" if error is None else f" (standard error {error:.4f})")
            )
        return "  ".join([self.task, self.order, *figures, f"{self.num_passages} passages"])


@dataclass(frozen=True)
class InfillTask:
    """Texts whose middles are generated."""

    name: ClassVar[str] = "infill"
    help: ClassVar[str] = (
        'infill {"before", "middle", "after"}: ROUGE-1, -2 and -L of the text generated between '
        "before and after, in --order and with as many tokens as middle, against middle"
    )
    score_names: ClassVar[tuple[str, ...]] = ("rouge_1", "rouge_2", "rouge_l")
    needs_left_to_right: ClassVar[bool] = False
    draws_tokens: ClassVar[bool] = True

    examples: Sequence[InfillExample]
    tokenizer: Tokenizer
    order: OrderPolicy
    """Order of the tokens of each middle, drawn as for a document of that length."""
    sampling: Sampling
    """How tokens are drawn; its seed is also the seed of order draws."""

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer, options: TaskOptions) -> "InfillTask":
        """Read JSON lines with the keys `before`, `middle` and `after`.

        The three concatenated are the whole text: a space between two of them must be in one.

        Raises:
            ArmdError: the file cannot be read or is empty, or a line is invalid or too long.
        """
        records = read_examples(
            path,
            _parse_parts,
            expected='an object with the strings "before", "middle" and "after", and at least one '
            "word in the middle",
        )
        encoder = TextEncoder(tokenizer)
        examples = []
        for location, (before, middle, after) in records:
            hole, suffix = encoder.encode_rest(middle), encoder.encode_rest(after)
            prefix = encoder.encode_prompt(before)
            # The parts are tokenized separately: no token may span the border of the hole, or the
            # context would reveal letters of the middle.
            text = np.concatenate((prefix, np.full(len(hole), TO_GENERATE), suffix))
            if len(text) > options.max_tokens:
                raise ArmdError(
                    f"{location} must have at most {options.max_tokens} tokens (got {len(text)}): "
                    "shorten it, or raise --seq-length"
                )
            examples.append(InfillExample(text.astype(np.int64), middle))
        return cls(examples[: options.max_examples], tokenizer, options.order, options.sampling)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def run(
        self,
        network: ArmdModel,
        indices: Sequence[int],
        *,
        micro_batch: int,
        on_batch: Callable[[int], None],
    ) -> Float64[Tensor, "indices 3"]:
        """Generate the middles of some examples; each depends on the seed and its index alone."""
        scores = torch.zeros(len(self.examples), 3, dtype=torch.float64)
        # A batch runs until its longest text is complete: similar lengths waste the least.
        by_length = sorted(indices, key=lambda i: len(self.examples[i].text))
        for start in range(0, len(by_length), micro_batch):
            batch = by_length[start : start + micro_batch]
            output = generate_from_specs(
                network,
                [self.generation_spec(i) for i in batch],
                sampling=self.sampling,
                sample_ids=batch,
                rules=rules_of(self.tokenizer),
            )
            for i, sample in zip(batch, output.samples, strict=True):
                first = int(sample.generated.argmax())
                generated = decode_rest(
                    self.tokenizer, sample.tokens[:first], sample.tokens[sample.generated]
                )
                score = rouge(words(generated), words(self.examples[i].middle))
                scores[i] = torch.tensor(
                    [score.rouge_1, score.rouge_2, score.rouge_l], dtype=torch.float64
                )
            on_batch(len(batch))
        # Batches are sorted by length; the caller expects its own order.
        return scores[list(indices)]

    def generation_spec(self, index: int) -> GenerationSpec:
        """Assign the middle's tokens to blocks, as those of a document of their number."""
        text = self.examples[index].text
        is_hole = text == TO_GENERATE
        # A document's first token is given and gets block 0, so one token more is drawn and the
        # first block dropped.
        length = int(is_hole.sum()) + 1
        block = np.zeros(len(text), dtype=np.int64)
        block[is_hole] = sample_blocks(
            self.order, seed=self.sampling.seed, sample_index=index, lengths=(length,)
        )[1:]
        # TO_GENERATE is -1, which is no row of the embedding. Any token serves as long as it is not
        # known.
        return GenerationSpec(tokens=np.where(is_hole, 0, text), block=block, known=~is_hole)

    def summarize(self, scores: Float64[Tensor, "examples 3"]) -> InfillResult:
        """Compute mean ROUGE over examples, with standard errors."""
        means = scores.mean(dim=0).tolist()
        errors: list[float | None] = [None, None, None]
        if len(scores) > 1:
            errors = (scores.std(dim=0) / math.sqrt(len(scores))).tolist()
        return InfillResult(
            task=self.name,
            order=str(self.order),
            rouge_1=means[0],
            rouge_2=means[1],
            rouge_l=means[2],
            rouge_1_standard_error=errors[0],
            rouge_2_standard_error=errors[1],
            rouge_l_standard_error=errors[2],
            num_passages=len(scores),
            num_tokens=sum(int((e.text == TO_GENERATE).sum()) for e in self.examples),
        )


def _parse_parts(record: Any) -> tuple[str, str, str]:
    before, middle, after = (record[key] for key in ("before", "middle", "after"))
    if not all(isinstance(part, str) for part in (before, middle, after)) or not words(middle):
        raise ValueError("not three strings with a word in the middle")
    return before, middle, after
