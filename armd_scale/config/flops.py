"""Count the operations of a training step that the model needs, whatever the hardware.

One multiply-add counts as two operations. Only matrix products count: norms, activations and
softmax are below a percent of them.
"""

from dataclasses import dataclass

from armd_scale.config.resolve import ResolvedModel


@dataclass(frozen=True, kw_only=True)
class LayerRowFlops:
    """Forward operations of one layer on one row."""

    keys_values: int
    """Key and value projections."""
    output: int
    """Query projection, scores, weighted values, output projection and MLP."""


def row_flops(model: ResolvedModel, seq_length: int) -> LayerRowFlops:
    """Count the matrix products of one layer on one row of a window of `seq_length` targets."""
    d, width = model.hidden, model.heads * model.head_dim
    matrices = 3 if model.activation == "swiglu" else 2
    projections = 2 * (2 * d * width)
    mlp = matrices * (2 * d * model.ffn_hidden)
    # Scores and weighted values; a causal row sees half of the sequence on average.
    attention = 2 * (2 * width * seq_length) // 2
    keys_values = 2 * (2 * d * model.kv_heads * model.head_dim)
    return LayerRowFlops(keys_values=keys_values, output=projections + mlp + attention)


def layer_flops(model: ResolvedModel, seq_length: int) -> tuple[int, ...]:
    """Count the matrix products of the forward pass per target, layer by layer.

    Every layer needs one row's keys and values: the content row's in two-stream layers, the query
    row's above them. Every layer computes the query row's output. Content rows need their output
    only as input of the next two-stream layer, so not in the last one.
    """
    row = row_flops(model, seq_length)
    # With 12 layers, 6 of them two-stream, content rows run through 5 layers: 17 layer outputs per
    # target against 12 in an AR model.
    content_outputs = max(0, model.two_stream_layers - 1)
    return tuple(
        row.keys_values + row.output * (2 if layer < content_outputs else 1)
        for layer in range(model.layers)
    )


def head_flops(model: ResolvedModel, vocab_size: int) -> int:
    """Count the matrix product of the LM head per target; it reads query rows only."""
    return 2 * model.hidden * vocab_size


def query_start_flops(model: ResolvedModel, seq_length: int) -> int:
    """Count the prefix query per target: weights <PE_p, PE_j> and their sum, over half the text."""
    uses_prefix = "prefix" in model.query
    return seq_length * (model.prefix_width + model.hidden) if uses_prefix else 0


def forward_flops_per_token(model: ResolvedModel, seq_length: int, vocab_size: int) -> int:
    """Count the matrix products of the forward pass per target."""
    query_init, head = query_start_flops(model, seq_length), head_flops(model, vocab_size)
    return query_init + sum(layer_flops(model, seq_length)) + head


def model_flops_per_token(model: ResolvedModel, seq_length: int, vocab_size: int) -> int:
    """Count the operations of forward and backward pass per target, without recomputation.

    The backward pass costs twice the forward pass: one product for the gradient of the inputs, one
    for the gradient of the weights.
    """
    return 3 * forward_flops_per_token(model, seq_length, vocab_size)
