"""Names of parameters in the whole network, independent of the pipeline layout."""

from torch import nn

EMBEDDING = "embedding.weight"


def parameters_by_name(*chunks: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of model chunks by their names in the whole network.

    Names are equal on every layout, so that checkpoints and initial weights do not depend on it:
    layers are numbered in the whole network, and the LM head's copy of a tied embedding on the last
    stage has the embedding's name, as it is the same tensor.
    """
    named = {}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            is_copy = getattr(parameter, "is_tied_copy", False)
            named[EMBEDDING if is_copy else name] = parameter
    return named
