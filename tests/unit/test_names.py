"""Sites from the tensor names that real families use."""

import pytest

from pytest_deaddir.discovery.names import natural_key, sites_from_names


def gpt2(layers=12, d=8, prefix="transformer."):
    shapes = {f"{prefix}wte.weight": (50, d), f"{prefix}ln_f.weight": (d,), f"{prefix}ln_f.bias": (d,)}
    for i in range(layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{prefix}h.{i}.{norm}.weight": (d,), f"{prefix}h.{i}.{norm}.bias": (d,)}
        shapes |= {f"{prefix}h.{i}.attn.c_attn.weight": (d, 3 * d), f"{prefix}h.{i}.attn.c_attn.bias": (3 * d,)}
    return shapes


def llama(layers=2, d=8):
    shapes = {"model.embed_tokens.weight": (50, d), "model.norm.weight": (d,), "lm_head.weight": (50, d)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{n}.weight": (d,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"model.layers.{i}.self_attn.{n}.weight": (4,) for n in ("q_norm", "k_norm")}
    return shapes


def bert(layers=2, d=8, scale="weight", shift="bias"):
    shapes = {}
    names = ["embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    names += [f"encoder.layer.{i}.{n}.LayerNorm" for i in range(layers) for n in ("attention.output", "output")]
    for name in names:
        shapes |= {f"{name}.{scale}": (d,), f"{name}.{shift}": (d,)}
    return shapes | {"cls.predictions.bias": (50,), "pooler.dense.bias": (d,)}


def roles(sites):
    return {site.path: site.role for site in sites}


def test_gpt2_has_two_norms_a_block_and_a_final_one():
    sites = sites_from_names(gpt2(), {"n_embd": 8})
    assert len(sites) == 25
    assert {site.kind for site in sites} == {"layernorm"}
    assert [path for path, role in roles(sites).items() if role == "final"] == ["transformer.ln_f"]
    blocks = [site.path for site in sites if site.role == "block"]
    assert blocks[0] == "transformer.h.0.ln_1"
    assert blocks[-1] == "transformer.h.11.ln_2"  # natural order: 9, 10, 11
    assert {site.stack for site in sites if site.role == "block"} == {"transformer.h"}


def test_a_linear_bias_is_no_norm():
    assert not any("c_attn" in site.path for site in sites_from_names(gpt2(), {}))


def test_llama_is_rmsnorm_by_its_config_and_undecided_without():
    config = {"hidden_size": 8, "rms_norm_eps": 1e-5}
    sites = sites_from_names(llama(), config)
    assert {site.kind for site in sites} == {"rmsnorm"}
    assert roles(sites)["model.norm"] == "final"
    assert roles(sites)["model.layers.0.self_attn.q_norm"] == "qk"
    assert {site.kind for site in sites_from_names(llama(), {})} == {"undecided"}


def test_layer_norm_epsilon_settles_nothing():
    """T5 calls the eps of its RMSNorms layer_norm_epsilon."""
    assert {site.kind for site in sites_from_names(llama(), {"layer_norm_epsilon": 1e-6})} == {"undecided"}


@pytest.mark.parametrize(("scale", "shift"), [("weight", "bias"), ("gamma", "beta")])
def test_bert_ends_in_the_last_block(scale, shift):
    sites = sites_from_names(bert(scale=scale, shift=shift), {"hidden_size": 8})
    assert [p for p, role in roles(sites).items() if role == "final"] == ["encoder.layer.1.output.LayerNorm"]
    assert roles(sites)["embeddings.LayerNorm"] == "embedding"
    assert all(site.beta == f"{site.path}.{shift}" for site in sites)


def test_a_shift_without_its_scale_is_a_site_that_lacks_gamma():
    shapes = gpt2(2)
    del shapes["transformer.ln_f.weight"]
    [site] = [site for site in sites_from_names(shapes, {}) if site.gamma is None]
    assert (site.path, site.beta, site.kind) == ("transformer.ln_f", "transformer.ln_f.bias", "layernorm")


def test_batch_norms_and_scalars_are_left_out():
    shapes = {
        "bn.weight": (8,),
        "bn.bias": (8,),
        "bn.running_mean": (8,),
        "bn.running_var": (8,),
        "act.weight": (1,),
        "norm.weight": (8,),
    }
    assert [site.path for site in sites_from_names(shapes, {})] == ["norm"]


def test_natural_order():
    assert sorted(["h.10.x", "h.9.x", "b"], key=natural_key) == ["b", "h.9.x", "h.10.x"]
