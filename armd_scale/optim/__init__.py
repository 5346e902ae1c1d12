"""Weight updates: learning rate schedule, parameter groups, AdamW under ZeRO, EMA."""

from armd_scale.parallel.environment import read_environment

# DeepSpeed chooses its accelerator when it is imported, which modules of this package do, by a
# variable that read_environment sets.
read_environment()
