#!/usr/bin/env python3
"""Makes the small checkpoints that the tests read, with what they compute.

    python3 -m venv venv && venv/bin/pip install numpy safetensors torch transformers
    venv/bin/python make_fixtures.py

Each folder holds a model with random weights in the layout of a published one, and
reference.safetensors: tokens I32 [2, 24]; nll F64 [2, 23] (nll[i, t] predicts tokens[i, t + 1],
natural log); logits F64 [24, vocab], layer0_attention_input and layer0_attention_output F64
[24, hidden], all of window 0 (input: behind the norm; output: before the residual). rope.safetensors
holds rotary frequencies and magnitudes for scaling rules with published parameters.

The references are what transformers computes from the stored weights, all in float64: it would take
rotary angles, norms and the router through float32, so its modules are given a torch whose float32
is float64. Made with transformers 5.23.0 and torch 2.15.0; weights are drawn by numpy, so other
versions should give the same files up to rounding.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import modeling_rope_utils
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

HERE = pathlib.Path(__file__).parent
WINDOWS, LENGTH, VOCAB = 2, 24, 96


class DoubleTorch:
    """torch, but what asks for float32 gets float64."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


for module in (modeling_rope_utils, modeling_deepseek_v2, modeling_gpt2, modeling_llama):
    module.torch = DoubleTorch()
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)


def save(tensors, path):
    save_file(tensors, path)
    path.chmod(0o644)  # save_file leaves a private file


def draw_weights(model, seed):
    """Gains near 1, everything else wide enough that attention and routing are far from uniform."""
    random = np.random.default_rng(seed)
    for name, weight in sorted(model.named_parameters()):
        values = np.asarray(random.standard_normal(tuple(weight.shape)))
        if "norm" in name.lower() or ".ln_" in name:
            values = values * 0.2 + (0 if name.endswith("bias") else 1)
        elif weight.ndim <= 1:
            values *= 0.5
        elif "embed" not in name and "wte" not in name and "wpe" not in name:
            values *= 1.5 / np.sqrt(weight.shape[-1])
        weight.copy_(torch.from_numpy(np.asarray(values)))


def reference(model, attention, seed):
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, (WINDOWS, LENGTH)))
    seen = {}

    def record(_, args, kwargs, output):
        seen["input"] = args[0] if args else kwargs["hidden_states"]
        seen["output"] = output[0]

    hook = attention.register_forward_hook(record, with_kwargs=True)
    logits = model(tokens, use_cache=False).logits
    hook.remove()
    assert logits.dtype == torch.float64
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1), reduction="none")
    return {
        "tokens": tokens.to(torch.int32),
        "nll": nll.reshape(WINDOWS, LENGTH - 1),
        "logits": logits[0].contiguous(),
        "layer0_attention_input": seen["input"][0].contiguous(),
        "layer0_attention_output": seen["output"][0].contiguous(),
    }


def make(name, config, seed, dtype, shard_size="1GB", spelling=None):
    """`spelling`, where given, turns the config.json that transformers writes into an older one."""
    config._attn_implementation = config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    draw_weights(model, seed)
    folder = HERE / name
    model.to(dtype)  # round to what is stored ...
    model.save_pretrained(folder, max_shard_size=shard_size)
    (folder / "generation_config.json").unlink()
    model.to(torch.float64)  # ... and compute from that
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is not None:  # its buffers were rounded too
        model.base_model.rotary_emb = type(rotary)(config)
    layers = getattr(model.base_model, "layers", None) or model.base_model.h
    attention = getattr(layers[0], "self_attn", None) or layers[0].attn
    save(reference(model, attention, seed + 1), folder / "reference.safetensors")
    if spelling is not None:
        path = folder / "config.json"
        text = json.dumps(spelling(json.loads(path.read_text())), indent=2, sort_keys=True)
        path.write_text(text + "\n")


def as_published_deepseek(config):
    """The keys of DeepSeek-V2's own config.json."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    for key in ("head_dim", "qk_head_dim", "mlp_layer_types", "dtype"):
        config.pop(key, None)
    config.update(moe_layer_freq=1, scoring_func="softmax", seq_aux=True, aux_loss_alpha=0.001,
                  ep_size=1, torch_dtype="bfloat16")
    return config


def deepseek(**overrides):
    fields = dict(
        vocab_size=VOCAB, hidden_size=42, intermediate_size=56, moe_intermediate_size=18,
        num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=24, q_lora_rank=None,
        qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, n_shared_experts=2,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0)
    return transformers.DeepseekV2Config(**{**fields, **overrides})


def make_rope_reference():
    """Frequencies and magnitudes as transformers has them, for published parameters."""
    cases = {
        "deepseek_v2_lite": (64, dict(rope_type="yarn", rope_theta=1e4, factor=40, beta_fast=32,
                                      beta_slow=1, mscale=0.707, mscale_all_dim=0.707,
                                      original_max_position_embeddings=4096)),
        "yarn_llama_2": (128, dict(rope_type="yarn", rope_theta=1e4, factor=32,
                                   original_max_position_embeddings=4096)),
        "llama_3_1": (128, dict(rope_type="llama3", rope_theta=5e5, factor=8, low_freq_factor=1,
                                high_freq_factor=4, original_max_position_embeddings=8192)),
        "llama_3_2": (64, dict(rope_type="llama3", rope_theta=5e5, factor=32, low_freq_factor=1,
                               high_freq_factor=4, original_max_position_embeddings=8192)),
        "linear": (48, dict(rope_type="linear", rope_theta=1e4, factor=2.5)),
    }
    tensors = {}
    for name, (width, parameters) in cases.items():
        config = transformers.LlamaConfig(
            head_dim=width, num_attention_heads=2, hidden_size=2 * width,
            max_position_embeddings=131072, rope_parameters=parameters)
        rule = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
        frequencies, magnitude = rule(config, device="cpu")
        assert frequencies.dtype == torch.float64
        tensors[name + ".frequencies"] = frequencies
        tensors[name + ".magnitude"] = torch.tensor([magnitude])
    save(tensors, HERE / "rope.safetensors")


def main():
    # The first layer dense, two with experts; YaRN; no q_lora; the published spelling.
    make("deepseek_v2_yarn",
         deepseek(num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=5,
                  num_experts_per_tok=2, topk_method="greedy", n_group=1, topk_group=1,
                  rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=4,
                                       beta_slow=1, mscale=0.707, mscale_all_dim=0.9,
                                       original_max_position_embeddings=64)),
         seed=11, dtype=torch.bfloat16, spelling=as_published_deepseek)
    # q_lora, experts chosen by group, an epsilon that is not the latents', tied head, shards.
    make("deepseek_v2_q_lora",
         deepseek(num_hidden_layers=2, first_k_dense_replace=1, q_lora_rank=20, n_routed_experts=6,
                  num_experts_per_tok=2, topk_method="group_limited_greedy", n_group=3,
                  topk_group=2, routed_scaling_factor=1.75, n_shared_experts=1, rms_norm_eps=1e-3,
                  tie_word_embeddings=True, rope_parameters=dict(rope_type="default",
                                                                 rope_theta=10000.0)),
         seed=21, dtype=torch.float16, shard_size="24KB")
    make("gpt2",
         transformers.GPT2Config(
             vocab_size=VOCAB, n_embd=36, n_head=3, n_layer=2, n_positions=32, n_inner=52,
             resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0),
         seed=31, dtype=torch.float32)
    # Two query heads to a key head, heads narrower than hidden / heads, biases, Llama 3's scaling.
    make("llama",
         transformers.LlamaConfig(
             vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=10, attention_bias=True,
             max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
             rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=4.0,
                                  low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=32)),
         seed=41, dtype=torch.bfloat16)
    make_rope_reference()


if __name__ == "__main__":
    main()
