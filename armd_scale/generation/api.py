"""Generation from text to text: what `armd_scale.generate` and `armd_scale.infill` are.

`generation.batch` has the same functions for batches of token sequences.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.generation.batch import (
    DEFAULT_SAMPLING,
    DEFAULT_STRATEGY,
    generate_tokens,
    infill_tokens,
)
from armd_scale.generation.output_rules import rules_of
from armd_scale.generation.sampling import Sampling
from armd_scale.generation.strategy import Strategy
from armd_scale.generation.text import (
    TextRecord,
    encode_infill_template,
    encode_prompt,
    text_records,
)
from armd_scale.model.armd_model import ArmdModel


@runtime_checkable
class LanguageModel(Protocol):
    """A network and its tokenizer, as `armd_scale.load_model` returns them."""

    # Properties, because a Protocol's plain attributes could also be assigned, which the frozen
    # dataclass of `load_model` does not allow.
    @property
    def network(self) -> ArmdModel:
        """The network in evaluation mode, on the device that generates."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the model was trained with; None if it is unknown."""
        ...


def generate(
    model: LanguageModel,
    prompt: str | None = None,
    *,
    num_tokens: int,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    num_samples: int = 1,
    stop_at_eos: bool = False,
    stops: Sequence[str] = (),
) -> list[TextRecord]:
    """Continue a prompt by `num_tokens` tokens.

    Example:
        generate(model, "def ", num_tokens=64, strategy=Strategy(streams=4))[0].text

    Args:
        model: what `load_model` returns.
        prompt: text to continue; None: start a document. A model without a tokenizer takes None,
            and returns texts of token ids.
        num_tokens: number of tokens to generate for each sample.
        strategy: order of generation and tokens per round; by default one token at a time.
        sampling: how tokens are drawn; by default from the model's own distribution, with seed 0.
        num_samples: number of samples, which are decoded as one batch.
        stop_at_eos: cut each sample before its first end-of-text token.
        stops: cut each sample before the first of these strings.

    Returns:
        One record per sample, with `.text` (prompt included), `.tokens` (the generated ones),
        `.rounds` (forward passes of the batch), `.logprob` and more.

    Raises:
        GenerationError: the model cannot serve the request.
    """
    template = encode_prompt(prompt, model.tokenizer)
    rules = rules_of(model.tokenizer, stop_at_eos=stop_at_eos, stops=stops)
    output = generate_tokens(
        model.network,
        [template.tokens] * num_samples,
        num_tokens=num_tokens,
        strategy=strategy,
        sampling=sampling,
        rules=rules,
    )
    return text_records(output, template, rules=rules)


def infill(
    model: LanguageModel,
    text: str,
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    num_samples: int = 1,
) -> list[TextRecord]:
    """Fill the holes of a text, in which {{n}} stands for n tokens to generate.

    Example:
        infill(model, "def {{6}}(self):")[0].text

    Args:
        model: what `load_model` returns; it must have a tokenizer.
        text: the text with holes, given on both sides of each hole.
        strategy: order of the tokens of all holes, as if they were one contiguous text.
        sampling: how tokens are drawn.
        num_samples: number of samples, which are decoded as one batch.

    Returns:
        One record per sample, as of `generate`.

    Raises:
        GenerationError: the text has no hole, or the model cannot serve the request.
    """
    template = encode_infill_template(text, model.tokenizer)
    output = infill_tokens(
        model.network,
        [template.tokens] * num_samples,
        strategy=strategy,
        sampling=sampling,
        rules=rules_of(model.tokenizer),
    )
    return text_records(output, template)
