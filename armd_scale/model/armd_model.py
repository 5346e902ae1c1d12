"""The ARMD network: from a sorted batch to the likelihood of every target, in one forward pass.

Rows are [rows, batch, hidden], sorted by slot. With N targets per sample:

    embedding             X^0: N content rows     G^0: N query rows (`query_start`)
    two-stream layers     X and G attend to X; G_p never sees token p or its block
    last two-stream       drops the content rows: only G is needed from here on
    upper layers          G attends to G, an ordinary causal stack
    norm, LM head         G_p predicts token p

Information is hidden by attention alone: there is no mask token and no time conditioning
(Karami & Ghodsi, arXiv 2601.16971, section 3).
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
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
from armd_scale.model.attention_mask import LayerMasks, layer_masks
from armd_scale.model.dropout import KeyedDropout, row_keys
from armd_scale.model.kv_cache import KeyValueCache
from armd_scale.model.layer_norm import Norm
from armd_scale.model.lm_head import LMHead
from armd_scale.model.loss_spec import LossSpec
from armd_scale.model.param_names import parameters_by_name
from armd_scale.model.query_start import QueryStart
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
    """The whole network, or one pipeline stage of it.

    Args:
        model: the recipe's model section, resolved.
        config: megatron-core's configuration, from `model.spec.transformer_config`.
        groups: the process groups of the layout.
        recompute: activations that the backward pass recomputes instead of saving them: none,
            those of whole layers ("full"), or those of attention ("selective").
        stage: which part of the network to build; the whole network by default.
        seed: the run's seed, for dropout.
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
        padded_vocab = padded_vocab_size(self.vocab_size, config.tensor_model_parallel_size)
        if self.stage.is_first:
            self._build_embeddings(padded_vocab)
        spec = layer_spec()
        # Keyed by the index in the whole network, so that parameter names do not depend on the
        # pipeline layout.
        self.layers = nn.ModuleDict()
        for index in self.stage.layers:
            layer = build_module(spec, config=config, model=model, layer_index=index, groups=groups)
            self.layers[str(index)] = layer  # pyright: ignore[reportArgumentType]
        if self.stage.is_last:
            self._build_head(padded_vocab)
        self.frequencies = (
            inverse_frequencies(model) if model.position_embedding == "rope" else None
        )
        self._input: Tensor | None = None
        set_tensor_parallel_attributes(self, config)

    def _build_embeddings(self, padded_vocab: int) -> None:
        model, config = self.model, self.config
        assert config.init_method is not None
        self.embedding = VocabParallelEmbedding(
            padded_vocab,
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
        self.query_start = QueryStart(model, config)

    def _build_head(self, padded_vocab: int) -> None:
        model, config = self.model, self.config
        self.final_norm = Norm(config, model.hidden)
        # Tied weights on one stage are shared. Across stages the head holds a copy, which starts
        # equal and stays equal, because `all_reduce_partial_grads` gives both the same gradient.
        uses_tied_embedding = model.tie_embeddings and self.stage.is_first
        self.output_layer = LMHead(
            self.vocab_size,
            padded_vocab // self.groups.tp.size(),
            hidden=None if uses_tied_embedding else model.hidden,
            dtype=config.params_dtype,
            group=self.groups.tp,
        )
        if model.tie_embeddings and not self.stage.is_first:
            mark_tied_copy(self.output_layer.weight)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Return all parameters by their names in the whole network."""
        return parameters_by_name(self)

    def set_input_tensor(self, rows: Tensor | None) -> None:
        """Set the rows that the previous stage sent; the next forward pass reads them."""
        self._input = rows

    def forward(
        self, batch: ArmdBatch, loss_spec: LossSpec | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run this stage on a micro-batch.

        Args:
            batch: the micro-batch.
            loss_spec: the loss as a weighted sum of nats; used by the last stage.

        Returns:
            On the last stage, without `loss_spec`: -log P of every target in nats,
            [batch, queries], differentiable, undefined where `is_target` is False. With
            `loss_spec`: the scalar loss, which alone is differentiable, and the nats of each term,
            [terms, batch, queries]; the divergence term is 0 for samples that the teacher skips.
            On other stages: the rows for the next stage.
        """
        rows = self.forward_layers(batch)
        if not self.stage.is_last:
            # The schedule frees the storage of what it has sent, so this must not be a view of a
            # tensor that the backward pass needs.
            return rows.contiguous()
        loss, nats = self.output_layer(
            self.final_hidden(rows),
            batch.labels.t(),
            tied_weight=self._tied_weight(),
            loss_spec=loss_spec,
        )
        nats = nats.transpose(1, 2)
        return nats[0] if loss is None else (loss, nats)

    def final_hidden(
        self, rows: Float[Tensor, "local_rows batch hidden"]
    ) -> Float[Tensor, "rows batch hidden"]:
        """Return the LM head's input: all of the last layer's rows, normalized, on every rank."""
        # Norm before gather: under sequence parallelism each rank normalizes its own rows only.
        return gather_or_copy_input(self.final_norm(rows), self.config, self.groups.tp)

    def logits(
        self, batch: ArmdBatch, cache: KeyValueCache | None = None, *, last: int | None = None
    ) -> Float[Tensor, "batch queries vocabulary"]:
        """Return logits over the whole vocabulary, gathered from all tensor parallel ranks.

        Args:
            batch: the rows to run.
            cache: keys and values of earlier decoding rounds.
            last: return the logits of only that many last query rows; None for all.
        """
        rows = gather_or_copy_input(self.forward_layers(batch, cache), self.config, self.groups.tp)
        logits = self.local_logits(self.final_norm(rows[-(last or len(rows)) :]))
        if self.groups.tp.size() > 1:
            with patch_cuda_for_cpu():
                logits = gather_from_tensor_model_parallel_region(logits, group=self.groups.tp)
        return logits[..., : self.vocab_size].transpose(0, 1)

    def forward_layers(
        self, batch: ArmdBatch, cache: KeyValueCache | None = None
    ) -> Float[Tensor, "local_rows batch hidden"]:
        """Return the rows after this stage's last layer; only query rows above the two-stream part.

        Args:
            batch: a micro-batch, or with a cache one decoding round, whose intervals count cached
                keys as well.
            cache: receives the keys and values of the batch's rows.
        """
        one_stream = self.can_skip_content_stream(batch)
        num_content = 0 if one_stream else batch.tokens.shape[1]
        upper_sees_block = self.model.upper_visibility == "block"
        masks = layer_masks(batch, cache, upper_sees_block=upper_sees_block)
        dropout = self._dropout(batch)
        rows = self._input_rows(batch, masks, cache, dropout, one_stream=one_stream)
        rotary_all, rotary_queries = self._rotary(batch, rows.dtype)
        for index in self.stage.layers:
            is_two_stream = num_content > 0 and index < self.num_two_stream
            drop_content = is_two_stream and index == self.num_two_stream - 1
            returns_content = is_two_stream and not drop_content
            # The last two-stream layer attends from query rows only, still to content keys.
            mask = masks.two_stream if is_two_stream else masks.upper
            rows = self._run_layer(
                self.layers[str(index)],
                rows,
                rotary_all if is_two_stream else rotary_queries,
                num_content=num_content if is_two_stream else 0,
                drop_content=drop_content,
                mask=masks.query_only if drop_content else mask,
                cache=cache,
                dropout=dropout if dropout is None or returns_content else dropout.queries,
            )
        return rows

    def can_skip_content_stream(self, batch: ArmdBatch) -> bool:
        """Return whether one stream computes the same function as two.

        True for plain AR networks, and for left-to-right batches under `query: anchor`: there G_p
        equals X_{p-1} in every layer, so the content stream would be computed twice.
        """
        return self.num_two_stream == 0 or (batch.is_left_to_right and self.model.query == "anchor")

    def _input_rows(
        self,
        batch: ArmdBatch,
        masks: LayerMasks,
        cache: KeyValueCache | None,
        dropout: KeyedDropout | None,
        *,
        one_stream: bool,
    ) -> Float[Tensor, "local_rows batch hidden"]:
        """Return the first layer's input: embedded tokens, or the previous stage's rows."""
        if not self.stage.is_first:
            assert self._input is not None, "the previous stage's rows must be set"
            return self._input
        rows = self._embed(batch, masks, cache, one_stream=one_stream)
        if self.config.sequence_parallel:
            rows = scatter_to_sequence_parallel_region(rows, group=self.groups.tp)
        if dropout is not None:
            rows = (dropout.queries if one_stream else dropout)(rows)
        return rows

    def _run_layer(
        self, layer: nn.Module, rows: Tensor, rotation: RotaryCosSin | None, **kwargs: object
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return layer(rows, rotation, **kwargs)
        if self.recompute == "full":
            call = partial(layer, **kwargs)
            return checkpoint(call, rows, rotation, use_reentrant=False)  # pyright: ignore[reportReturnType]
        selective = self.recompute == "selective"
        return layer(rows, rotation, recompute_attention=selective, **kwargs)

    def _rotary(
        self, batch: ArmdBatch, dtype: torch.dtype
    ) -> tuple[RotaryCosSin | None, RotaryCosSin | None]:
        """Return the rotations of content and query rows together, and of the query rows alone.

        The query row of position p is rotated to p - 1, where the left neighbor's content row is.
        Only so does G_p equal X_{p-1} under left-to-right order.
        """
        if self.frequencies is None:
            return None, None
        positions = torch.cat((batch.positions, batch.label_positions - 1), dim=1)
        # Not a buffer: it must stay float32 when the network is converted to bfloat16.
        self.frequencies = self.frequencies.to(positions.device)
        scale = attention_scaling(self.model)
        rotation = rotation_at(positions, self.frequencies, dtype, scale=scale)
        return rotation, rotation.rows(batch.tokens.shape[1], positions.shape[1])

    def _dropout(self, batch: ArmdBatch) -> KeyedDropout | None:
        """Return the dropout of content rows, then query rows; None if nothing is trained."""
        rate = self.model.dropout
        if rate == 0 or not (self.training and torch.is_grad_enabled()):
            return None
        tp = self.groups.tp
        sp_shard = (tp.rank(), tp.size()) if self.config.sequence_parallel else (0, 1)
        return KeyedDropout(rate, row_keys(batch, self.seed), sp_shard=sp_shard)

    def _embed(
        self, batch: ArmdBatch, masks: LayerMasks, cache: KeyValueCache | None, *, one_stream: bool
    ) -> Float[Tensor, "rows batch hidden"]:
        """Return content rows X^0 (omitted if `one_stream`), then query rows G^0."""
        start = self.query_start
        token_parts = [batch.tokens] if start.uses_prefix or not one_stream else []
        num_content = sum(part.shape[1] for part in token_parts)
        if start.uses_anchor:
            token_parts.append(batch.anchor_tokens)
        # One lookup for both streams: the table's gradient is then a single scatter-add, and ZeRO 3
        # gathers the table once.
        embedded = self.embedding(torch.cat(token_parts, dim=1).t())
        content, anchors = embedded[:num_content], embedded[num_content:]
        query = start(batch, content=content, anchors=anchors, mask=masks.query_only, cache=cache)
        if self.position_embedding is not None:
            content = content + self.position_embedding[batch.positions.t()[:num_content]]
            query = query + self.position_embedding[batch.label_positions.t() - 1]
        return query if one_stream else torch.cat((content, query))

    def local_logits(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows columns"]:
        """Return this rank's columns of the logits, padding included, of `final_hidden` rows."""
        return self.output_layer.logits(hidden, self._tied_weight())

    def _tied_weight(self) -> Tensor | None:
        """Return the embedding's weights if the LM head of this stage shares them."""
        return self.embedding.weight if self.model.tie_embeddings and self.stage.is_first else None
