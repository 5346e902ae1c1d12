"""What a layout must hold: how model and batch are split, alone and over a number of processes."""

from armd_scale.config import derived as derive
from armd_scale.config.messages import raise_rule_error
from armd_scale.config.schema import Recipe


def check_tensor_parallel_divides(recipe: Recipe) -> None:
    """Heads and MLP are cut in equal shares."""
    model, tensor = recipe.model, recipe.parallel.tensor
    widths = {
        "heads": model.heads,
        "kv_heads": derive.kv_heads(model),
        "ffn_hidden": model.ffn_hidden,
    }
    for name, width in widths.items():
        if width % tensor:
            must = f"be a multiple of parallel.tensor ({tensor})"
            raise_rule_error(f"model.{name}", width, requirement=must, hint="lower parallel.tensor")


def check_sequence_parallel(recipe: Recipe) -> None:
    """Sequence parallelism shares rows among the tensor processes, equally."""
    parallel, seq_length = recipe.parallel, recipe.data.seq_length
    if not parallel.sequence:
        return
    if parallel.tensor == 1:
        must, advice = "be above 1 for parallel.sequence", "raise it or set parallel.sequence=false"
        raise_rule_error("parallel.tensor", parallel.tensor, requirement=must, hint=advice)
    if seq_length % parallel.tensor:
        must = f"be a multiple of parallel.tensor ({parallel.tensor}) for parallel.sequence"
        raise_rule_error("data.seq_length", seq_length, requirement=must, hint="change one of them")


def check_enough_layers_for_pipeline(recipe: Recipe) -> None:
    """Every chunk of every pipeline stage holds a layer."""
    parallel, layers = recipe.parallel, recipe.model.layers
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if layers < chunks:
        must = f"be at least parallel.pipeline x parallel.virtual_pipeline ({chunks})"
        raise_rule_error("model.layers", layers, requirement=must, hint="lower one of those two")


def check_virtual_pipeline(recipe: Recipe) -> None:
    """The interleaved schedule interleaves chunks of several stages."""
    parallel = recipe.parallel
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        must = "be 1 without a pipeline (parallel.pipeline is 1)"
        advice = "lower it or raise parallel.pipeline"
        raise_rule_error(
            "parallel.virtual_pipeline", parallel.virtual_pipeline, requirement=must, hint=advice
        )


def check_context_parallel_unsupported(recipe: Recipe) -> None:
    """Rows of one sample stay together: sorted orders do not cut into equal causal shares."""
    if recipe.parallel.context != 1:
        advice = "split long samples with parallel.tensor and parallel.sequence instead"
        must = "be 1, because one sample cannot be shared out over processes yet"
        raise_rule_error("parallel.context", recipe.parallel.context, requirement=must, hint=advice)


def check_zero_with_pipeline(recipe: Recipe) -> None:
    """ZeRO 3 gathers weights in each micro-batch, which stages reach at different times."""
    stage, pipeline = recipe.optim.zero_stage, recipe.parallel.pipeline
    if stage == 3 and pipeline > 1:
        must = f"be at most 2 with a pipeline (parallel.pipeline is {pipeline})"
        raise_rule_error(
            "optim.zero_stage", stage, requirement=must, hint="lower it or set parallel.pipeline=1"
        )


def check_zero_for_bf16_and_offload(recipe: Recipe) -> None:
    """Only ZeRO's optimizers hold fp32 weights beside bf16 ones, and only they can offload."""
    for key, value, plain in (
        ("train.precision", recipe.train.precision, "fp32"),
        ("optim.offload", recipe.optim.offload, "none"),
    ):
        if recipe.optim.zero_stage == 0 and value != plain:
            must = f"be {plain} with optim.zero_stage 0"
            raise_rule_error(
                key, value, requirement=must, hint="change it or set optim.zero_stage=1"
            )


def check_world_size(recipe: Recipe, world_size: int) -> None:
    """Processes come in groups that hold the model once."""
    parallel = recipe.parallel
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model_size:
        must = f"be a multiple of parallel.tensor x pipeline x context ({model_size})"
        advice = "start more processes or split the model less"
        raise_rule_error("the number of processes", world_size, requirement=must, hint=advice)


def check_global_batch_divides(recipe: Recipe, world_size: int) -> None:
    """Every data parallel process gets the same number of micro-batches."""
    train = recipe.train
    data_parallel_size = derive.data_parallel_size(recipe.parallel, world_size)
    share = train.micro_batch * data_parallel_size
    if train.global_batch % share:
        must = f"be a multiple of {share} (train.micro_batch x {data_parallel_size} processes)"
        raise_rule_error(
            "train.global_batch", train.global_batch, requirement=must, hint="change one of them"
        )


def check_interleaved_micro_batches(recipe: Recipe, world_size: int) -> None:
    """The interleaved schedule sends micro-batches through the stages in full rounds."""
    parallel = recipe.parallel
    replicas = derive.data_parallel_size(parallel, world_size)
    count = derive.accumulation_steps(recipe.train, replicas)
    if parallel.virtual_pipeline > 1 and count % parallel.pipeline:
        key = "train.global_batch / (train.micro_batch x data parallel size)"
        must = f"be a multiple of parallel.pipeline ({parallel.pipeline}) when interleaved"
        raise_rule_error(
            key, count, requirement=must, hint="change one, or set parallel.virtual_pipeline=1"
        )


LAYOUT_RULES = (
    check_tensor_parallel_divides,
    check_sequence_parallel,
    check_enough_layers_for_pipeline,
    check_virtual_pipeline,
    check_context_parallel_unsupported,
    check_zero_with_pipeline,
    check_zero_for_bf16_and_offload,
)
WORLD_RULES = (check_world_size, check_global_batch_divides, check_interleaved_micro_batches)
