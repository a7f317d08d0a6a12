"""Tests and timings of the operators: python3 test_torch_op.py BUILD_FOLDER [--no-timing]

Runs on the CPU, and on the current GPU where the operators were built for one.
"""

import argparse
import faulthandler
import sys
import time
import types

import bda_torch
import rounding
import torch
from bda_torch import LatentAttention, ops
from rounding import Rounded
from torch import nn

try:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
except ImportError:
    DeepseekV2Attention = None

SMALL = dict(hidden=96, heads=3, kv_dim=80, qk_dim=24, rope_dim=16, v_dim=40)
LITE = dict(hidden=2048, heads=16, kv_dim=512, qk_dim=128, rope_dim=64, v_dim=128)


def random_layer(hidden, heads, kv_dim, qk_dim, rope_dim, v_dim):
    """A layer with the attributes of transformers' DeepseekV2Attention, in double."""
    linear = lambda rows, cols: nn.Linear(cols, rows, bias=False, dtype=torch.float64)
    norm = types.SimpleNamespace(weight=1 + 0.2 * torch.randn(kv_dim, dtype=torch.float64))
    return types.SimpleNamespace(
        num_heads=heads, qk_nope_head_dim=qk_dim, qk_rope_head_dim=rope_dim, v_head_dim=v_dim,
        scaling=(qk_dim + rope_dim) ** -0.5, q_proj=linear(heads * (qk_dim + rope_dim), hidden),
        kv_a_proj_with_mqa=linear(kv_dim + rope_dim, hidden), kv_a_layernorm=norm,
        kv_b_proj=linear(heads * (qk_dim + v_dim), kv_dim), o_proj=linear(hidden, heads * v_dim),
    )


def devices_and_dtypes():
    yield from (("cpu", t) for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16))
    if CUDA:
        yield from (("cuda", t) for t in (torch.bfloat16, torch.float16))


def gpu_or_cpu():
    return ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)


def random_operands(device, dtype, tokens, shape=SMALL, basis=8):
    """latent, rope, q, mixed latents and the coefficients of both sides in double and packed."""
    n, d, r, v = shape["heads"], shape["kv_dim"], shape["qk_dim"], shape["v_dim"]
    draw = lambda *size: torch.randn(*size, dtype=torch.float64).to(dtype)
    o = types.SimpleNamespace(latent=draw(tokens, d), rope=draw(tokens, shape["rope_dim"]),
                              q=draw(tokens, n, r), mixed=draw(tokens, n, d), basis=basis,
                              k=draw(d - r, n * r) / 8, v=draw(d - v, n * v) / 8)
    o.on = types.SimpleNamespace(**{name: getattr(o, name).to(device) for name in
                                    ("latent", "rope", "q", "mixed", "k", "v")})
    o.on.k, o.on.v = ops.pack(o.on.k, n), ops.pack(o.on.v, n)
    o.project = (o.on.latent, o.on.k, basis, n, r)
    o.ready = (o.on.latent, o.on.rope, o.on.k, o.on.v, basis, 0, n, r, v)
    o.query = (o.on.q, o.on.k, basis, d)
    o.output = (o.on.mixed, o.on.k, basis, r)
    return o


def assert_within(got, want, what):
    """`want` is Rounded. A tolerance as large as the values would say nothing."""
    difference = (got.double() - want.value.to(got.device)).abs()
    tolerance = want.tolerance.to(got.device)
    assert not got.isnan().any(), f"{what}: NaN"
    worst = (difference / tolerance).max().item()
    assert worst <= 1, f"{what}: off by {worst:.2f} times the tolerance"
    rms = want.value.square().mean().sqrt().item()
    assert tolerance.mean().item() < 0.5 * rms, f"{what}: tolerance {tolerance.mean():.1e} of {rms:.1e}"
    return f"{difference.max().item() / rms:.1e} of the values, {worst:.2f} of the tolerance"


def test_operators_against_double():
    for device, dtype in devices_and_dtypes():
        for tokens in (1, 7, 130):
            o = random_operands(device, dtype, tokens)
            n, d, r, v = (SMALL[k] for k in ("heads", "kv_dim", "qk_dim", "v_dim"))
            side = lambda c, width, basis: rounding.project(
                Rounded(o.latent), Rounded(c.flatten()), basis, n, width, dtype)
            what = f"{device} {dtype} {tokens} tokens"
            assert_within(ops.project(*o.project), side(o.k, r, o.basis), what + " project")
            bias = torch.randn(n * r, dtype=torch.float64).to(dtype)
            with_bias = side(o.k, r, o.basis) + Rounded(bias.view(n, r))
            assert_within(ops.project(*o.project, bias.to(device)),
                          with_bias.rounded(rounding.UNIT[dtype], 2), what + " project with bias")
            k, values = ops.attention_ready(*o.ready)
            assert_within(k[..., :r], side(o.k, r, o.basis), what + " key")
            assert (k[..., r:].cpu() == o.rope[:, None]).all(), what + " rope key"
            assert_within(values, side(o.v, v, 0), what + " value")
            # [I, C^T] P of every head, as a matrix
            c = o.k.double().view(d - r, n, r).permute(1, 0, 2)
            eye = torch.eye(r, dtype=torch.float64).expand(n, r, r)
            w = Rounded(torch.cat((c[:, : o.basis], eye, c[:, o.basis :]), 1))
            heads_first = lambda t: Rounded(t.transpose(0, 1))
            back = lambda b: b.map(lambda t: t.transpose(0, 1))
            assert_within(ops.absorbed_query(*o.query),
                          back(rounding.linear(heads_first(o.q), w, dtype)), what + " absorbed query")
            assert_within(ops.absorbed_output(*o.output),
                          back(rounding.linear(heads_first(o.mixed), w.map(lambda t: t.mT), dtype)),
                          what + " absorbed output")


def test_opcheck():
    for device, dtype in devices_and_dtypes():
        o = random_operands(device, dtype, 5)
        torch.library.opcheck(ops.pack.default, (o.k.to(device), SMALL["heads"]))
        torch.library.opcheck(ops.project.default, o.project)
        torch.library.opcheck(ops.attention_ready.default, o.ready)
        torch.library.opcheck(ops.absorbed_query.default, o.query)
        torch.library.opcheck(ops.absorbed_output.default, o.output)


def test_bad_input_is_named():
    o = random_operands("cpu", torch.float32, 5)
    latent, packed, basis, n, r = o.project
    for arguments, message in (
        ((latent[0], packed, basis, n, r), "latent: expected 2 dimensions, got 1"),
        ((latent.t(), packed, basis, n, r), "latent: expected unit stride"),
        ((latent, packed, basis, n, 80), "width: expected from 1 to 79, got 80"),
        ((latent, packed, basis, 2, r), "packed: expected what bda.pack makes of C [56, 2 * 24]"),
        ((latent, packed.double(), basis, n, r), "packed: expected Float like the activations"),
        ((latent, packed, 57, n, r), "basis: expected from 0 to 56, got 57"),
        ((latent, packed, basis, n, r, packed), "bias: expected 72 values"),
        ((latent.int(), packed.int(), basis, n, r), "dtype: expected float64, float32"),
    ):
        try:
            ops.project(*arguments)
        except RuntimeError as error:
            assert message in str(error), f"{message!r} not in {error}"
        else:
            raise AssertionError(f"no error: {message}")


def layer_inputs(shape, tokens, device, dtype):
    x = torch.randn(tokens, shape["hidden"], dtype=torch.float64).to(dtype)
    positions = torch.arange(tokens)
    return x.to(device), positions.to(device)


def expected_difference(source, x, positions, dtype, device):
    """The layer's output in double with the variance of (an evaluation of the decomposed layer in
    `dtype` - one of the plain layer). The decomposition itself is exact: in double the two differ
    by roundings, and weights solved for are right to some kv_dim roundings."""
    unit = rounding.UNIT[dtype]
    plain = LatentAttention.plain(source, torch.float64, device)
    bd = decomposed_in_double(source, device)
    of = lambda layer, dtype, unit: rounding.latent_attention(
        layer, x.double(), positions, dtype, unit)
    want, of_bd = of(plain, dtype, unit), of(bd, dtype, unit)
    exact = of(plain, torch.float64, 2**-53) + Rounded(
        torch.zeros_like(want.value), of(bd, torch.float64, bd.kv_dim * 2**-53).variance)
    apart = assert_within(of_bd.value, exact, "the decomposition, in double")
    print(f"    the decomposition, in double: {apart}")
    return want + Rounded(torch.zeros_like(want.value), of_bd.variance)


def decomposed_in_double(source, device):
    """With coefficients as the CPU packs them, which is as they are."""
    return LatentAttention.decomposed(source, torch.float64).to(device)


def compare_layers(shape, tokens, device, dtype):
    print(f"  {shape}, {tokens} tokens, {device}, {dtype}")
    source = random_layer(**shape)
    x, positions = layer_inputs(shape, tokens, device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    cos, sin = (t.to(wide) for t in bda_torch.angles(positions, shape["rope_dim"]))
    want = expected_difference(source, x, positions, dtype, device)
    against = lambda values: Rounded(values, want.variance)
    out = LatentAttention.decomposed(source, dtype, device, stored_in=torch.float64)(x, cos, sin)
    eager = LatentAttention.plain(source, dtype, device)(x, cos, sin)
    print(f"    from eager PyTorch: {assert_within(out, against(eager), 'eager PyTorch')}")
    aware = LatentAttention.decomposed(source, dtype, device)(x, cos, sin)
    rms = lambda y: ((y.double() - want.value).square().mean().sqrt()
                     / want.value.square().mean().sqrt()).item()
    print(f"    rms error against double: eager {rms(eager):.1e}, decomposed {rms(out):.1e}, "
          f"with rounding-aware storage {rms(aware):.1e}")
    if DeepseekV2Attention is None:
        print("    transformers is not installed: not compared with it")
        return
    reference = deepseek_layer(source, shape).to(device, dtype)
    freqs = torch.polar(torch.ones_like(cos, dtype=torch.float32), bda_torch.phases(
        positions, shape["rope_dim"]).float())[None]
    mask = torch.full((tokens, tokens), float("-inf"), device=device, dtype=dtype).triu(1)
    expected = reference(x[None], mask[None, None], position_embeddings=freqs)[0][0]
    print(f"    from transformers: {assert_within(out, against(expected), 'transformers')}")


def deepseek_layer(source, shape):
    config = DeepseekV2Config(
        hidden_size=shape["hidden"], num_attention_heads=shape["heads"], q_lora_rank=None,
        num_key_value_heads=shape["heads"], kv_lora_rank=shape["kv_dim"],
        qk_nope_head_dim=shape["qk_dim"], qk_rope_head_dim=shape["rope_dim"],
        v_head_dim=shape["v_dim"], attention_bias=False,
    )
    config._attn_implementation = "eager"
    layer = DeepseekV2Attention(config, 0).double().eval()
    for name in ("q_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"):
        getattr(layer, name).weight.data.copy_(getattr(source, name).weight.data)
    return layer


def test_layer_against_pytorch_and_transformers():
    compare_layers(SMALL, 33, "cpu", torch.float32)
    compare_layers(LITE | {"hidden": 1024, "heads": 4}, 65, "cpu", torch.float32)
    compare_layers(LITE | {"hidden": 1024, "heads": 4}, 65, "cpu", torch.bfloat16)
    if CUDA:
        for dtype in (torch.float16, torch.bfloat16):
            compare_layers(LITE, 200, "cuda", dtype)


def test_absorbed_decoding_is_the_whole_sequence():
    for device, dtype in {("cpu", torch.float64), gpu_or_cpu()}:
        source = random_layer(**SMALL)
        x, positions = layer_inputs(SMALL, 20, device, dtype)
        cos, sin = (t.to(torch.promote_types(dtype, torch.float32))
                    for t in bda_torch.angles(positions, SMALL["rope_dim"]))
        layer = LatentAttention.decomposed(source, dtype, device)
        whole = layer(x, cos, sin)[-1:]
        _, latent, rope = layer.project_inputs(x[:-1], cos[:-1], sin[:-1])
        last = layer.decode(x[-1:], cos[-1:], sin[-1:], latent[None], rope[None])
        # Two orders of the same sums; absorbing puts a score's terms through one more.
        variance = 3 * deviation(source, x, positions, dtype).variance[-1:]
        assert_within(last, Rounded(whole, variance.to(device)), f"{device} {dtype}")


def deviation(source, x, positions, dtype):
    return rounding.latent_attention(decomposed_in_double(source, "cpu"), x.double().cpu(),
                                     positions.cpu(), dtype, 0)


def test_compile_traces_without_a_break():
    device, dtype = gpu_or_cpu()
    source = random_layer(**SMALL)
    layer = LatentAttention.decomposed(source, dtype, device)
    for backend in ("aot_eager", "inductor") if CUDA else ("aot_eager",):
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
        for tokens in (9, 40):
            x, positions = layer_inputs(SMALL, tokens, device, dtype)
            cos, sin = (t.float() for t in bda_torch.angles(positions, SMALL["rope_dim"]))
            want, got = layer(x, cos, sin), compiled(x, cos, sin)
            if backend == "aot_eager":  # the same operators in the same order
                assert torch.equal(got, want), "the traced layer differs from the eager one"
                continue
            variance = 2 * deviation(source, x, positions, dtype).variance.to(device)
            assert_within(got, Rounded(want, variance), backend)


def test_cuda_graph_and_stream():
    if not CUDA:
        print("  no GPU: skipped")
        return
    o = random_operands("cuda", torch.bfloat16, 64, LITE, basis=128)
    calls = lambda: (ops.project(*o.project), *ops.attention_ready(*o.ready),
                     ops.absorbed_query(*o.query), ops.absorbed_output(*o.output))
    calls()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = calls()
    for inputs in (o.on.latent, o.on.rope, o.on.q, o.on.mixed):
        inputs.copy_(torch.randn_like(inputs))
    for out in captured:
        out.fill_(float("nan"))
    graph.replay()
    for got, want in zip(captured, calls()):
        assert torch.equal(got, want), "the graph's replay differs from the eager call"

    layer = LatentAttention.decomposed(random_layer(**LITE), torch.bfloat16, "cuda")
    x, positions = layer_inputs(LITE, 128, "cuda", torch.bfloat16)
    cos, sin = (t.float() for t in bda_torch.angles(positions, LITE["rope_dim"]))
    layer(x, cos, sin)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(x, cos, sin)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, layer(x, cos, sin)), "a captured layer differs"

    # On the current stream: the latent is written there only after a while.
    stream, latent = torch.cuda.Stream(), torch.full_like(o.on.latent, float("nan"))
    want = ops.project(*o.project)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        latent.copy_(o.on.latent)
        got = ops.project(latent, *o.project[1:])
    stream.synchronize()
    assert torch.equal(got, want), "not on PyTorch's current stream"


def milliseconds(call, device):
    """The median of 20 timings of 10 calls; on a GPU captured in a graph."""
    if device == "cuda":
        call()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            for _ in range(10):
                call()
        replay, times = captured.replay, []
        for _ in range(20):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(), replay(), stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) / 10)
        return sorted(times)[10]
    call()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)[4]


def report_times():
    device, dtype = gpu_or_cpu()
    cases = [(LITE, 256)] if device == "cpu" else [
        (LITE, 1024), (LITE, 4096), (LITE | {"heads": 128, "hidden": 5120}, 4096)]
    where = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    print(f"times, {where}, {dtype}: eager PyTorch, these operators, ratio")
    for shape, tokens in cases:
        source = random_layer(**shape)
        plain = LatentAttention.plain(source, dtype, device)
        bd = random_decomposed(source, dtype, device, shape)
        x, positions = layer_inputs(shape, tokens, device, dtype)
        cos, sin = (t.float() for t in bda_torch.angles(positions, shape["rope_dim"]))
        _, latent, rope = plain.project_inputs(x, cos, sin)
        pairs = [("keys and values", lambda l: lambda: l.keys_and_values(latent, rope)),
                 ("whole layer", lambda l: lambda: l(x, cos, sin))]
        for name, of in pairs:
            a, b = (milliseconds(of(l), device) for l in (plain, bd))
            print(f"  {shape['heads']} heads, {tokens} tokens, {name}: {a:.3f} ms, {b:.3f} ms, "
                  f"{a / b:.2f}x")


def random_decomposed(source, dtype, device, shape):
    """Times do not depend on the values: nothing is decomposed."""
    plain = LatentAttention.plain(source, dtype, device)
    n, d, r, v = (shape[k] for k in ("heads", "kv_dim", "qk_dim", "v_dim"))
    draw = lambda rows, cols: ops.pack(torch.randn(rows, cols, dtype=dtype, device=device) / 32, n)
    weights = dict(plain.named_buffers()) | {"k": draw(d - r, n * r), "v": draw(d - v, n * v),
                                             "k_basis": 0, "v_basis": r}
    del weights["kv_b"]
    return LatentAttention(weights, n, r, shape["rope_dim"], v, plain.scale)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--no-timing", action="store_true")
    options = parser.parse_args()
    faulthandler.enable()
    sys.stdout.reconfigure(line_buffering=True)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    bda_torch.load(options.folder)
    CUDA = torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
        "bda::project", "CUDA")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums in float32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    passed, failed = 0, 0
    with torch.no_grad():
        for name, test in list(globals().items()):
            if not name.startswith("test_"):
                continue
            print(name)
            try:
                test()
                passed += 1
            except AssertionError as error:
                print(f"  FAILED: {error}")
                failed += 1
        if not options.no_timing:
            report_times()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)
