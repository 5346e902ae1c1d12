"""A second, independent implementation: one sample, natural order, dense masks, plain torch.

It uses none of the package's model, sorting or batch code. Weights are read from a state dict by
name. It is slow and simple on purpose: tests compare the fast implementation with it.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from armd_scale.config.schema import ModelConfig


class Oracle:
    """log P(x_p | all earlier blocks) for every target of one sample."""

    def __init__(self, model: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.model = model
        self.w = dict(weights)
        self.kv_heads = model.kv_heads or model.heads
        self.head_dim = model.head_dim or model.hidden // model.heads
        self.num_lower = (
            model.layers // 2 if model.two_stream_layers is None else model.two_stream_layers
        )

    def logits(self, tokens: Tensor, block: Tensor, documents: Tensor) -> dict[int, Tensor]:
        """Return the logits of every target (block above 0) by its index in the window.

        Args:
            tokens: [N+1].
            block: [N+1].
            documents: [N+1], index of each token's document.
        """
        n = len(tokens)
        position = torch.stack([(documents[:i] == documents[i]).sum() for i in range(n)])
        same = documents[:, None] == documents[None, :]
        at_most = (block[None, :] <= block[:, None]) & same
        before = (block[None, :] < block[:, None]) & same
        targets = [p for p in range(n) if block[p] > 0]
        query = torch.stack([self._query_start(p, tokens, position, before) for p in targets])
        content = self.w["embedding.weight"][tokens]
        if self.model.position_embedding == "learned_absolute":
            content = content + self.w["position_embedding"][position]
            query = query + self.w["position_embedding"][position[targets] - 1]
        for layer in range(self.model.layers):
            at_query = position[targets] - 1
            if layer < self.num_lower:
                query_next = self._layer(layer, query, at_query, content, position, before[targets])
                content = self._layer(layer, content, position, content, position, at_most)
                query = query_next
            else:
                seen = at_most if self.model.upper_visibility == "block" else before
                seen = seen | torch.eye(n, dtype=torch.bool)
                seen = seen[targets][:, targets]
                query = self._layer(layer, query, at_query, query, at_query, seen)
        head = "embedding.weight" if self.model.tie_embeddings else "output_layer.weight"
        out = self._norm("final_norm", query) @ self.w[head][: self.model.vocab_size].T
        return dict(zip(targets, out, strict=True))

    def log_probs(self, tokens: Tensor, block: Tensor, documents: Tensor) -> dict[int, Tensor]:
        logits = self.logits(tokens, block, documents)
        return {p: F.log_softmax(row, dim=-1)[tokens[p]] for p, row in logits.items()}

    def _query_start(self, p: int, tokens: Tensor, position: Tensor, before: Tensor) -> Tensor:
        embedding = self.w["embedding.weight"]
        if self.model.query == "learned":
            return self.w["query_start.vector"]
        start = torch.zeros_like(embedding[0])
        visible = before[p].nonzero().flatten()
        if "anchor" in self.model.query:
            anchor = max(j for j in visible.tolist() if j < p)
            gap = min(p - 1 - anchor, self.model.max_anchor_gap)
            start = start + embedding[tokens[anchor]]
            if gap > 0:
                start = start + self.w["query_start.gap.weight"][gap]
        if "prefix" in self.model.query:
            table = self.w["query_start.prefix.position_embedding"]
            own = table[position[p]]
            total = sum((own @ table[position[j]]) * embedding[tokens[j]] for j in visible)
            start = start + self.w["query_start.prefix.scale"] * total / len(visible)
        return start

    def _layer(
        self, layer: int, rows: Tensor, at: Tensor, keys: Tensor, keys_at: Tensor, seen: Tensor
    ) -> Tensor:
        name = f"layers.{layer}"
        norm = f"{name}.attention_norm"
        if self.model.norm_position == "pre":
            attended = self._attention(
                name, self._norm(norm, rows), at, self._norm(norm, keys), keys_at, seen
            )
        else:
            attended = self._norm(norm, self._attention(name, rows, at, keys, keys_at, seen))
        if self.model.parallel_residual:
            return rows + attended + self._mlp_branch(name, rows)
        rows = rows + attended
        return rows + self._mlp_branch(name, rows)

    def _mlp_branch(self, name: str, rows: Tensor) -> Tensor:
        if self.model.norm_position == "pre":
            return self._mlp(name, self._norm(f"{name}.mlp_norm", rows))
        return self._norm(f"{name}.mlp_norm", self._mlp(name, rows))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        x = self._linear(f"{name}.mlp.linear_fc1", x)
        if self.model.activation == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        else:
            x = F.gelu(x, approximate="tanh" if self.model.activation == "gelu_tanh" else "none")
        return self._linear(f"{name}.mlp.linear_fc2", x)

    def _attention(
        self, name: str, rows: Tensor, at: Tensor, keys: Tensor, keys_at: Tensor, seen: Tensor
    ) -> Tensor:
        d, g = self.head_dim, self.model.heads // self.kv_heads
        q = self._linear(f"{name}.attention.linear_q", rows)
        kv = self._linear(f"{name}.attention.linear_kv", keys)
        pairs = kv.view(len(keys), self.kv_heads, 2, d)
        q, k, v = q.view(len(rows), -1, d), pairs[:, :, 0], pairs[:, :, 1]
        q = self._qk_norm(f"{name}.attention.q_norm", q)
        k = self._qk_norm(f"{name}.attention.k_norm", k)
        heads = []
        for head in range(self.model.heads):
            qh, kh = self._rotate(q[:, head], at), self._rotate(k[:, head // g], keys_at)
            scores = (qh @ kh.T / math.sqrt(d)).masked_fill(~seen, -math.inf)
            heads.append(scores.softmax(dim=-1) @ v[:, head // g])
        return self._linear(f"{name}.attention.linear_proj", torch.cat(heads, dim=-1))

    def _qk_norm(self, norm: str, x: Tensor) -> Tensor:
        if self.model.qk_norm == "none":
            return x
        if self.model.qk_norm == "head":
            return self._norm(norm, x)
        return self._norm(norm, x.flatten(1)).view(x.shape)

    def _rotate(self, x: Tensor, at: Tensor) -> Tensor:
        if self.model.position_embedding != "rope":
            return x
        half = int(self.head_dim * self.model.partial_rotary_factor) // 2
        rates = torch.stack([self._rate(pair, half) for pair in range(half)])
        angle = at[:, None].to(x.dtype) * rates.to(x.dtype)
        low, high, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
        cos, sin = angle.cos(), angle.sin()
        scaling = self.model.rope_scaling
        if scaling is not None and scaling.rope_type == "yarn":
            cos, sin = (f * (0.1 * math.log(scaling.factor) + 1) for f in (cos, sin))
        return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)

    def _rate(self, pair: int, half: int) -> Tensor:
        """Radians per position of a pair, rounded to float32 as in published models."""
        base, scaling = self.model.rope_theta, self.model.rope_scaling
        rate = 1 / base ** torch.tensor(pair / half, dtype=torch.float32)
        if scaling is None:
            return rate
        if scaling.rope_type == "linear":
            return rate / scaling.factor
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        if scaling.rope_type == "yarn":
            low, high = scaling.beta_slow, scaling.beta_fast
        original = scaling.original_max_position_embeddings
        assert low is not None
        assert high is not None
        assert original is not None
        if scaling.rope_type == "llama3":
            wavelength = 2 * math.pi / rate
            smooth = (original / wavelength - low) / (high - low)
        else:
            first, last = (
                math.log(original / (turns * 2 * math.pi)) / math.log(base) * half
                for turns in (high, low)
            )
            first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * half - 1)
            smooth = 1 - torch.tensor((pair - first) / max(last - first, 0.001))
        if smooth >= 1:
            return rate
        if smooth <= 0:
            return rate / scaling.factor
        return (1 - smooth) * rate / scaling.factor + smooth * rate

    def _norm(self, name: str, x: Tensor) -> Tensor:
        epsilon = self.model.norm_eps
        if self.model.norm == "rmsnorm":
            return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * self.w[f"{name}.weight"]
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.w[f"{name}.weight"].T
        bias = self.w.get(f"{name}.bias")
        return out if bias is None else out + bias
