"""The recipe: all settings of a run, as frozen dataclasses in the order in which data flows.

The string under a field gives its meaning and unit; recipes/README.md is generated from it. Steps
are optimizer steps, and `every_steps: 0` means never. Nothing here depends on devices, processes or
files: `load` reads a recipe, `rules` checks what types cannot express, and `resolve` fills in what
a recipe leaves open (null). The section `order` is defined by the policies in `order.policies`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from armd_scale.order.policies.base import OrderPolicy

QueryKind: TypeAlias = Literal["anchor", "prefix", "learned", "anchor+prefix"]

# All classes are `frozen` and `kw_only`. Frozen makes them hashable: one may be the default of a
# field or a key of functools.cache. Keyword-only lets a required field follow an optional one, so
# that related fields stay together (`seq_length` after `valid`).


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run's name, folder and seed."""

    name: str
    """Name of the run in logs and reports."""
    folder: str
    """Folder for checkpoints, metrics.jsonl, the resolved recipe and log.txt."""
    seed: int = 1234
    """Seed of initial weights, of the sample sequence and of drawn orders."""


@dataclass(frozen=True, kw_only=True)
class BlendSource:
    """One source of a blend of training data."""

    path: str | tuple[str, ...]
    """Prefix of a .bin/.idx pair; or several, as a list or by `*`, which are one source: together
    they have the weight, and each its share of it by its number of windows."""
    weight: float
    """Share of the samples, relative to the other sources."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes of the source."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Token data and how it is cut into samples."""

    train: str | tuple[BlendSource, ...]
    """Prefix of the training .bin/.idx pair, by `*` of several, or a weighted list of prefixes."""
    valid: str | None = None
    """Prefix of the validation .bin/.idx pair; null: no evaluation."""
    seq_length: int
    """N, the number of targets of a sample; a sample has N + 1 tokens."""
    packing: Literal["concat", "documents"] = "concat"
    """`concat`: a sample is one text; `documents`: each document is ordered alone and attends to
    itself only."""
    workers: int = 2
    """Loader processes per rank; 0: read in the training process."""

    @property
    def sources(self) -> tuple[BlendSource, ...]:
        """The sources of the training data."""
        # With one source any weight gives the same samples.
        train = self.train
        return (BlendSource(path=train, weight=1.0),) if isinstance(train, str) else train


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary wavelengths for contexts longer than the original one."""

    rope_type: Literal["llama3", "linear", "yarn"] = "llama3"
    """`linear` scales all wavelengths; `llama3` and `yarn` leave short wavelengths as they are."""
    factor: float
    """Factor by which wavelengths grow."""
    low_freq_factor: float | None = None
    """`llama3` only: pairs with fewer rotations over the original context are scaled fully."""
    high_freq_factor: float | None = None
    """`llama3` only: pairs with more rotations over the original context are not scaled."""
    beta_slow: float | None = None
    """`yarn` only: pairs with fewer rotations over the original context are scaled fully."""
    beta_fast: float | None = None
    """`yarn` only: pairs with more rotations over the original context are not scaled."""
    original_max_position_embeddings: int | None = None
    """`llama3` and `yarn`: context length of the original training, in tokens."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two-stream transformer."""

    layers: int
    """L, number of transformer layers."""
    hidden: int
    """d, width of the residual stream."""
    ffn_hidden: int
    """Inner width of the MLP."""
    heads: int
    """Query heads of one stream."""
    kv_heads: int | None = None
    """Key/value heads; null: as many as query heads."""
    head_dim: int | None = None
    """Width of a head; null: hidden / heads."""
    vocab_size: int | None = None
    """Number of tokens before padding; null: from the manifest of the training shards."""
    two_stream_layers: int | None = None
    """Number of lower layers that run both streams; null: half of all; 0: a plain AR stack."""
    query: QueryKind = "anchor"
    """Initialization of query rows: `anchor`, the nearest visible token on the left; `prefix`, a
    mean of all visible tokens; `learned`, one vector; `anchor+prefix`, the sum of the first two."""
    upper_visibility: Literal["block", "self"] = "block"
    """What a query row of the upper layers sees of its own block: all (the paper), or itself."""
    max_anchor_gap: int = 64
    """K, the largest gap to the anchor with an embedding of its own; the table has K + 1 rows."""
    prefix_width: int = 128
    """Width of the position embedding that weights visible tokens under `query: prefix`."""
    position_embedding: Literal["rope", "learned_absolute"] = "rope"
    """Rotary embedding in every layer, or a learned absolute embedding added to the input."""
    max_positions: int | None = None
    """Longest text in tokens; null: data.seq_length + 1 where positions are rows of a table
    (`learned_absolute` or a prefix query), no limit otherwise."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Scaling of rotary wavelengths; null: none."""
    partial_rotary_factor: float = 1.0
    """Fraction of a head's channels, the first ones, that rotary embedding rotates."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of all norms."""
    norm_position: Literal["pre", "post"] = "pre"
    """Norms on the inputs of attention and MLP, or on their outputs (OLMo 2)."""
    norm_eps: float = 1e-5
    """Added to the variance inside the square root."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    """Non-linearity of the MLP; `gelu_tanh` is GPT-2's approximation."""
    parallel_residual: bool = False
    """Attention and MLP read the same input, and both outputs are added to it (GPT-NeoX)."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """Norm on each query and key head (Qwen 3), or over all heads of a projection (OLMo 2)."""
    attention_bias: bool = False
    """Bias on the query, key and value projections."""
    attention_output_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    """Bias on the MLP projections."""
    dropout: float = 0.0
    """Dropout probability on the embeddings and on the output of attention and MLP, in training."""
    tie_embeddings: bool = True
    """The LM head shares the weights of the token embedding."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    init_from: str | None = None
    """Checkpoint whose weights (without optimizer) the run starts from; `.` in a recipe file: the
    checkpoint that the file lies in; null: random weights. A section that does not describe a
    network takes it from the checkpoint."""

    @property
    def has_position_table(self) -> bool:
        """Whether positions are rows of a table, which limits the text length; rotary do not."""
        # A substring test: `prefix` and `anchor+prefix` both have the table of the prefix query.
        return self.position_embedding == "learned_absolute" or "prefix" in self.query


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is split over processes; data parallelism uses the remaining factor."""

    tensor: int = 1
    """Tensor parallel size: processes that share each matrix."""
    pipeline: int = 1
    """Pipeline parallel size: processes that share the layers."""
    virtual_pipeline: int = 1
    """Model chunks per process in the interleaved pipeline schedule."""
    sequence: bool = False
    """Sequence parallelism: split norms and residuals by rows over the tensor parallel group."""
    context: int = 1
    """Context parallel size: processes that share the rows of one sample."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its learning rate schedule, and ZeRO."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """Split over data parallel processes: 1 optimizer state, 2 also gradients, 3 also weights."""
    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 3e-5
    """Learning rate at the last step of a decaying schedule."""
    warmup_steps: int
    """Steps of linear warm-up from 0 to `lr`."""
    schedule: Literal["cosine", "wsd", "constant"]
    """After warm-up: cosine decay, constant with a final linear decay (`wsd`), or constant."""
    decay_steps: int | None = None
    """Length of the final decay of `wsd`, in steps; null: a tenth of train.steps."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases and vectors have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two Adam moments."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    clip_grad: float = 1.0
    """Maximum global L2 norm of the gradient; 0: no clipping."""
    offload: Literal["none", "optimizer"] = "none"
    """`optimizer`: the optimizer state is kept, and its step computed, in host memory."""
    ema_decay: float | None = None
    """Decay per step of the exponential moving average of the weights; null: no average."""


@dataclass(frozen=True, kw_only=True)
class LossGuardConfig:
    """Handling of non-finite losses and gradients, and of loss spikes."""

    spike_factor: float = 0.0
    """A loss above this multiple of the median of recent losses is a spike; 0: no detection."""
    window_steps: int = 64
    """Number of recent losses in the median; spikes are detected only after as many steps."""
    max_consecutive_bad_steps: int = 3
    """Bad steps in a row that are skipped before the run rolls back to a checkpoint."""
    max_rollbacks: int = 2
    """Rollbacks before the run ends with an error."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Knowledge distillation from a frozen teacher on left-to-right samples.

    The teacher is replicated over data parallel processes, also under ZeRO 3.
    """

    checkpoint: str
    """Checkpoint of the teacher, with the same vocabulary; usually that of `model.init_from`."""
    weight: float
    """Weight in the loss of the divergence from the teacher, averaged over left-to-right targets;
    0: report it only."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, batch sizes, precision and memory."""

    steps: int
    """Optimizer steps of the whole run."""
    micro_batch: int
    """Samples in one forward pass of one data parallel process."""
    global_batch: int
    """Samples in one optimizer step, over all processes."""
    precision: Literal["fp32", "bf16"]
    """Type of weights in the forward and backward pass; the optimizer keeps fp32 weights."""
    recompute: Literal["none", "full", "selective", "auto"] = "none"
    """Activations recomputed in the backward pass: none, whole layers (`full`) or attention only
    (`selective`); `auto`: the cheapest of these that fits the GPU according to tools/plan.py."""
    loss_guard: LossGuardConfig = LossGuardConfig()
    """Handling of non-finite and spiking losses."""
    hang_timeout_seconds: float = 1800.0
    """Seconds a process may stay in one phase (a save, one evaluation) before the job ends with
    status 75 for a restart; 0: no limit."""
    deterministic: bool = False
    """Use deterministic kernels: bit-equal reruns on the same layout and machine, but slower."""
    distillation: DistillationConfig | None = None
    """Distillation from a frozen teacher; null: none."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints: when they are written, how many are kept, where a run resumes."""

    every_steps: int
    """Steps between checkpoints."""
    keep: int = 3
    """Number of newest checkpoints to keep; older ones are removed after a save; 0: keep all."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are never removed, and do not replace one of
    `keep`; 0: no such steps."""
    asynchronous: bool = False
    """Write in the background: training waits only for a copy to host memory, of the same size."""
    resume: str = "auto"
    """`auto`: the newest valid checkpoint in the run's folder; `never`; or the path of one."""
    allow_changes: bool = False
    """Resume also with settings or data under which the steps so far would have been others."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Likelihood on validation data during training."""

    every_steps: int
    """Steps between evaluations."""
    orders: tuple[str, ...]
    """SPECs of the orders to evaluate under, such as `l2r` or `strided:4`."""
    samples: int
    """Samples per order."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, in addition to metrics.jsonl."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes files that `wandb sync` uploads later."""
    project: str = "armd_scale"
    """Project of the run."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Metrics of the run."""

    every_steps: int
    """Steps between lines of metrics.jsonl."""
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run."""

    run: RunConfig
    """Name, folder and seed."""
    data: DataConfig
    """Token data."""
    order: OrderPolicy
    """Order in which the tokens of a sample are predicted."""
    model: ModelConfig
    """The network."""
    parallel: ParallelConfig = ParallelConfig()
    """How the network is split over processes."""
    optim: OptimConfig
    """Optimizer and learning rate."""
    train: TrainConfig
    """Length, batch sizes and precision."""
    checkpoint: CheckpointConfig
    """Checkpoints."""
    eval: EvalConfig
    """Evaluations during training."""
    log: LogConfig
    """Metrics."""
