"""Small models of several architectures with random weights, none of them 0 or 1."""

import torch

TINY = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "vit": {
        **{"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
        **{"image_size": 32, "patch_size": 8},
    },
    "opt": {
        **{"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 64},
        **{"word_embed_proj_dim": 32},
    },
    "llama": {
        **{"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
        **{"num_key_value_heads": 1},
    },
    "mixtral": {
        **{"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
        **{"num_key_value_heads": 1, "num_local_experts": 2},
    },
    "t5": {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 64},
    "gptj": {"n_layer": 2, "n_embd": 32, "n_head": 2, "rotary_dim": 8},
}


def tiny(kind, auto="AutoModel", dtype=torch.float64, **overrides):
    """A model of type ``kind`` in eval mode, and the arguments of a forward pass."""
    import transformers

    from pytest_deaddir.source.load import quiet
    from pytest_deaddir.source.synthetic import synthetic_inputs

    vocabulary = {} if kind == "vit" else {"vocab_size": 64}
    with quiet():
        config = transformers.AutoConfig.for_model(kind, **{**TINY[kind], **vocabulary, **overrides})
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = getattr(transformers, auto).from_config(config)
            for parameter in module.parameters():
                if parameter.dim() == 1:  # scales and shifts
                    parameter.data = torch.rand_like(parameter) + 0.2
    arguments = synthetic_inputs(module, seed=0)
    return module.eval().to(dtype), {k: v.to(dtype) if v.is_floating_point() else v for k, v in arguments.items()}
