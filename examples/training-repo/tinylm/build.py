"""The three ways in which a repository builds its model, each as pytest-deaddir takes it: a function without arguments."""

import torch

from tinylm.model import TinyLM


def fresh():
    """Plain torch: the module, and the arguments of its forward pass, since nobody else knows what it takes."""
    torch.manual_seed(0)
    return TinyLM(), {"input_ids": torch.randint(256, (8, 64))}


def with_transformers():
    """A class of transformers with a config of one's own: its inputs are made up from the config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=256,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def with_timm():
    """A model of timm with arguments of one's own: its inputs are made up as well."""
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=96, num_heads=4)
