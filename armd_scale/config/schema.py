"""The recipe: everything that decides a run, as frozen data in the order in which data flows.

A string under a field gives its meaning and unit. Steps are optimizer steps, and `every_steps: 0`
means never. Nothing here knows of devices, processes or files: `load` reads it, and `rules` checks
what types cannot say.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, Union

QueryKind: TypeAlias = Literal["anchor", "prefix", "learned", "anchor+prefix"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which run this is."""

    name: str
    """What logs and reports call the run."""
    folder: str
    """Where checkpoints, metrics.jsonl, the resolved recipe and log.txt go."""
    seed: int = 1234
    """Seed of initial weights, sample order and generation orders."""


@dataclass(frozen=True, kw_only=True)
class BlendSource:
    """One source of a blend of training data."""

    path: str
    """Prefix of a .bin/.idx pair."""
    weight: float
    """Share of the samples, relative to the other sources."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which tokens are read, and how they are cut into samples."""

    train: str | tuple[BlendSource, ...]
    """Prefix of the training .bin/.idx pair, or a weighted list of prefixes."""
    valid: str | None = None
    """Prefix of the held-out .bin/.idx pair."""
    seq_length: int
    """N, the number of targets of a sample; a sample holds N + 1 tokens."""
    packing: Literal["concat", "documents"] = "concat"
    """`concat`: a sample is one text; `documents`: documents are ordered and seen by themselves."""
    workers: int = 2
    """Loader processes per rank; 0 reads in the training process."""


@dataclass(frozen=True, kw_only=True)
class LeftToRightConfig:
    """Text order, one token a block: the auto-regressive order."""

    policy: ClassVar[Literal["l2r"]] = "l2r"


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig:
    """Text order in which a growing number of tokens exchange places (ARMD, arXiv 2601.16971)."""

    policy: ClassVar[Literal["progressive"]] = "progressive"
    ar_steps: int
    """Steps of pure text order at the start (the paper's i_AR)."""
    ramp_end: int
    """Step at which the number of shuffled tokens reaches `rho` (the paper's i_perm)."""
    rho: int
    """Largest number of shuffled tokens in a sample."""


@dataclass(frozen=True, kw_only=True)
class StridedConfig:
    """Contiguous segments generated side by side (ARMD, arXiv 2601.16971)."""

    policy: ClassVar[Literal["strided"]] = "strided"
    streams: tuple[int, ...] = (1, 2, 4)
    """Numbers of parallel streams, one drawn per sample."""
    joint: bool = True
    """True: tokens at one offset are one block; False: the same sequence, one token a block."""


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """A uniform permutation, one token a block."""

    policy: ClassVar[Literal["random"]] = "random"


@dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """Contiguous groups in text order (A3, arXiv 2601.13228)."""

    policy: ClassVar[Literal["groups"]] = "groups"
    sizes: tuple[int, ...]
    """Group sizes, in tokens."""
    ramp_end: int = 0
    """Above 0: sizes in turn, in equal spans up to this step; 0: one drawn per sample."""


@dataclass(frozen=True, kw_only=True)
class PermutedGroupsConfig:
    """A random permutation cut into groups (A3, arXiv 2601.13228)."""

    policy: ClassVar[Literal["permuted_groups"]] = "permuted_groups"
    sizes: tuple[int, ...]
    """Group sizes, in tokens."""
    ramp_end: int = 0
    """Above 0: sizes in turn, in equal spans up to this step; 0: one drawn per sample."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Masking times drawn from a linear noise schedule; tokens of equal time are one block."""

    policy: ClassVar[Literal["diffusion"]] = "diffusion"
    num_timesteps: int
    """Number of masking times."""


@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """One part of a mixture, written in YAML as the order's own keys plus `weight`."""

    weight: float
    """Share of the samples, relative to the other parts."""
    order: "OrderConfig" = field(metadata={"flattened": True})
    """Order of those samples."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """One order drawn per sample."""

    policy: ClassVar[Literal["mixture"]] = "mixture"
    components: tuple[MixtureComponent, ...]
    """Orders with their weights."""


@dataclass(frozen=True, kw_only=True)
class OrderStage:
    """One part of a sequence of orders, written in YAML as the order's own keys plus `until`."""

    until_step: int | None = None
    """First step that no longer belongs to the stage; open (null) in the last stage only."""
    order: "OrderConfig" = field(metadata={"flattened": True})
    """Order of the stage; its own step-dependent amounts count from step 0 of the run."""


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """One order after another, by step."""

    policy: ClassVar[Literal["stages"]] = "stages"
    stages: tuple[OrderStage, ...]
    """Stages with the step at which each ends."""


OrderConfig: TypeAlias = Union[  # noqa: UP007 - a name that forward references can resolve
    LeftToRightConfig,
    ProgressiveConfig,
    StridedConfig,
    RandomConfig,
    GroupsConfig,
    PermutedGroupsConfig,
    DiffusionConfig,
    MixtureConfig,
    StagesConfig,
]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Stretching of rotary wavelengths for contexts longer than the original one."""

    rope_type: Literal["llama3", "linear", "yarn"] = "llama3"
    """`linear` stretches all wavelengths alike; `llama3` and `yarn` spare short ones."""
    factor: float
    """How many times wavelengths are stretched."""
    low_freq_factor: float | None = None
    """Wavelengths above original_max_position_embeddings / this are stretched fully (YaRN's beta_slow)."""
    high_freq_factor: float | None = None
    """Wavelengths below original_max_position_embeddings / this stay as they are (YaRN's beta_fast)."""
    original_max_position_embeddings: int | None = None
    """Context length of the first training, in tokens."""


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
    """Lower layers that run both streams; null: half of them; 0: a plain auto-regressive stack."""
    query: QueryKind = "anchor"
    """Start of a query row: nearest visible token on the left, all of them pooled, one vector."""
    upper_visibility: Literal["block", "self"] = "block"
    """What an upper query row sees of its own block: all of it (the paper) or only itself."""
    max_anchor_gap: int = 64
    """K, the longest distance to the anchor told apart; its table has K + 1 rows."""
    prefix_width: int = 128
    """Width of the position embedding that weighs visible tokens under `query: prefix`."""
    position_embedding: Literal["rope", "learned_absolute"] = "rope"
    """Rotary embedding in every layer, or a learned absolute embedding added at the start."""
    max_positions: int | None = None
    """Rows of position tables, so the longest text they serve; null: data.seq_length + 1.
    Rotary positions have no table and no end."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Stretching of rotary wavelengths; null: none."""
    partial_rotary_factor: float = 1.0
    """Share of a head's channels that rotary embedding turns, the first ones."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of every norm."""
    norm_position: Literal["pre", "post"] = "pre"
    """Norms on what attention and MLP read, or on what they add to the residual (OLMo 2)."""
    norm_eps: float = 1e-5
    """Added to the variance under the root."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    """Non-linearity of the MLP; `gelu_tanh` is GPT-2's approximation."""
    parallel_residual: bool = False
    """Attention and MLP read the same rows, and their sum is added (GPT-NeoX)."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """Norm on each query and key head by itself (Qwen 3), or on all heads together (OLMo 2)."""
    attention_bias: bool = False
    """Bias on the query, key and value projections."""
    attention_output_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    """Bias on the MLP projections."""
    dropout: float = 0.0
    """Probability that a channel is dropped at the start and in what each layer adds; training."""
    tie_embeddings: bool = True
    """The output head is the token embedding."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    init_from: str | None = None
    """Checkpoint whose weights (not optimizer) start the run; null: random weights."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ways one model is split; data parallelism takes the processes that are left."""

    tensor: int = 1
    """Processes that share each matrix."""
    pipeline: int = 1
    """Processes that share the layers."""
    virtual_pipeline: int = 1
    """Model chunks per process of the interleaved pipeline schedule."""
    sequence: bool = False
    """Split norms and residuals by rows among the tensor processes."""
    context: int = 1
    """Processes that share one sample's rows."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its learning rate over time, and what of its state is split."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """Split over data parallel processes: 1 optimizer state, 2 gradients too, 3 weights too."""
    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 3e-5
    """Learning rate at the last step of a decaying schedule."""
    warmup_steps: int
    """Steps of linear growth from 0 to `lr`."""
    schedule: Literal["cosine", "wsd", "constant"]
    """After warm-up: half a cosine, warm-up/stable/linear decay, or flat."""
    decay_steps: int | None = None
    """Length of the final decay of `wsd`, in steps; null: a tenth of train.steps."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; norms, biases and vectors get none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest global L2 norm of the gradient; 0: no clipping."""
    offload: Literal["none", "optimizer"] = "none"
    """`optimizer`: its state and step live in host memory."""
    ema_decay: float | None = None
    """Decay of the running average of weights per step; null: none is kept."""


@dataclass(frozen=True, kw_only=True)
class LossGuardConfig:
    """What happens to batches whose loss or gradient is not finite, or whose loss is a spike."""

    spike_factor: float = 0.0
    """A loss above this many times the median of the last `window` is a spike; 0: nothing is."""
    window_steps: int = 64
    """Losses that the median is of; there are no spikes before as many steps."""
    max_consecutive_bad_steps: int = 3
    """Bad batches in a row that are left out; after them the run goes back to a checkpoint."""
    max_rollbacks: int = 2
    """How often it goes back before it ends with an error."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A frozen model that the left-to-right part of training holds the trained one to."""

    checkpoint: str
    """Checkpoint of it, of the same vocabulary; usually that of `model.init_from`."""
    weight: float
    """Factor of KL(parent || model), its mean over left-to-right targets, in the loss; 0: report it
    alone."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How much is trained, and in what portions."""

    steps: int
    """Optimizer steps of the whole run."""
    micro_batch: int
    """Samples in one forward pass of one data parallel process."""
    global_batch: int
    """Samples in one optimizer step, over all processes."""
    precision: Literal["fp32", "bf16"]
    """Type of weights in the forward and backward pass; the optimizer keeps fp32."""
    recompute: Literal["none", "full", "selective", "auto"] = "none"
    """Activations computed again in the backward pass: none, whole layers, or attention only; auto:
    the cheapest of these that fits the GPU's memory by `tools/plan.py`'s reckoning."""
    loss_guard: LossGuardConfig = LossGuardConfig()
    """What happens to batches that would spoil the weights."""
    hang_timeout_seconds: float = 1800.0
    """A process that does the same thing for longer, such as one save or the evaluation of one
    order, is taken to hang, and the job ends with status 75, to be started again; 0: never."""
    deterministic: bool = False
    """The same bits from the same run on the same layout and machine, at some cost in speed."""
    distillation: DistillationConfig | None = None
    """What the model must not forget; every process holds its tensor-parallel part whole."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of the run, and where it starts again."""

    every_steps: int
    """Steps from one checkpoint to the next."""
    keep: int = 3
    """How many of the newest checkpoints stay."""
    asynchronous: bool = False
    """Training waits for a copy in host memory only, as large as what its process writes."""
    resume: str = "auto"
    """`auto`: the newest sound checkpoint in the run's folder; `never`; or the path of one."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Likelihood on held-out text during training."""

    every_steps: int
    """Steps from one evaluation to the next."""
    orders: tuple[str, ...]
    """Orders to evaluate under, such as `l2r` or `strided:4`."""
    samples: int
    """Samples per order."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, beside metrics.jsonl."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes files to be synchronised later."""
    project: str = "armd_scale"
    """Project that the run belongs to."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written about the run."""

    every_steps: int
    """Steps from one line of metrics.jsonl to the next."""
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run."""

    run: RunConfig
    """Which run this is."""
    data: DataConfig
    """Which tokens are read."""
    order: OrderConfig
    """In which order the tokens of a sample are predicted."""
    model: ModelConfig
    """The network."""
    parallel: ParallelConfig = ParallelConfig()
    """How the network is split over processes."""
    optim: OptimConfig
    """How weights are updated."""
    train: TrainConfig
    """How much is trained."""
    checkpoint: CheckpointConfig
    """What is kept."""
    eval: EvalConfig
    """What is measured on held-out text."""
    log: LogConfig
    """What is written."""
