"""Every architecture of transformers, small enough to build and run on a laptop.

The rules are about *names and values* of config fields, never about a model: all widths of a config tree
(a model and its towers) are divided by one power of two, so the equalities between them that architectures
rely on (hidden = heads x head_dim, projector in = vision out, ...) survive. Then the config is rebuilt by its
own class from nothing but the changed fields, so whatever the class derives (layer_types, head_dim, stage
names) is derived again. ``EXCEPTIONS`` holds what no rule about names can know, with the reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

LAYERS = 3
VOCAB = 256
TARGET_WIDTH = 128  # the widest hidden size aimed at ...
LARGEST_WIDTH = 512  # ... and the widest tolerated where heads or rotary sections must stay whole
IMAGE = 256
POSITIONS = 2048
EXPERTS = 8


def _any_of(*patterns: str) -> re.Pattern[str]:
    """A search for any of the whitespace-separated regular expressions."""
    return re.compile("|".join(" ".join(patterns).split()))


_TOKEN = _any_of("token_(id|ids|index)$ token$ (bos|eos|pad|sep|start|end|patch|delay|newline)_id$")
_TOKEN_KEEP = _any_of("per_ num_ max_ expert samples ^cls_token$ merge size")
_VOCAB = _any_of("(^|_)vocab_size(_|$) ^vocab_offset$ unpadded_vocab")
_VOCAB_KEEP = _any_of("^(type|task_type|additional|char|num_speakers) entity encoder_hash")
_EXPERTS = _any_of("(num_experts|n_routed_experts|num_local_experts|zero_expert_num)$")
_NOT_DEPTH = "adapter|per_|predictor|kv_shared|nextn|feat_extract|conv|lstm|residual|shared|global"
_LAYER_COUNT = _any_of(
    "^(num_layers|n_layers?|layers|depth|vision_depth|num_blocks|resampler_depth|num_layers_per_stack)$",
    rf"^(?!.*({_NOT_DEPTH})).*(hidden|encoder|decoder|attention|transformer|x|r|l|c)_layers$",
)
_STAGE_DEPTHS = _any_of("^(depths|block_sizes|num_blocks|stage_numb_of_layers|layers|n_attn_blocks|depth)$")
_INDICES = _any_of("ind(ex|ic)es$ idxs?$ _ids$ _layers?$ layer_indexes$ layers$")
_IMAGE = _any_of("^((img|input_image|pretrain_image|image)_size|image_height|image_width|resolution)$")
_POSITIONS = _any_of("max_position_embeddings$ ^(n_positions|n_ctx|max_seq_len|model_max_length|max_sequence_length)$")
_WIDTH = _any_of(
    "hidden ^d_(model|ff|kv|inner|head)$ dim(s|_.*)?$ _size(s|_.*)?$ channels?(_list)?$ _units$ width$",
    "_rank$ ^n_(embd|inner)$ ^(dff|num_filters|dim_ff|num_pos_feats|kv_channels|upsample_groups)$",
    "inplanes$ num_units",
)
# Sizes that are not widths: of vocabularies, images, windows and kernels, of the data itself, of memories.
_WIDTH_KEEP = _any_of(
    "vocab patch_size image_ img_ kernel window codebook_size chunk batch beam pool(?!er_(hidden|output))",
    "merge grid block_size context reduction num_channels input_channels audio_channels in_chans layers",
    "query_dim position stride spec_size frame mel crop feature_size$ (?<!adapter_)input_size",
    "keypoint_decoder",
    "model_in_dim input_feat dim_bbox (?<!upsample_)group cache stack depth feat_sizes feature_sizes",
    "state_dim",
    "act_dim max_ masked_unit model_parallel byte conv_size bucket step tubelet fold",
    "feature_projection_input",
    "segment hop roi sliding xpath label logit hidden_act noise sampling mask_input_channels type head_out",
    "^num_hidden mamba_d_state state_size num_codevectors _factor",
)
_HEADS = _any_of("^(num_attention_heads|n_heads?|num_heads|(en|de)coder_(num_)?attention_heads|attention_heads)$")
_MAIN_WIDTH = _any_of("^(hidden_sizes?|d_model|n_embd|embed_dim|emb_dim|dim|hidden_dim|embed_dims|width)$")

Fields = dict[str, Any]


def model_types() -> list[str]:
    """Every config type that transformers knows."""
    return sorted(CONFIG_MAPPING.keys())


def shrunk_config(model_type: str) -> PretrainedConfig:
    """The smallest config of ``model_type`` that keeps the architecture's shape."""
    config_class = CONFIG_MAPPING[model_type]
    config = _overridden(config_class(), DEFAULTS.get(model_type, {}))
    shrunk = _Shrink(config, FACTORS.get(model_type)).rebuilt(config)
    for part in _tree(shrunk):
        _complete_heads(part)
    return _overridden(shrunk, EXCEPTIONS.get(model_type, {}))


def build(model_type: str, device: str = "cpu", seed: int = 0) -> nn.Module:
    """A randomly initialised model of ``model_type``, in evaluation mode; the caller bounds the time."""
    config = shrunk_config(model_type)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(model_type, config)._from_config(config)
    return model.to(device).eval()


def model_class(model_type: str, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class behind AutoModel, else behind another Auto class, else the config's own model class."""
    borrowed: list[type[PreTrainedModel]] = []  # registered for the type, but of another family's config
    for mapping in [modeling_auto.MODEL_MAPPING_NAMES, *_other_mappings()]:
        names = mapping.get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            found = getattr(_modeling_module(type(config)), name, None)
            if found is None:
                found = getattr(importlib.import_module("transformers"), name, None)
            if not inspect.isclass(found) or not issubclass(found, PreTrainedModel):
                continue
            if found.config_class is type(config):
                return found
            borrowed.append(found)
    candidates = [
        value
        for module in _sibling_modules(type(config))
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == module.__name__
        and getattr(value, "config_class", None) is type(config)
        and not value.__name__.endswith("PreTrainedModel")
    ]
    if not candidates and borrowed:
        return borrowed[0]
    if not candidates:
        raise LookupError(f"no model class takes {type(config).__name__}")
    return min(candidates, key=lambda c: ("For" in c.__name__, not c.__name__.endswith("Model"), len(c.__name__)))


@cache
def _other_mappings() -> list[Mapping[str, Any]]:
    names = sorted(n for n in dir(modeling_auto) if n.startswith("MODEL_FOR_") and n.endswith("_NAMES"))
    first = ["MODEL_FOR_BACKBONE_MAPPING_NAMES", "MODEL_FOR_PRETRAINING_MAPPING_NAMES"]
    return [getattr(modeling_auto, n) for n in first + [n for n in names if n not in first]]


def _modeling_module(config_class: type[PretrainedConfig]) -> Any | None:
    package, _, name = config_class.__module__.rpartition(".")
    try:
        return importlib.import_module(f"{package}.{name.replace('configuration', 'modeling', 1)}")
    except ImportError:
        return None


def _sibling_modules(config_class: type[PretrainedConfig]) -> Iterator[Any]:
    """All modelling modules of the config's package (BLIP keeps its text model in a second one)."""
    package = importlib.import_module(config_class.__module__.rpartition(".")[0])
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("modeling_"):
            yield importlib.import_module(f"{package.__name__}.{found.name}")


class _Shrink:
    """One config tree's factor and token map: both must be the same for the model and all of its towers."""

    def __init__(self, root: PretrainedConfig, factor: int | None = None) -> None:
        tree = list(_tree(root))
        self.factor = factor or _factor(tree)
        self.tokens = _token_map(tree)

    def rebuilt(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config's class called with what differs from its defaults; derived fields are left to it."""
        given = _given(type(config))
        default = _default_fields(type(config))  # type: ignore[arg-type]
        values = _values(config)
        layers = _layer_counts(values)
        count = _new_layer_count(values, layers)
        changed: Fields = {}
        fixed: Fields = {}  # derived lists, for classes that derive them at a fixed length
        for name, value in values.items():
            if name not in given:  # set by __post_init__: derived
                continue
            if isinstance(value, PretrainedConfig):
                changed[name] = self.rebuilt(value)
                continue
            derived = name in default and default[name] == value and _plain(given[name]) != _plain(value)
            if derived and isinstance(value, list | tuple) and len(value) in layers:
                fixed[name] = value[:count]
            if isinstance(value, Mapping) and isinstance(next(iter(value.values()), None), PretrainedConfig):
                changed[name] = {key: self.rebuilt(sub) for key, sub in value.items()}
            elif derived and not _SECTIONED.search(name):
                continue
            else:
                new = self._value(name, value, values, layers, count)
                if _plain(new) != _plain(given[name]):
                    changed[name] = new
        self._keep_heads_whole(values, changed)
        changed |= _backbone_outputs(values, default, layers, count)
        try:
            return type(config)(**changed)
        except (ValueError, IndexError, StrictDataclassError):
            return type(config)(**changed, **fixed)

    def _value(self, name: str, value: Any, values: Fields, layers: set[int], count: int) -> Any:
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return value
        if _TOKEN.search(name) and not _TOKEN_KEEP.search(name):
            return _map_ints(lambda v: self.tokens.get(v, v), value)
        if isinstance(value, int):
            return self._int(name, value, values, count)
        if isinstance(value, list | tuple):
            return self._list(name, value, layers, count)
        if isinstance(value, dict):
            return self._dict(name, value)
        return value

    def _int(self, name: str, value: int, values: Fields, count: int) -> int:
        if _VOCAB.search(name) and not _VOCAB_KEEP.search(name):
            return min(value, VOCAB)
        if _EXPERTS.search(name):
            groups = values.get("n_group") or values.get("num_expert_group") or 1
            chosen = [
                v for k, v in values.items() if "per_tok" in k or "topk" in k or k == "moe_k" if isinstance(v, int)
            ]
            return min(value, max([EXPERTS, 2 * groups] + [v for v in chosen if v < value]))
        if name == "first_k_dense_replace":
            return min(value, 1)
        if _LAYER_COUNT.search(name):
            return min(value, count)
        if _IMAGE.search(name):
            return _image_size(value, values.get("patch_size"))
        if _POSITIONS.search(name):
            return min(value, POSITIONS)
        if name.endswith("_layer") and value >= count and value < max(_layer_counts(values), default=0) + 1:
            return count - 1
        return self._width(value) if _is_width(name) else value

    def _list(self, name: str, value: list[Any] | tuple[Any, ...], layers: set[int], count: int) -> Any:
        kind = type(value)
        if name.endswith("section"):
            return kind(self._sections(value))
        if _IMAGE.search(name):
            halvings = next((n for n in range(9) if max(value) >> n <= IMAGE), 0)
            whole = all(isinstance(v, int) and v % (16 << halvings) == 0 for v in value)
            return kind(v >> halvings for v in value) if whole else value
        ints = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if _STAGE_DEPTHS.search(name) and ints and len(value) not in layers:
            return kind(min(v, LAYERS) for v in value)
        if len(value) in layers and len(value) > count:
            return kind(value[:count])
        if ints and _INDICES.search(name) and any(v >= count for v in value) and max(value) <= max(layers, default=0):
            return kind(_spread(len(value), count, ordered=list(value) == sorted(value)))
        return _map_ints(self._width, value) if _is_width(name) else value

    def _dict(self, name: str, value: dict[Any, Any]) -> dict[Any, Any]:
        def shrink(key: str, item: Any) -> Any:
            if isinstance(item, dict):
                return {k: shrink(k, v) for k, v in item.items()}
            if str(key).endswith("section"):
                return self._sections(item)
            if isinstance(item, list) and "rope" in name and key.endswith("_factor"):
                return item[: max(1, len(item) // self.factor)]
            return item

        return {key: shrink(key, item) for key, item in value.items()}

    def _sections(self, parts: Sequence[int]) -> list[int]:
        """Rotary sections, whose sum must stay half of the rotated width: the last one takes up the rest."""
        first = [max(1, part // self.factor) for part in parts[:-1]]
        return [*first, max(1, sum(parts) // self.factor - sum(first))]

    def _width(self, value: int) -> int:
        if value < 16:
            return value
        return value // self.factor if value % self.factor == 0 else max(4, 4 * round(value / self.factor / 4))

    def _keep_heads_whole(self, values: Fields, changed: Fields) -> None:
        """Fewer heads where the divided width is no longer a multiple of them."""
        for name, heads in values.items():
            if not _HEADS.search(name) or not isinstance(heads, int) or heads < 2:
                continue
            widths = [w for w in _MAIN_ORDER if isinstance(values.get(w), int)]
            if not widths:
                continue
            old: int = values[widths[0]]
            new: int = changed.get(widths[0], old)
            if old % heads or (values.get("head_dim") not in (None, old // heads)):
                continue
            whole = [h for h in range(1, heads + 1) if heads % h == 0 and new % h == 0]
            best = max((h for h in whole if new // h % 8 == 0), default=0)
            if best < min(heads, 2):
                best = max((h for h in whole if new // h % 4 == 0), default=1)
            if best == heads:
                continue
            changed[name] = best
            if isinstance(values.get("head_dim"), int):
                changed["head_dim"] = new // best
            for kv in ("num_key_value_heads", "num_kv_heads"):
                old_kv = values.get(kv)
                if isinstance(old_kv, int):
                    changed[kv] = max(h for h in range(1, old_kv + 1) if old_kv % h == 0 and best % h == 0)


_SECTIONED = re.compile(r"^rope_(parameters|scaling)$")
_MAIN_ORDER = ("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "dim", "hidden_dim")


def _is_width(name: str) -> bool:
    return bool(_WIDTH.search(name)) and not _WIDTH_KEEP.search(name)


def _values(config: PretrainedConfig) -> Fields:
    return {name: value for name, value in vars(config).items() if name not in _COMMON}


_COMMON = {f.name for f in dataclasses.fields(PretrainedConfig)} | {"transformers_version"}


@cache
def _default_fields(config_class: Any) -> Fields:
    try:
        return _values(config_class())
    except Exception:  # a class that cannot be called bare has no derived defaults to compare with
        return {}


def _given(config_class: type[PretrainedConfig]) -> Fields:
    """What the class itself states for each field, before anything is derived."""
    stated = {}
    for item in dataclasses.fields(config_class):
        made = item.default_factory() if callable(item.default_factory) else None
        stated[item.name] = made if item.default is dataclasses.MISSING else item.default
    return stated


def _plain(value: Any) -> Any:
    """Lists and tuples alike: classes state one and store the other."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _tree(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in vars(config).values():
        for item in value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, PretrainedConfig):
                yield from _tree(item)


def _factor(tree: list[PretrainedConfig]) -> int:
    """The largest power of two that brings the widest hidden size to the target and keeps head_dim >= 8."""
    widest, limit = 1, 1 << 20
    for config in tree:
        values = _values(config)
        for name, value in values.items():
            if _MAIN_WIDTH.search(name):
                for width in value if isinstance(value, list | tuple) else [value]:
                    widest = max(widest, width if isinstance(width, int) else 1)
            if name.endswith("head_dim") and isinstance(value, int) and value >= 8:
                limit = min(limit, max(1, value // 8))
            if isinstance(value, dict):
                limit = min([limit, *_sections(value)])
        heads = next((v for k, v in values.items() if _HEADS.search(k)), None)
        width = next((values[w] for w in _MAIN_ORDER if isinstance(values.get(w), int)), None)
        if isinstance(heads, int) and heads and width and not values.get("head_dim"):
            limit = min(limit, max(1, width // heads // 8))
    factor = 1
    while (widest / factor > TARGET_WIDTH and factor * 2 <= limit) or widest / factor > LARGEST_WIDTH:
        factor *= 2
    return factor


def _sections(parameters: Mapping[Any, Any]) -> Iterator[int]:
    """How far rotary sections can be divided: the power of two in their common divisor."""
    for key, value in parameters.items():
        if isinstance(value, dict):
            yield from _sections(value)
        elif str(key).endswith("section") and isinstance(value, list | tuple):
            for part in value:
                yield part & -part if isinstance(part, int) and part else 1 << 20


def _token_map(tree: list[PretrainedConfig]) -> dict[int, int]:
    """Special tokens at or above the small vocabulary, moved below it: distinct, and alike in all towers."""
    seen: set[int] = set()
    for config in tree:
        for name, value in _values(config).items():
            if _TOKEN.search(name) and not _TOKEN_KEEP.search(name):
                seen.update(v for v in _flat(value) if isinstance(v, int) and not isinstance(v, bool))
    free = iter(sorted(set(range(VOCAB)) - seen, reverse=True))
    return {token: next(free) for token in sorted(t for t in seen if t >= VOCAB)}


def _layer_counts(values: Fields) -> set[int]:
    return {v for k, v in values.items() if _LAYER_COUNT.search(k) and isinstance(v, int) and v > 2}


def _new_layer_count(values: Fields, layers: set[int]) -> int:
    """Three, or as many as it takes to meet every kind of layer and every layer index listed."""
    count = LAYERS
    for name, value in values.items():
        if not isinstance(value, list | tuple):
            continue
        if len(value) in layers and value and all(isinstance(v, str) for v in value):
            count = max(count, 1 + max(list(value).index(kind) for kind in set(value)))
        elif _INDICES.search(name) and all(isinstance(v, int) for v in value) and len(value) <= 6:
            count = max(count, len(value))
    return min(count, 8)


def _spread(length: int, count: int, ordered: bool) -> list[int]:
    """``length`` layer indices spread evenly over ``count`` layers, the last one included."""
    chosen = sorted({max(0, round((k + 1) * count / length) - 1) for k in range(min(length, count))})
    chosen = chosen if length > count else [max(0, round((k + 1) * count / length) - 1) for k in range(length)]
    return chosen if ordered else chosen[::-1]


def _backbone_outputs(values: Fields, default: Fields, layers: set[int], count: int) -> Fields:
    """Which stages a backbone returns, where a model asked for others than the backbone's default."""
    chosen, stages = values.get("_out_indices"), values.get("stage_names")
    if not chosen or not stages or chosen == default.get("_out_indices"):
        return {}
    if len(stages) - 1 in layers and len(stages) - 1 > count:
        return {"out_indices": [i + 1 for i in _spread(len(chosen), count, ordered=True)]}
    return {"out_indices": list(chosen)}


def _image_size(value: int, patch: Any) -> int:
    patch = patch if isinstance(patch, int) and patch > 0 else 1
    while value > IMAGE and value % (2 * patch) == 0:
        value //= 2
    return value


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _map_ints(change: Callable[[int], int], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_map_ints(change, v) for v in value)
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _complete_heads(config: PretrainedConfig) -> None:
    """Some classes leave to checkpoints what follows from the width: give it the usual value."""
    values = _values(config)
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    for name, usual in {"head_dim": width // heads, "num_key_value_heads": heads}.items():
        if name in values and values[name] is None:
            setattr(config, name, usual)


def _overridden(config: PretrainedConfig, changes: Fields) -> PretrainedConfig:
    """The config with ``changes`` set; a dict of changes for a sub-config's name reaches into it."""
    for name, value in changes.items():
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig) and isinstance(value, dict):
            _overridden(inner, value)
        elif isinstance(inner, dict) and isinstance(value, dict):
            inner.update(value)
        else:
            setattr(config, name, value)
    return config


def _each(names: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The same for several model types; nothing changes ``value``."""
    return dict.fromkeys(names, value)


# Rotary sections that modelling code assumes where the config states none: stated, they are shrunk along.
_SECTIONS = {"rope_parameters": {"mrope_section": [16, 24, 24]}}
_FOUR_SECTIONS = {"rope_parameters": {"mrope_section": [16, 16, 16, 16]}}
_ERNIE_SECTIONS = {"rope_parameters": {"mrope_section": [22, 22, 20]}}
_GLM_MOE = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_parameters": {"mrope_section": [8, 12, 12]},
}
_EXPERTS_OPEN = {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 512}

# What a config class leaves open and its model needs: fields that every published checkpoint sets.
DEFAULTS: dict[str, Fields] = {
    **_each(("autoformer", "informer", "time_series_transformer"), {"prediction_length": 24}),
    **_each(("qwen2_vl_text", "qwen2_5_vl_text", "paddleocr_vl_text", "qwen2_5_omni_text"), _SECTIONS),
    **_each(("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen2_5_omni_thinker"), {"text_config": _SECTIONS}),
    "colqwen2": {"vlm_config": {"text_config": _SECTIONS}},
    "qwen2_5_omni_talker": _SECTIONS | {"text_config": _SECTIONS},
    **_each(("glm4v_text", "glm_image_text"), _SECTIONS),
    **_each(("glm4v", "glm46v", "glm_image", "glmga"), {"text_config": _SECTIONS}),
    "glm_ocr_text": {"rope_parameters": {"mrope_section": [8, 12, 12]}},
    "glm_ocr": {"text_config": {"rope_parameters": {"mrope_section": [8, 12, 12]}}},
    "glm4v_moe_text": _GLM_MOE,
    "glm4v_moe": {"text_config": _GLM_MOE},
    "hunyuan_vl_text": _FOUR_SECTIONS,
    "hunyuan_vl": {"text_config": _FOUR_SECTIONS},
    "ernie4_5_vl_moe_text": _ERNIE_SECTIONS,
    "ernie4_5_vl_moe": {"text_config": _ERNIE_SECTIONS},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    },
    "diffusion_gemma": {"text_config": _EXPERTS_OPEN},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "emu3": {"vocabulary_map": {"<image>": 4, "<|extra_200|>": 5}},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},  # fixed at 24 layers otherwise
    "granite4_vision": {"deepstack_layer_map": [(0, 0)]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [2, 1]}},
    "seggpt": {"merge_index": 0},
    "step3p5": {"sliding_window": 512},
    "step3p7": {"text_config": {"sliding_window": 512}},
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},  # 14 do not divide the stated width
    "diffusion_gemma_text": _EXPERTS_OPEN,
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "deepseek_v2": {"num_experts_per_tok": 2},
    **_each(("hunyuan_v1_moe",), {"moe_topk": 1}),
    **_each(("blip-2", "instructblip", "instructblipvideo"), {"image_token_index": 255, "video_token_index": 255}),
}

# Factors that cannot be had from widths: these derive widths from each other by rounding or by fixed groups.
FACTORS: dict[str, int] = {
    **_each(("efficientnet", "align", "align_vision_model"), 1),  # rounds channels to multiples of 8
    **_each(("clvp", "clvp_encoder", "clvp_decoder"), 1),  # rotary width is 32 whatever the head
    "glm4v_moe": 8,  # half of a head rotates, in three sections
    "glm4v_moe_text": 8,
    "neomme": 4,  # a quarter of a head rotates, in two axes of pairs
    "nemotron_h": 16,
    "nemotron_h_omni": 16,  # grouped matrix products want rows of 16 bytes
    "sam2": 1,  # a stage width is stated in the tower and derived in the model
    "vitmatte": 1,
    "regnet": 2,  # squeezes a quarter of the stem
    "chameleon": 4,  # GroupNorm(32) on base_channels = 128
    "bros": 4,  # hidden_size / 4 / 8 sinusoids, in pairs
    **_each(("janus", "emu3", "janus_vqgan", "emu3_vqgan"), 4),  # GroupNorm(32) on base_channels = 128
}

# What rules about names cannot know, by model type: fields to set after the shrink, and why.
_OCR = {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts_per_tok": 2}
_INDEXER = {
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
}
EXCEPTIONS: dict[str, Fields] = {
    "bit": {"num_groups": 2},  # GroupNorm groups, which must divide every width
    "bamba": {"attn_layer_indices": [1]},  # by default no layer of so few attends
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},  # 15 of 35 layers share a cache
    "blt": {"use_cache": False},  # its cache asks the config for a layer count that only sub-configs have
    "shieldgemma2": {"yes_token_index": 1, "no_token_index": 2},  # rows of the logits that it reads
    **_each(("t5gemma2_text", "t5gemma2_decoder"), {"dropout_rate": 0.0}),  # set by the whole model
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "pix2struct_text_model": {"initializer_range": 0.02},  # likewise
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},  # likewise
    "deepseek_ocr2_text": _OCR,
    "deepseek_ocr2": {"text_config": _OCR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "moonshine_streaming": {"num_key_value_heads": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 64},
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": _INDEXER},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "vitmatte": {"fusion_hidden_sizes": [256, 128, 64, 32]},  # a list is concatenated to it
    "sam2_hiera_det_model": {"image_size": [256, 256]},  # a list that the class fills in
    "sam2_vision_model": {"backbone_config": {"image_size": [256, 256]}},
    "depth_pro": {"intermediate_hook_ids": [2, 1]},  # layers of a tower, listed in the model
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1, 2]},
    "regnet": {"groups_width": 16},
    "rf_detr": {
        "num_queries": 20,
        "image_size": 224,
        "backbone_config": {"image_size": 224},
    },  # whole windows of patches
    "sam3_tracker": {"vision_config": {"backbone_feature_sizes": [[72, 72], [36, 36], [18, 18]]}},
    "pp_doclayout_v2": {"class_thresholds": [0.5] * 25, "class_order": list(range(25))},
    "janus_vqgan": {"num_patches": 14},  # per side: follows from the image size
}
