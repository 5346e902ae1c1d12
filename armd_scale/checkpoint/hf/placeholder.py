"""A recipe for a model that was not trained here: conservative values for all but the model."""

from armd_scale.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    Recipe,
    RunConfig,
    TrainConfig,
)
from armd_scale.order.policies import LeftToRight

DEFAULT_SEQ_LENGTH = 1024


def placeholder_recipe(
    model: ModelConfig, *, run: RunConfig, parallel: ParallelConfig, is_half: bool
) -> Recipe:
    """Return the recipe, which need not pass the rules.

    Args:
        model: model section.
        run: run section.
        parallel: layout.
        is_half: whether the weights are in bf16.
    """
    positions = model.max_positions or DEFAULT_SEQ_LENGTH + 1
    return Recipe(
        run=run,
        # The prefix is no data: a run of the recipe as it is fails at once, with the key to set.
        data=DataConfig(train="unset", seq_length=min(positions - 1, DEFAULT_SEQ_LENGTH)),
        order=LeftToRight(),
        model=model,
        parallel=parallel,
        optim=OptimConfig(lr=1e-5, min_lr=1e-6, warmup_steps=100, schedule="cosine"),
        # For a fine-tuning recipe that extends this one.
        train=TrainConfig(
            steps=1000,
            micro_batch=1,
            global_batch=64,
            # bf16 cannot represent all fp16 values: fp16 weights train in fp32.
            precision="bf16" if is_half else "fp32",
        ),
        checkpoint=CheckpointConfig(every_steps=500),
        eval=EvalConfig(every_steps=0, orders=("l2r",), samples=64),
        log=LogConfig(every_steps=10),
    )
