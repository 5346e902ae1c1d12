"""The ARMD network: from a sorted batch to the likelihood of every target, in one forward pass.

Rows are [rows, batch, hidden]. The lower, two-stream layers carry content rows, then query rows;
the last of them drops the content; the upper layers carry the query rows alone, as an ordinary
causal stack. Hidden information is hidden by attention only: no mask token, no time conditioning
(Karami & Ghodsi, arXiv 2601.16971, section 3).
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armd_scale.config.derived import padded_vocab_size
from armd_scale.config.resolve import ResolvedModel
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.attention import KeyValueCache
from armd_scale.model.attention_mask import IntervalMask, LayerMasks
from armd_scale.model.dropout import KeyedDropout, row_keys
from armd_scale.model.layer_norm import Norm
from armd_scale.model.lm_head import LMHead
from armd_scale.model.loss_spec import LossSpec
from armd_scale.model.param_names import parameters_by_name
from armd_scale.model.query_init import QueryInit
from armd_scale.model.rotary import (
    RotaryCosSin,
    attention_scaling,
    inverse_frequencies,
    rotation_at,
)
from armd_scale.model.spec import layer_spec, set_tensor_parallel_attributes
from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu
from armd_scale.parallel.pipeline.partition import PipelineStage, single_stage
from armd_scale.parallel.tensor.partition import gather_or_copy_input, mark_tied_copy


class ArmdModel(MegatronModule):
    """The whole network, or the part of it that one process holds.

    Args:
        model: the recipe's model section, resolved.
        config: megatron-core's configuration, from `model.spec.transformer_config`.
        groups: the process groups of the layout.
        recompute: what the backward pass computes again instead of keeping its activations:
            nothing, whole layers, or attention.
        stage: which part of the network this is; the whole by default.
        seed: of dropout, the run's.
    """

    def __init__(
        self,
        model: ResolvedModel,
        config: TransformerConfig,
        *,
        groups: ProcessGroupCollection,
        recompute: Literal["none", "full", "selective"] = "none",
        stage: PipelineStage | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(config=config)
        self.model = model
        self.groups = groups
        self.recompute = recompute
        self.stage = stage or single_stage(model)
        self.seed = seed
        self.num_two_stream = model.two_stream_layers
        self.vocab_size = model.vocab_size
        padded = padded_vocab_size(self.vocab_size, config.tensor_model_parallel_size)
        if self.stage.is_first:
            self._make_embeddings(padded)
        spec = layer_spec()
        # By number in the whole network, so that parameters have the same names on any layout.
        self.layers = nn.ModuleDict()
        for index in self.stage.layers:
            layer = build_module(
                spec, config=config, model=model, layer_index=index, pg_collection=groups
            )
            self.layers[str(index)] = layer  # pyright: ignore[reportArgumentType]
        if self.stage.is_last:
            self._make_head(padded)
        self.frequencies = (
            inverse_frequencies(model) if model.position_embedding == "rope" else None
        )
        self._input: Tensor | None = None
        set_tensor_parallel_attributes(self, config)

    def _make_embeddings(self, padded: int) -> None:
        model, config = self.model, self.config
        assert config.init_method is not None
        self.embedding = VocabParallelEmbedding(
            padded,
            model.hidden,
            init_method=config.init_method,
            config=config,
            tp_group=self.groups.tp,
        )
        self.position_embedding = None
        if model.position_embedding == "learned_absolute":
            self.position_embedding = nn.Parameter(
                torch.empty(model.position_table_rows, model.hidden, dtype=config.params_dtype)
            )
        self.query_start = QueryInit(model, config)

    def _make_head(self, padded: int) -> None:
        model, config = self.model, self.config
        self.final_norm = Norm(config, model.hidden)
        # Tied to an embedding on another stage, the head is a copy that is kept equal.
        uses_tied_embedding = model.tie_embeddings and self.stage.is_first
        self.output_layer = LMHead(
            self.vocab_size,
            padded // self.groups.tp.size(),
            hidden=None if uses_tied_embedding else model.hidden,
            dtype=config.params_dtype,
            group=self.groups.tp,
        )
        if model.tie_embeddings and not self.stage.is_first:
            mark_tied_copy(self.output_layer.weight)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All parameters by their names in the whole network."""
        return parameters_by_name(self)

    def set_input_tensor(self, rows: Tensor | None) -> None:
        """Takes the rows that the stage before put out."""
        self._input = rows

    def forward(
        self, batch: ArmdBatch, objective: LossSpec | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The rows for the next stage; in the last one -log P of every target, [batch, queries].

        In nats; undefined where `is_target` is False. With an objective: the loss, which alone is
        differentiable, and the nats of each of its terms, [terms, batch, queries]; a divergence is
        0 for samples that its reference leaves out. No more logits exist at a time than
        `config.derive` allows, but without an objective where gradients are wanted.
        """
        rows = self.forward_layers(batch)
        if not self.stage.is_last:
            return rows.contiguous()  # to be sent
        loss, nats = self.output_layer(
            self.final_hidden(rows), batch.labels.t(), tied=self._tied(), objective=objective
        )
        nats = nats.transpose(1, 2)
        return nats[0] if loss is None else (loss, nats)

    def final_hidden(self, rows: Float[Tensor, "rows batch hidden"]) -> Tensor:
        """The last layer's rows as the head reads them: normed, and all of them on every rank."""
        return gather_or_copy_input(self.final_norm(rows), self.config, self.groups.tp)

    def logits(
        self,
        batch: ArmdBatch,
        cache: KeyValueCache | None = None,
        *,
        last: int | None = None,
    ) -> Float[Tensor, "batch queries vocabulary"]:
        """Logits over the whole vocabulary, gathered from all ranks.

        Args:
            batch: the rows to run.
            cache: rows of earlier rounds.
            last: give the logits of that many last query rows alone; None: of all.
        """
        rows = gather_or_copy_input(self.forward_layers(batch, cache), self.config, self.groups.tp)
        full = self.local_logits(self.final_norm(rows[-(last or len(rows)) :]))
        if self.groups.tp.size() > 1:
            with patch_cuda_for_cpu():
                full = gather_from_tensor_model_parallel_region(full, group=self.groups.tp)
        return full[..., : self.vocab_size].transpose(0, 1)

    def forward_layers(
        self, batch: ArmdBatch, cache: KeyValueCache | None = None
    ) -> Float[Tensor, "rows batch hidden"]:
        """The rows that leave this stage's last layer; above the two-stream ones, query rows.

        With a cache the batch is one round: its rows join the cached ones, and its intervals count
        cached keys.
        """
        one_stream = self.can_skip_content_stream(batch)
        masks = self._masks(batch, cache)
        num_content = 0 if one_stream else batch.tokens.shape[1]
        dropout = self._dropout(batch)
        if self.stage.is_first:
            rows = self._embed(batch, masks, cache, queries_only=one_stream)
            if self.config.sequence_parallel:
                rows = scatter_to_sequence_parallel_region(rows, group=self.groups.tp)
            if dropout is not None:
                rows = (dropout.queries if one_stream else dropout)(rows)
        else:
            assert self._input is not None, "a later stage needs the rows of the one before"
            rows = self._input
        positions = batch.label_positions - 1
        rotary_all = self._rotation(torch.cat((batch.positions, positions), dim=1), rows.dtype)
        rotary_queries = rotary_all and rotary_all.rows(
            batch.tokens.shape[1], rotary_all.cos.shape[0]
        )
        for index in self.stage.layers:
            is_two_stream = num_content > 0 and index < self.num_two_stream
            drops_content = is_two_stream and index == self.num_two_stream - 1
            keeps_content = is_two_stream and not drops_content
            mask = masks.two_stream if is_two_stream else masks.upper
            rows = self._run_layer(
                self.layers[str(index)],
                rows,
                rotary_all if is_two_stream else rotary_queries,
                num_content=num_content if is_two_stream else 0,
                drop_content=drops_content,
                mask=masks.query_only if drops_content else mask,
                cache=cache,
                dropout=dropout if dropout is None or keeps_content else dropout.queries,
            )
        return rows

    def can_skip_content_stream(self, batch: ArmdBatch) -> bool:
        """Whether one stream gives the same function: AR stacks, and left-to-right under `anchor`.

        There G_p equals X_{p-1} in every layer, so the content stream would be computed twice.
        """
        return self.num_two_stream == 0 or (batch.is_left_to_right and self.model.query == "anchor")

    def _run_layer(
        self, layer: nn.Module, rows: Tensor, rotation: RotaryCosSin | None, **arguments: object
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return layer(rows, rotation, **arguments)
        if self.recompute == "full":
            call = partial(layer, **arguments)
            return checkpoint(call, rows, rotation, use_reentrant=False)  # pyright: ignore[reportReturnType]
        selective = self.recompute == "selective"
        return layer(rows, rotation, recompute_attention=selective, **arguments)

    def _rotation(
        self, positions: Int[Tensor, "batch rows"], dtype: torch.dtype
    ) -> RotaryCosSin | None:
        if self.frequencies is None:
            return None
        self.frequencies = self.frequencies.to(positions.device)
        return rotation_at(
            positions, self.frequencies, dtype, amplitude=attention_scaling(self.model)
        )

    def _dropout(self, batch: ArmdBatch) -> KeyedDropout | None:
        """Dropout of content rows, then query rows; None wherever nothing is learned."""
        rate = self.model.dropout
        if rate == 0 or not (self.training and torch.is_grad_enabled()):
            return None
        tp = self.groups.tp
        share = (tp.rank(), tp.size()) if self.config.sequence_parallel else (0, 1)
        return KeyedDropout(rate, row_keys(batch, self.seed), sp_shard=share)

    def _embed(
        self,
        batch: ArmdBatch,
        masks: LayerMasks,
        cache: KeyValueCache | None,
        *,
        queries_only: bool,
    ) -> Float[Tensor, "rows batch hidden"]:
        """Content rows X^0 (left out under `queries_only`), then query rows G^0."""
        start = self.query_start
        parts = [batch.tokens] if start.uses_prefix or not queries_only else []
        num_content = sum(part.shape[1] for part in parts)
        if start.uses_anchor:
            parts.append(batch.anchor_tokens)
        # One look-up for both streams: the table's gradient is then one scatter, and ZeRO-3 gathers
        # the table once.
        embedded = self.embedding(torch.cat(parts, dim=1).t())
        content, anchors = embedded[:num_content], embedded[num_content:]
        query = start(batch, content=content, anchors=anchors, mask=masks.query_only, cache=cache)
        if self.position_embedding is not None:
            content = content + self.position_embedding[batch.positions.t()[:num_content]]
            query = query + self.position_embedding[batch.label_positions.t() - 1]
        return query if queries_only else torch.cat((content, query))

    def _masks(self, batch: ArmdBatch, cache: KeyValueCache | None) -> LayerMasks:
        if batch.is_plain_causal and cache is None:
            return LayerMasks(two_stream=None, query_only=None, upper=None)
        return build_masks(batch, cache, upper_sees_block=self.model.upper_visibility == "block")

    def local_logits(self, hidden: Tensor) -> Tensor:
        """This rank's columns of the logits, padding included, of rows from `before_head`."""
        return self.output_layer.logits(hidden, self._tied())

    def _tied(self) -> Tensor | None:
        """The embedding's weights, where the head reads with them."""
        return self.embedding.weight if self.model.tie_embeddings and self.stage.is_first else None


def build_masks(
    batch: ArmdBatch, cache: KeyValueCache | None, *, upper_sees_block: bool
) -> LayerMasks:
    """The masks of a batch whose rows do not all see plain causal prefixes.

    Under `upper_visibility: self` an upper row sees the rows of earlier blocks and itself: row i
    holds target slot i + 1, so earlier blocks end one row before the first slot of its own,
    `query.stop`.
    """
    content, query, upper = batch.content, batch.query, batch.upper
    if cache is None:
        content_keys, query_keys = batch.tokens.shape[1], batch.labels.shape[1]
        self_key = torch.arange(query_keys, device=batch.labels.device)
    else:
        content_keys, query_keys = cache.num_content_keys, cache.num_query_keys
        self_key = cache.query_slots
    documents = batch.document_rows if cache is None else None
    return LayerMasks(
        two_stream=IntervalMask(
            torch.cat((content.start, query.start), dim=1),
            torch.cat((content.stop, query.stop), dim=1),
            num_keys=content_keys,
            document_rows=documents,
        ),
        query_only=IntervalMask(
            query.start, query.stop, num_keys=content_keys, document_rows=documents
        ),
        upper=IntervalMask(
            upper.start,
            upper.stop if upper_sees_block else query.stop - 1,
            num_keys=query_keys,
            extra_key=None if upper_sees_block else self_key,
            document_rows=documents,
        ),
    )
