"""The names of parameters in the whole network, whichever part of it a process holds."""

from torch import nn

EMBEDDING = "embedding.weight"


def parameters_by_name(*parts: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of one or several parts of the network by their names in the whole.

    Layers carry their number in the whole network. The head's copy of a tied embedding goes by the
    embedding's name: it is the same tensor, on another stage.
    """
    named = {}
    for part in parts:
        for name, parameter in part.named_parameters():
            is_copy = getattr(parameter, "is_tied_copy", False)
            named[EMBEDDING if is_copy else name] = parameter
    return named
