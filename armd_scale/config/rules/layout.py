"""Rules of the layout: how model and batch are split, alone and over a number of processes."""

from armd_scale.config import derived as derive
from armd_scale.config.messages import raise_rule_error
from armd_scale.config.resolve import resolve_kv_heads
from armd_scale.config.schema import Recipe


def check_tensor_parallel_divides(recipe: Recipe) -> None:
    """Tensor parallelism splits heads and MLP into equal shares."""
    model, tensor = recipe.model, recipe.parallel.tensor
    # The vocabulary is not listed, because the embedding is padded to equal shares. Nor is the
    # width of the residual stream, which every rank holds whole.
    sizes = {
        "heads": model.heads,
        "kv_heads": resolve_kv_heads(model),
        "ffn_hidden": model.ffn_hidden,
    }
    for name, size in sizes.items():
        if size % tensor:
            requirement = f"be a multiple of parallel.tensor = {tensor}"
            raise_rule_error(f"model.{name}", size, requirement=requirement)


def check_sequence_parallel(recipe: Recipe) -> None:
    """Sequence parallelism splits rows over the tensor parallel processes, in equal shares."""
    parallel, seq_length = recipe.parallel, recipe.data.seq_length
    if not parallel.sequence:
        return
    if parallel.tensor == 1:
        requirement, hint = "be > 1 with parallel.sequence", "or set parallel.sequence=false"
        raise_rule_error("parallel.tensor", parallel.tensor, requirement=requirement, hint=hint)
    # Lower layers split the 2N rows of both streams, upper layers N rows: N = 5 on 2 ranks would
    # fit the former and fail in the latter.
    if seq_length % parallel.tensor:
        requirement = f"be a multiple of parallel.tensor = {parallel.tensor} with parallel.sequence"
        raise_rule_error("data.seq_length", seq_length, requirement=requirement)


def check_enough_layers_for_pipeline(recipe: Recipe) -> None:
    """Every chunk of every pipeline stage has at least one layer."""
    parallel, layers = recipe.parallel, recipe.model.layers
    num_chunks = parallel.pipeline * parallel.virtual_pipeline
    if layers < num_chunks:
        requirement = f"be >= parallel.pipeline x parallel.virtual_pipeline = {num_chunks}"
        raise_rule_error("model.layers", layers, requirement=requirement)


def check_virtual_pipeline(recipe: Recipe) -> None:
    """Interleaving needs several pipeline stages."""
    parallel = recipe.parallel
    # With one stage megatron-core selects its schedule without pipelining, which takes one chunk.
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        key, requirement = "parallel.virtual_pipeline", "be 1 when parallel.pipeline is 1"
        raise_rule_error(key, parallel.virtual_pipeline, requirement=requirement)


def check_context_parallel_unsupported(recipe: Recipe) -> None:
    """Context parallelism is not supported: sorted rows need a split of their own."""
    if recipe.parallel.context != 1:
        requirement = "be 1, because splitting one sample over processes is not supported"
        hint = "split long samples with parallel.tensor and parallel.sequence"
        value = recipe.parallel.context
        raise_rule_error("parallel.context", value, requirement=requirement, hint=hint)


def check_zero_with_pipeline(recipe: Recipe) -> None:
    """ZeRO 3 gathers weights in every micro-batch, which stages reach at different times."""
    stage, pipeline = recipe.optim.zero_stage, recipe.parallel.pipeline
    # Without this rule such a job would hang instead of failing.
    if stage == 3 and pipeline > 1:
        requirement = f"be <= 2 with parallel.pipeline = {pipeline}"
        raise_rule_error("optim.zero_stage", stage, requirement=requirement)


def check_zero_for_bf16_and_offload(recipe: Recipe) -> None:
    """Only ZeRO's optimizers keep fp32 copies of bf16 weights, and only they can be offloaded."""
    # bf16 has 8 significant bits: added to a bf16 weight, an update below 1/512 of it is rounded
    # away.
    for key, value, required in (
        ("train.precision", recipe.train.precision, "fp32"),
        ("optim.offload", recipe.optim.offload, "none"),
    ):
        if recipe.optim.zero_stage == 0 and value != required:
            requirement = f"be {required} with optim.zero_stage = 0"
            raise_rule_error(key, value, requirement=requirement, hint="or set optim.zero_stage=1")


def check_world_size(recipe: Recipe, world_size: int) -> None:
    """The processes form groups that each hold the model once."""
    parallel = recipe.parallel
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model_size:
        requirement = f"be a multiple of parallel.tensor x pipeline x context = {model_size}"
        raise_rule_error("the number of processes", world_size, requirement=requirement)


def check_global_batch_divides(recipe: Recipe, world_size: int) -> None:
    """Every data parallel process has the same number of micro-batches."""
    train = recipe.train
    replicas = derive.data_parallel_size(recipe.parallel, world_size)
    share = train.micro_batch * replicas
    if train.global_batch % share:
        requirement = f"be a multiple of {share} (train.micro_batch x {replicas} processes)"
        raise_rule_error("train.global_batch", train.global_batch, requirement=requirement)


def check_interleaved_micro_batches(recipe: Recipe, world_size: int) -> None:
    """The interleaved schedule sends micro-batches through the stages in full rounds."""
    parallel = recipe.parallel
    replicas = derive.data_parallel_size(parallel, world_size)
    num_micro_batches = derive.accumulation_steps(recipe.train, replicas)
    # megatron-core groups micro-batches by the number of stages, and fails at the first step if the
    # last group is incomplete.
    if parallel.virtual_pipeline > 1 and num_micro_batches % parallel.pipeline:
        key = "train.global_batch / (train.micro_batch x data parallel size)"
        requirement = f"be a multiple of parallel.pipeline = {parallel.pipeline} when interleaved"
        hint = "change one of them, or set parallel.virtual_pipeline=1"
        raise_rule_error(key, num_micro_batches, requirement=requirement, hint=hint)


LAYOUT_RULES = (
    check_tensor_parallel_divides,
    check_sequence_parallel,
    check_enough_layers_for_pipeline,
    check_virtual_pipeline,
    check_context_parallel_unsupported,
    check_zero_with_pipeline,
    check_zero_for_bf16_and_offload,
)
# In this order: with fewer processes than one copy of the model needs there would be 0 replicas,
# and the second rule would divide by zero.
WORLD_RULES = (check_world_size, check_global_batch_divides, check_interleaved_micro_batches)
