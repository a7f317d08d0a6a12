"""The library's operators in PyTorch: loading, shapes for torch.compile, and an attention module.

    import bda_torch
    bda_torch.load("build/torch_op")
    layer = bda_torch.LatentAttention.decomposed(deepseek_layer, dtype=torch.bfloat16)
"""

import pathlib

import torch
from torch import nn
from torch.nn import functional as F

ops = torch.ops.bda


def load(folder):
    """Registers the operators of libbda_torch.so in `folder`, and their fake functions."""
    torch.ops.load_library(str(next(pathlib.Path(folder).resolve().glob("libbda_torch.so"))))

    @torch.library.register_fake("bda::pack")
    def _(coefficients, heads):
        rest, columns = coefficients.shape
        if coefficients.device.type == "cuda":  # padded to tiles of 64 x 64
            rest, columns = (rest + 63) // 64 * 64, (columns + 63) // 64 * 64
        return coefficients.new_empty(rest * columns)

    @torch.library.register_fake("bda::project")
    def _(latent, packed, basis, heads, width, bias=None):
        return latent.new_empty(latent.shape[0], heads, width)

    @torch.library.register_fake("bda::attention_ready")
    def _(latent, rope, k_packed, v_packed, k_basis, v_basis, heads, qk_dim, v_dim):
        tokens = latent.shape[0]
        return (
            latent.new_empty(tokens, heads, qk_dim + rope.shape[1]),
            latent.new_empty(tokens, heads, v_dim),
        )

    @torch.library.register_fake("bda::absorbed_query")
    def _(q, packed, basis, kv_dim):
        return q.new_empty(q.shape[0], q.shape[1], kv_dim)

    @torch.library.register_fake("bda::absorbed_output")
    def _(x, packed, basis, width):
        return x.new_empty(x.shape[0], x.shape[1], width)


def phases(positions, rope_dim, theta=10000.0):
    """[tokens, rope_dim / 2]: the angles every position is rotated by."""
    exponents = torch.arange(0, rope_dim, 2, device=positions.device, dtype=torch.float64)
    return positions.double()[:, None] * theta ** (-exponents / rope_dim)


def angles(positions, rope_dim, theta=10000.0):
    """Their cosines and sines."""
    phase = phases(positions, rope_dim, theta)
    return phase.cos(), phase.sin()


def rotate(x, cos, sin):
    """Interleaved pairs of the last dimension; cos and sin broadcast."""
    even, odd = x[..., 0::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2), plain or basis-decomposed, for one sequence.

    Plain it is the layer as eager PyTorch writes it: kv_b_proj, then concatenations. Decomposed,
    keys and values come from `attention_ready`, and `decode` from the absorbed products.
    """

    def __init__(self, weights, heads, qk_dim, rope_dim, v_dim, scale):
        """weights: q, kv_a, kv_norm, o as torch.nn.Linear has them, and either kv_b or k, v (packed)
        with k_basis, v_basis."""
        super().__init__()
        self.heads, self.qk_dim, self.rope_dim, self.v_dim = heads, qk_dim, rope_dim, v_dim
        self.scale = scale
        self.k_basis, self.v_basis = weights.pop("k_basis", 0), weights.pop("v_basis", 0)
        for name, value in weights.items():
            self.register_buffer(name, value)
        self.kv_dim = self.kv_norm.numel()

    @classmethod
    def plain(cls, layer, dtype=None, device=None):
        """From a transformers DeepseekV2Attention without compressed query."""
        return cls({k: v.to(device, dtype) for k, v in _weights(layer).items()}, *_shape(layer))

    @classmethod
    def decomposed(cls, layer, dtype, device="cpu", stored_in=None):
        """The same, decomposed by the library. In double; then its values are rounded to `dtype`,
        by the library's rounding-aware storage unless `stored_in` is torch.float64."""
        heads, qk_dim, rope_dim, v_dim, _ = _shape(layer)
        w = _weights(layer)
        q, kv_a, kv_norm, k, v, o, k_basis, v_basis = ops.decompose_mla(
            w["q"], w["kv_a"], w["kv_norm"], w["kv_b"], w["o"], heads, qk_dim, rope_dim, v_dim,
            stored_in or dtype,
        )
        tensors = {"q": q, "kv_a": kv_a, "kv_norm": kv_norm, "o": o}
        tensors = {name: t.to(device, dtype) for name, t in tensors.items()}
        tensors["k"] = ops.pack(k.to(device, dtype), heads)
        tensors["v"] = ops.pack(v.to(device, dtype), heads)
        return cls(tensors | {"k_basis": k_basis, "v_basis": v_basis}, *_shape(layer))

    def project_inputs(self, x, cos, sin):
        """q [tokens, heads, qk + rope], latent [tokens, kv_dim], rope keys [tokens, rope_dim]."""
        tokens = x.shape[0]
        q = F.linear(x, self.q).view(tokens, self.heads, self.qk_dim + self.rope_dim)
        q_nope, q_rope = q.split((self.qk_dim, self.rope_dim), dim=-1)
        q = torch.cat((q_nope, rotate(q_rope, cos[:, None], sin[:, None])), dim=-1)
        latent, rope = F.linear(x, self.kv_a).split((self.kv_dim, self.rope_dim), dim=-1)
        wide = latent.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return q, self.kv_norm * wide.to(x.dtype), rotate(rope, cos, sin)

    def keys_and_values(self, latent, rope):
        """K [tokens, heads, qk + rope], V [tokens, heads, v]."""
        if hasattr(self, "kv_b"):
            kv = F.linear(latent, self.kv_b).view(-1, self.heads, self.qk_dim + self.v_dim)
            k, v = kv.split((self.qk_dim, self.v_dim), dim=-1)
            return torch.cat((k, rope[:, None].expand(-1, self.heads, -1)), dim=-1), v
        return ops.attention_ready(
            latent, rope, self.k, self.v, self.k_basis, self.v_basis, self.heads, self.qk_dim,
            self.v_dim,
        )

    def forward(self, x, cos, sin):
        """x [tokens, hidden] -> [tokens, out]: causal attention over the whole sequence."""
        q, latent, rope = self.project_inputs(x, cos, sin)
        k, v = self.keys_and_values(latent, rope)
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return F.linear(out[0].transpose(0, 1).flatten(1), self.o)

    def decode(self, x, cos, sin, latents, ropes):
        """x [sequences, hidden], one token of each -> [sequences, out], by the absorbed products
        over latents [sequences, keys, kv_dim] and ropes [sequences, keys, rope_dim], the caches
        of the tokens before; the new token's own entry is appended to them."""
        q, latent, rope = self.project_inputs(x, cos, sin)
        latents = torch.cat((latents, latent[:, None]), dim=1)
        ropes = torch.cat((ropes, rope[:, None]), dim=1)
        q_nope, q_rope = q.split((self.qk_dim, self.rope_dim), dim=-1)
        absorbed = ops.absorbed_query(q_nope, self.k, self.k_basis, self.kv_dim)
        scores = absorbed @ latents.mT + q_rope @ ropes.mT
        wide = torch.promote_types(x.dtype, torch.float32)
        mixed = (scores.to(wide) * self.scale).softmax(-1).to(x.dtype) @ latents
        values = ops.absorbed_output(mixed, self.v, self.v_basis, self.v_dim)
        return F.linear(values.flatten(1), self.o)


def _shape(layer):
    return (
        layer.num_heads, layer.qk_nope_head_dim, layer.qk_rope_head_dim, layer.v_head_dim,
        layer.scaling,
    )


def _weights(layer):
    return {
        "q": layer.q_proj.weight.detach(),
        "kv_a": layer.kv_a_proj_with_mqa.weight.detach(),
        "kv_norm": layer.kv_a_layernorm.weight.detach(),
        "kv_b": layer.kv_b_proj.weight.detach(),
        "o": layer.o_proj.weight.detach(),
    }
