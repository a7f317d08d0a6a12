#!/usr/bin/env python3
"""Makes the small checkpoints of families whose attention alone the library reads.

    python3 -m venv venv && venv/bin/pip install numpy safetensors torch transformers
    venv/bin/python make_attention_fixtures.py

Each folder of attention/ holds a model with random weights as transformers stores it, and
reference.safetensors with what went into and came out of every attention module, in the order in
which the library counts them, all F64: I.input [tokens, hidden] and I.output [tokens, hidden];
I.context [keys, hidden] of a cross-attention; I.position_bias [heads, tokens, keys] where the
model has one (T5).

As in make_fixtures.py the references are computed from the stored weights in float64. Made with
transformers 5.23.0 and torch 2.15.0.
"""

import importlib
import json
import pathlib
import re

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from make_fixtures import DoubleTorch, as_published_deepseek, draw_weights, save

HERE = pathlib.Path(__file__).parent / "attention"
TOKENS, VOCAB = 11, 16

for family in ("bert", "clip", "deepseek_v3", "gemma", "gemma2", "gemma3", "gpt_neox", "mistral",
               "opt", "phi", "qwen2", "qwen3", "roberta", "t5", "vit", "whisper"):
    importlib.import_module(f"transformers.models.{family}.modeling_{family}").torch = DoubleTorch()


def record(model, modules, inputs):
    """Runs the model; `modules` lists (module that gets the input, module that gives the output)."""
    tensors, hooks = {}, []
    named = dict(model.named_modules())

    def keep(key, value):
        assert value.dtype == torch.float64, key
        tensors[key] = value[0].contiguous()

    def on_input(i):
        def hook(_, args, kwargs, output):
            keep(f"{i}.input", args[0] if args else kwargs["hidden_states"])
            if kwargs.get("key_value_states") is not None:
                keep(f"{i}.context", kwargs["key_value_states"])
            elif model.config.model_type == "t5":
                keep(f"{i}.position_bias", output[1])
        return hook

    def on_output(i):
        def hook(_, args, output):
            keep(f"{i}.output", output[0] if isinstance(output, tuple) else output)
        return hook

    for i, (source, sink) in enumerate(modules):
        hooks.append(named[source].register_forward_hook(on_input(i), with_kwargs=True))
        hooks.append(named[sink].register_forward_hook(on_output(i)))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    assert {key.split(".")[0] for key in tensors} == {str(i) for i in range(len(modules))}
    return tensors


def tokens(seed, name="input_ids", count=TOKENS):
    ids = np.random.default_rng(seed).integers(3, VOCAB, (1, count))
    return {name: torch.from_numpy(ids)}


def pixels(seed):
    return {"pixel_values": torch.from_numpy(
        np.random.default_rng(seed).standard_normal((1, 3, 12, 12)))}


def make(name, model_class, config, modules, inputs, seed, dtype=torch.bfloat16, spelling=None,
         fp8=False):
    """`modules` names them with a {} for the layer; `spelling` turns config.json into another."""
    sub_configs = [config] + [getattr(config, key) for key in config.sub_configs_defaults or {}]
    for c in sub_configs:
        c._attn_implementation = "eager"
        c._experts_implementation = "eager"
    model = model_class(config).to(torch.float64).eval()
    draw_weights(model, seed)
    folder = HERE / name
    model.to(dtype)  # round to what is stored ...
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    if fp8:
        store_as_fp8(model, folder / "model.safetensors")
    model.to(torch.float64)  # ... and compute from that
    for module in list(model.modules()):  # rotary buffers were rounded too
        if hasattr(module, "rotary_emb"):
            module.rotary_emb = type(module.rotary_emb)(module.rotary_emb.config)
        if fp8 and hasattr(module, "dequantized"):
            module.weight.copy_(module.dequantized)
    pairs = []
    for source, sink, layers in modules:
        pairs += [(source.format(i), sink.format(i)) for i in range(layers)]
    pairs.sort(key=lambda pair: [pair[0].startswith("decoder") or ".decoder" in pair[0],
                                 pair[0].startswith("vision"),
                                 int(re.search(r"\.(\d+)\.", pair[0]).group(1))])
    save(record(model, pairs, inputs), folder / "reference.safetensors")
    if spelling is not None:
        path = folder / "config.json"
        text = json.dumps(spelling(json.loads(path.read_text())), indent=2, sort_keys=True)
        path.write_text(text + "\n")


def store_as_fp8(model, path, block=128):
    """Every linear layer but the head in e4m3, with a scale for each block: value = stored * scale."""
    tensors = {}
    named = dict(model.named_modules())
    for name, weight in load_file(path).items():
        tensors[name] = weight
        if not name.endswith("proj.weight") and "kv_a_proj" not in name:
            continue
        rows, cols = weight.shape
        wide = weight.double()
        scales = torch.empty(-(-rows // block), -(-cols // block), dtype=torch.float32)
        values = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
        dequantized = torch.empty(rows, cols, dtype=torch.float64)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
                scales[i, j] = wide[at].abs().max() / 448
                scale = scales[i, j].double()
                values[at] = (wide[at] / scale).to(torch.float8_e4m3fn)
                dequantized[at] = values[at].double() * scale
        tensors[name], tensors[name + "_scale_inv"] = values, scales
        named[name.removesuffix(".weight")].dequantized = dequantized
    save(tensors, path)


def both(name, layers):
    return [(name, name, layers)]


def shape(**overrides):
    return {**dict(hidden_size=42, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8),
            **overrides}


def decoder(**overrides):
    return shape(**{**dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2),
                    **overrides})


def rope(**fields):
    return dict(rope_parameters=dict(rope_type="default", **fields))


def make_encoders():
    for name, model_class, config_class, seed in (
            ("bert", transformers.BertModel, transformers.BertConfig, 101),
            ("roberta", transformers.RobertaForMaskedLM, transformers.RobertaConfig, 111)):
        body = "" if name == "bert" else "roberta."
        make(name, model_class,
             config_class(**shape(vocab_size=VOCAB, max_position_embeddings=24, pad_token_id=0)),
             [(body + "encoder.layer.{}.attention.self",
               body + "encoder.layer.{}.attention.output.dense", 2)], tokens(seed), seed)
    make("vit", transformers.ViTForImageClassification,
         transformers.ViTConfig(**shape(image_size=12, patch_size=4, num_labels=2)),
         both("vit.layers.{}.attention", 2), pixels(121), 121)
    towers = dict(text_config=shape(vocab_size=VOCAB, num_hidden_layers=1, projection_dim=8, bos_token_id=1,
                                    max_position_embeddings=TOKENS, eos_token_id=2),
                  vision_config=shape(hidden_size=40, num_attention_heads=4, num_hidden_layers=1,
                                      image_size=12, patch_size=4, projection_dim=8))
    make("clip", transformers.CLIPModel, transformers.CLIPConfig(projection_dim=8, **towers),
         both("text_model.encoder.layers.{}.self_attn", 1)
         + both("vision_model.encoder.layers.{}.self_attn", 1), {**tokens(131), **pixels(132)}, 131)
    make("clip_text", transformers.CLIPTextModel,
         transformers.CLIPTextConfig(**towers["text_config"]),
         both("encoder.layers.{}.self_attn", 1), tokens(141), 141, torch.float16)


def make_encoder_decoders():
    make("whisper", transformers.WhisperForConditionalGeneration,
         transformers.WhisperConfig(
             vocab_size=VOCAB, d_model=42, encoder_layers=2, decoder_layers=1,
             encoder_attention_heads=2, decoder_attention_heads=3, encoder_ffn_dim=8,
             decoder_ffn_dim=8, num_mel_bins=4, max_source_positions=7, max_target_positions=16,
             pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
             begin_suppress_tokens=None),
         both("model.encoder.layers.{}.self_attn", 2) + both("model.decoder.layers.{}.self_attn", 1)
         + both("model.decoder.layers.{}.encoder_attn", 1),
         {"input_features": torch.from_numpy(
             np.random.default_rng(151).standard_normal((1, 4, 14))),
          **tokens(152, "decoder_input_ids")}, 151)
    # Heads wider than d_model / num_heads, and more encoder than decoder layers.
    make("t5", transformers.T5ForConditionalGeneration,
         transformers.T5Config(vocab_size=VOCAB, d_model=36, d_kv=14, d_ff=8, num_layers=2,
                               num_decoder_layers=1, num_heads=3, relative_attention_num_buckets=8,
                               relative_attention_max_distance=9, decoder_start_token_id=0),
         both("encoder.block.{}.layer.0.SelfAttention", 2)
         + both("decoder.block.{}.layer.0.SelfAttention", 1)
         + both("decoder.block.{}.layer.1.EncDecAttention", 1),
         {**tokens(161), **tokens(162, "decoder_input_ids", 7)}, 161)


def as_published_neox(config):
    """The keys of Pythia's own config.json."""
    parameters = config.pop("rope_parameters")
    config["rotary_pct"] = parameters["partial_rotary_factor"]
    config["rotary_emb_base"] = int(parameters["rope_theta"])
    config.pop("attention_bias")
    return config


def as_published_phi(config):
    parameters = config.pop("rope_parameters")
    config["partial_rotary_factor"] = parameters["partial_rotary_factor"]
    config["rope_theta"] = parameters["rope_theta"]
    config["rope_scaling"] = None
    return config


def make_decoders():
    make("opt", transformers.OPTForCausalLM,
         transformers.OPTConfig(vocab_size=VOCAB, hidden_size=42, num_hidden_layers=2,
                                num_attention_heads=3, ffn_dim=8, max_position_embeddings=24,
                                word_embed_proj_dim=20),
         both("model.decoder.layers.{}.self_attn", 2), tokens(201), 201, torch.float16)
    # 4 of 14 channels rotated; half-integral products are cut off.
    make("gpt_neox", transformers.GPTNeoXForCausalLM,
         transformers.GPTNeoXConfig(**decoder(), **rope(rope_theta=100.0,
                                                        partial_rotary_factor=0.3)),
         both("gpt_neox.layers.{}.attention", 2), tokens(211), 211, spelling=as_published_neox)
    # 4 of 11 channels rotated, two query heads to a key head.
    make("phi", transformers.PhiForCausalLM,
         transformers.PhiConfig(**decoder(hidden_size=44, num_attention_heads=4,
                                          num_key_value_heads=2),
                                **rope(rope_theta=100.0, partial_rotary_factor=0.4)),
         both("model.layers.{}.self_attn", 2), tokens(221), 221, spelling=as_published_phi)
    grouped = decoder(hidden_size=44, num_attention_heads=4, num_key_value_heads=2, head_dim=10)
    layers = both("model.layers.{}.self_attn", 2)
    make("mistral", transformers.MistralForCausalLM,
         transformers.MistralConfig(**grouped, **rope(rope_theta=100.0), sliding_window=4),
         layers, tokens(231), 231)
    make("qwen2", transformers.Qwen2ForCausalLM,
         transformers.Qwen2Config(**decoder(hidden_size=48, num_attention_heads=4,
                                            num_key_value_heads=2),
                                  **rope(rope_theta=100.0), use_sliding_window=True,
                                  sliding_window=4, max_window_layers=1),
         layers, tokens(241), 241)
    make("qwen3", transformers.Qwen3ForCausalLM,
         transformers.Qwen3Config(**grouped, **rope(rope_theta=100.0), rms_norm_eps=1e-5),
         layers, tokens(251), 251)
    make("gemma", transformers.GemmaForCausalLM,
         transformers.GemmaConfig(**grouped, **rope(rope_theta=100.0)), layers, tokens(261), 261)
    make("gemma2", transformers.Gemma2ForCausalLM,
         transformers.Gemma2Config(**grouped, **rope(rope_theta=100.0), sliding_window=4,
                                   query_pre_attn_scalar=7, attn_logit_softcapping=1.5),
         layers, tokens(271), 271)
    # A sliding layer and a full one, rotated by different frequencies.
    make("gemma3", transformers.Gemma3ForCausalLM,
         transformers.Gemma3TextConfig(
             **grouped, sliding_window=4, query_pre_attn_scalar=7,
             layer_types=["sliding_attention", "full_attention"],
             rope_parameters=dict(
                 sliding_attention=dict(rope_type="default", rope_theta=50.0),
                 full_attention=dict(rope_type="linear", rope_theta=500.0, factor=4.0))),
         layers, tokens(281), 281)


def latent(**overrides):
    return transformers.DeepseekV3Config(**{
        **decoder(num_key_value_heads=3, q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=12,
                  qk_rope_head_dim=8, v_head_dim=10, first_k_dense_replace=2,
                  max_position_embeddings=256,
                  rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=4,
                                       beta_slow=1, mscale=1.0, mscale_all_dim=1.0,
                                       original_max_position_embeddings=64)), **overrides})


def as_published_v3(config):
    config = as_published_deepseek(config)
    config.pop("rope_interleave")
    config.update(scoring_func="sigmoid", topk_method="noaux_tc", num_nextn_predict_layers=1)
    return config


def as_published_kimi(config):
    config = as_published_v3(config)
    config.update(model_type="kimi_k2", quantization_config=dict(
        activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128]))
    return config


def make_latent():
    layers = both("model.layers.{}.self_attn", 2)
    make("deepseek_v3", transformers.DeepseekV3ForCausalLM, latent(), layers, tokens(301), 301,
         spelling=as_published_v3)
    # fp8 in blocks of 128, of which most weights have a whole one and a part.
    make("kimi_k2", transformers.DeepseekV3ForCausalLM,
         latent(hidden_size=136, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=6,
                first_k_dense_replace=1, rope_parameters=dict(
                    rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=1, beta_slow=1,
                    mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=64)),
         both("model.layers.{}.self_attn", 1), tokens(311), 311, spelling=as_published_kimi,
         fp8=True)


def main():
    make_encoders()
    make_encoder_decoders()
    make_decoders()
    make_latent()


if __name__ == "__main__":
    main()
