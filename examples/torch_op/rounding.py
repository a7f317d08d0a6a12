"""What a layer's evaluation may be off by: values in double beside the standard deviation that
rounding gives them. Roundings are taken as independent of one another and uniform over the half
unit in the last place to either side (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): u / sqrt(3)
of the rounded number, and sqrt(n) of that where a worst case has n. The tests allow TOLERANCE of
these deviations, for values by the million and what is correlated all the same."""

import math

import bda_torch
import torch

UNIT = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
TOLERANCE = 8


class Rounded:
    """A value and the variance of its error, both in double."""

    def __init__(self, value, variance=None):
        self.value = value.double()
        self.variance = torch.zeros_like(self.value) if variance is None else variance

    def map(self, f):
        """A permutation, selection or repetition of the values."""
        return Rounded(f(self.value), f(self.variance))

    def rounded(self, unit, times=1):
        # a float16 subnormal is rounded as the smallest normal number is
        floor = 2**-14 if unit == UNIT[torch.float16] else 0
        size = self.value.abs() + floor
        return Rounded(self.value, self.variance + times * (unit * size) ** 2 / 3)

    def __add__(self, other):
        return Rounded(self.value + other.value, self.variance + other.variance)

    def __mul__(self, other):
        a, b = self.value**2, other.value**2
        variance = a * other.variance + self.variance * (b + other.variance)
        return Rounded(self.value * other.value, variance)

    def __truediv__(self, other):
        value = self.value / other.value
        return Rounded(value, (self.variance + value**2 * other.variance) / other.value**2)

    @property
    def tolerance(self):
        return TOLERANCE * self.variance.sqrt()


def inner(dtype):
    """The unit roundoff of the sums inside of an operator: float32's for the 16-bit types."""
    return min(UNIT[dtype], UNIT[torch.float32])


def cat(parts):
    return Rounded(*(torch.cat([getattr(p, f) for p in parts], -1) for f in ("value", "variance")))


def dot(a, b, unit, start=None):
    """a b^T over the last dimensions (+ start), every partial sum rounded."""
    a2, b2, n = a.value**2, b.value**2, a.value.shape[-1]
    value, terms = a.value @ b.value.mT, a2 @ b2.mT
    variance = a2 @ b.variance.mT + a.variance @ (b2 + b.variance).mT
    if start is not None:
        value, terms = value + start.value, terms + start.value**2
        variance = variance + start.variance
    # a partial sum is as large as a walk of random signs, or a growing sum, whichever it is
    return Rounded(value, variance + (n + 1) * unit**2 / 3 * (terms + value**2))


def linear(x, w, dtype, start=None):
    return dot(x, w, inner(dtype), start).rounded(UNIT[dtype])


def rms_norm(x, gain, dtype):
    u, n = inner(dtype), x.value.shape[-1]
    mean = (x.value**2).mean(-1, keepdim=True) + 1e-6
    spread = (4 * x.value**2 * x.variance).mean(-1, keepdim=True) / n
    mean = Rounded(mean, spread).rounded(u, n + 2)
    inverse = Rounded(mean.value.rsqrt(), mean.variance / (4 * mean.value**3)).rounded(u, 2)
    return ((x * inverse).rounded(u).rounded(UNIT[dtype]) * gain).rounded(UNIT[dtype])


def rotate(x, cos, sin, dtype):
    u = inner(dtype)
    even, odd = x.map(lambda t: t[..., 0::2]), x.map(lambda t: t[..., 1::2])
    minus = Rounded(-sin.value, sin.variance)
    pair = [((even * c).rounded(u) + (odd * s).rounded(u)).rounded(u)
            for c, s in ((cos, minus), (sin, cos))]
    together = lambda f: torch.stack([getattr(p, f) for p in pair], -1).flatten(-2)
    return Rounded(together("value"), together("variance")).rounded(UNIT[dtype])


def attend(q, k, v, scale, dtype):
    """Causal, [heads, tokens, width]. Logits and weights may be stored in `dtype`."""
    s = linear(q, k, dtype)
    s = Rounded(s.value * scale, s.variance * scale**2).rounded(UNIT[dtype])
    seen = torch.ones(s.value.shape[-2:], dtype=torch.bool, device=s.value.device).tril()
    shift = s.value.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
    value = (s.value - shift).exp().masked_fill(~seen, 0)
    s = Rounded(s.value - shift, s.variance).rounded(inner(dtype))
    weights = Rounded(value, value**2 * s.variance.expm1()).rounded(inner(dtype), 4)
    total = Rounded(*(t.sum(-1, keepdim=True) for t in (weights.value, weights.variance)))
    total = total.rounded(inner(dtype), value.shape[-1])
    mixed = dot(weights.rounded(UNIT[dtype], 2), v.map(lambda t: t.mT), inner(dtype))
    return (mixed / total).rounded(UNIT[dtype], 2)


def project(latent, coefficients, basis, heads, width, dtype):
    """c_S + c_rest C with C [rest * heads * width] as the CPU packs it."""
    rest = latent.map(lambda t: torch.cat((t[..., :basis], t[..., basis + width :]), -1))
    columns = coefficients.map(lambda t: t.view(-1, heads * width).mT)
    start = latent.map(lambda t: t[..., basis : basis + width].repeat(1, heads))
    return linear(rest, columns, dtype, start).map(lambda t: t.view(-1, heads, width))


def latent_attention(layer, x, positions, dtype, unit_of_weights):
    """LatentAttention.forward of a layer whose weights are in double, plain or decomposed,
    evaluated in `dtype` with weights rounded by `unit_of_weights`."""
    weight = lambda w: Rounded(w).rounded(unit_of_weights)
    tokens, heads, angle = x.shape[0], layer.heads, inner(dtype)
    phase = bda_torch.phases(positions, layer.rope_dim)
    # an angle is the product of a position and a frequency, both rounded
    slip = (angle * phase) ** 2
    cos, sin = (Rounded(t, slip).rounded(angle) for t in (phase.cos(), phase.sin()))
    x = Rounded(x)
    q = linear(x, weight(layer.q), dtype).map(lambda t: t.view(tokens, heads, -1))
    nope, rope = (q.map(lambda t: t[..., : layer.qk_dim]), q.map(lambda t: t[..., layer.qk_dim :]))
    each_head = lambda t: t[:, None]
    q = cat((nope, rotate(rope, cos.map(each_head), sin.map(each_head), dtype)))
    kv_a = linear(x, weight(layer.kv_a), dtype)
    latent = rms_norm(kv_a.map(lambda t: t[:, : layer.kv_dim]), weight(layer.kv_norm), dtype)
    rope = rotate(kv_a.map(lambda t: t[:, layer.kv_dim :]), cos, sin, dtype)
    if hasattr(layer, "kv_b"):
        kv = linear(latent, weight(layer.kv_b), dtype).map(lambda t: t.view(tokens, heads, -1))
        k, v = kv.map(lambda t: t[..., : layer.qk_dim]), kv.map(lambda t: t[..., layer.qk_dim :])
    else:
        k = project(latent, weight(layer.k), layer.k_basis, heads, layer.qk_dim, dtype)
        v = project(latent, weight(layer.v), layer.v_basis, heads, layer.v_dim, dtype)
    k = cat((k, rope.map(lambda t: t[:, None].expand(-1, heads, -1))))
    by_head = (b.map(lambda t: t.transpose(0, 1)) for b in (q, k, v))
    out = attend(*by_head, layer.scale, dtype)
    return linear(out.map(lambda t: t.transpose(0, 1).flatten(1)), weight(layer.o), dtype)
