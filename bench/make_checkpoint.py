#!/usr/bin/env python3
"""Makes a checkpoint with the attention shapes of a large model and tiny MLPs, for measuring
bda_convert. Weights are normal, standard deviation 0.02, in bf16; numpy is all it needs.

    python3 bench/make_checkpoint.py deepseek_v2_lite DIR
    python3 bench/make_checkpoint.py deepseek_v3 DIR
"""

import argparse
import json
import pathlib

import numpy as np

COMMON = {
    "attention_bias": False, "first_k_dense_replace": 1000, "hidden_act": "silu",
    "intermediate_size": 64, "kv_lora_rank": 512, "max_position_embeddings": 4096,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 256,
}
SHAPES = {
    "deepseek_v2_lite": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_hidden_layers": 27, "q_lora_rank": None,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128,
        "num_key_value_heads": 128, "num_hidden_layers": 2, "q_lora_rank": 1536,
    },
}


def layer_tensors(config, layer):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    query, rank = heads * (nope + rope), config["q_lora_rank"]
    body = f"model.layers.{layer}."
    attention = body + "self_attn."
    shapes = {
        attention + "kv_a_proj_with_mqa.weight": (latent + rope, hidden),
        attention + "kv_a_layernorm.weight": (latent,),
        attention + "kv_b_proj.weight": (heads * (nope + value), latent),
        attention + "o_proj.weight": (hidden, heads * value),
        body + "mlp.gate_proj.weight": (config["intermediate_size"], hidden),
        body + "mlp.up_proj.weight": (config["intermediate_size"], hidden),
        body + "mlp.down_proj.weight": (hidden, config["intermediate_size"]),
        body + "input_layernorm.weight": (hidden,),
        body + "post_attention_layernorm.weight": (hidden,),
    }
    if rank:
        shapes[attention + "q_a_proj.weight"] = (rank, hidden)
        shapes[attention + "q_a_layernorm.weight"] = (rank,)
        shapes[attention + "q_b_proj.weight"] = (query, rank)
    else:
        shapes[attention + "q_proj.weight"] = (query, hidden)
    return shapes


def draw(random, name, shape):
    """bf16 by truncation, as raw 16-bit words."""
    values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    if "norm" in name:
        values += 1
    return (values.view(np.uint32) >> 16).astype("<u2")


def write_shard(path, shapes, random):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(draw(random, name, shape).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    config = {**COMMON, **SHAPES[args.shape]}
    args.folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    parts = [layer_tensors(config, layer) for layer in range(config["num_hidden_layers"])]
    parts.append({"model.embed_tokens.weight": (config["vocab_size"], config["hidden_size"]),
                  "model.norm.weight": (config["hidden_size"],)})
    weight_map = {}
    for i, shapes in enumerate(parts):
        name = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        write_shard(args.folder / name, shapes, random)
        weight_map.update(dict.fromkeys(shapes, name))
    (args.folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))
    (args.folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
