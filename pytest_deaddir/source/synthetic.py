"""Inputs that make a model run, derived from its forward's signature and its config alone.

Discovery needs one small forward pass of a model it knows nothing about. A forward says by its argument names
what it takes, the config says how large those things are, and the module's own first layers settle what the
config leaves open (channels, layouts). One builder per argument name, none per model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_deaddir.errors import InputsError
from pytest_deaddir.source.offload import place_of

IMAGE_SIZE = 224  # where no config states one (fully convolutional models take any)
FRAMES = 8
GRID = 4  # merged patches per side of a packed image


def synthetic_inputs(module: nn.Module, *, batch: int = 2, length: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Keyword arguments for one forward pass of ``module``, random but reproducible.

    Raises :class:`InputsError`, which names the arguments that nothing is known of and says how to pass them.
    """
    request = _Request(module, batch, length, torch.Generator().manual_seed(seed))
    made = {name: _built(name, request) for name in _wanted(request)}
    inputs = {name: value for name, value in made.items() if value is not None}
    if missing := [name for name in made if name not in inputs]:
        raise InputsError(
            f"inputs for {type(module).__name__} cannot be made up: neither its config nor its layers tell what "
            f"{', '.join(missing)} should be; pass the inputs: a factory (package.module:factory) that returns "
            f"(module, inputs), with inputs = {{{', '.join(f'{name!r}: …' for name in made)}}}"
        )
    place = place_of(module) if next(module.parameters(), None) is not None else (None, None)
    return {name: _placed(value, *place) for name, value in inputs.items()}


def _built(name: str, request: _Request) -> Any:
    """What the argument's builder makes; None where there is none, or the config has not what it asks for."""
    try:
        return BUILDERS[name](request)
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, ArithmeticError, RuntimeError):
        return None


def _placed(value: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, list | tuple):
        return type(value)(_placed(v, device, dtype) for v in value)
    return value


@dataclass(frozen=True)
class _Request:
    """What is asked for, and the questions that builders put to the module and its config."""

    module: nn.Module
    batch: int
    length: int
    generator: torch.Generator

    @property
    def config(self) -> Any:
        return getattr(self.module, "config", None)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.module.forward).parameters)

    @property
    def main(self) -> list[str]:
        main = getattr(self.module, "main_input_name", None) or "input_ids"
        return [main] if isinstance(main, str) else list(main)

    def find(self, *names: str, default: Any = None, near: str = "") -> Any:
        """The first of ``names`` set in the config or a sub-config; paths with ``near`` come first."""
        configs = list(_config_tree(self.config))
        if near:
            configs.sort(key=lambda pair: near not in pair[0])
        for _, config in configs:
            for name in names:
                value = getattr(config, name, None)
                if value is not None and not (isinstance(value, list | tuple | dict) and not value):
                    return value
        return default

    def number(self, *names: str, default: int, near: str = "") -> int:
        value = self.find(*names, default=default, near=near)
        while isinstance(value, list | tuple):
            value = value[0]
        return int(value) if isinstance(value, int | float) else default

    def first(self, kind: type[nn.Module] | tuple[type[nn.Module], ...], under: str = "") -> Any:
        """The first registered module of ``kind``."""
        return next((m for n, m in self.module.named_modules() if isinstance(m, kind) and under in n), None)

    @property
    def entry(self) -> nn.Module | None:
        """The first registered leaf with parameters, which is mostly what the main input meets first."""
        return next((m for m in self.module.modules() if not list(m.children()) and list(m.parameters())), None)

    def entry_width(self) -> int:
        """Features that the first layer takes along the last axis; 0 where it does not say."""
        entry = self.entry
        if isinstance(entry, nn.Linear):
            return entry.in_features
        return entry.normalized_shape[-1] if isinstance(entry, nn.LayerNorm) else 0

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


def _config_tree(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A config and its sub-configs, breadth first, with dotted paths."""
    queue = [(path, config)] if config is not None else []
    while queue:
        path, config = queue.pop(0)
        yield path, config
        for name, value in vars(config).items():
            if hasattr(value, "to_diff_dict"):
                queue.append((f"{path}.{name}", value))


def _wanted(request: _Request) -> list[str]:
    """The main input, what has no default, and the companions that models demand although they have one."""
    parameters = request.parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [n for n, p in named.items() if p.default is p.empty]
    main = [n for n in request.main if n in named]
    if str(getattr(request.config, "model_type", "")) in EMBEDDED:
        main = ["inputs_embeds"]
    if not main:
        main = [n for n in LIKELY_MAIN if n in named][: 0 if required else 1]
    wanted = [*main, *required]
    for name, companions in COMPANIONS.items():
        if name in named and companions(request, wanted):
            wanted.append(name)
    return list(dict.fromkeys(wanted))


# Decoders that refuse ids although their main input is called so: their tokens come from another model.
EMBEDDED = {"qwen3_omni_moe_talker_code_predictor"}

# Decoders that are models of their own and cannot run without an encoder's output.
CROSS_ATTENDING = {"t5gemma2_decoder"}

LIKELY_MAIN = (
    "input_ids",
    "pixel_values",
    "input_features",
    "input_values",
    "inputs_embeds",
    "hidden_states",
    "decoder_input_ids",
    "past_values",
    "pixel_values_videos",
    "flattened_patches",
)


# --- text ---------------------------------------------------------------------------------------------------


def _vocabulary(request: _Request, near: str = "text") -> int:
    """Rows of the input embedding, which is what ids are looked up in, else the config's vocabulary."""
    embedding: Any = getattr(request.module, "get_input_embeddings", None)
    try:
        weight = getattr(embedding(), "weight", None) if embedding else None
    except (AttributeError, NotImplementedError):
        weight = None
    stated = request.number("vocab_size", "text_encoder_vocab_size", default=0, near=near)
    rows = weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else 0
    sizes = [n for n in (stated, rows) if n > 1]
    return min(sizes) if sizes else 0


def _special_tokens(request: _Request) -> set[int]:
    """Ids with a meaning (image placeholders, padding, ends): random text must not contain them."""
    special: set[int] = set()
    for _, config in _config_tree(request.config):
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_index", "token_ids", "_token", "_id")):
                special.update(v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int))
    return special


def _ids(request: _Request, near: str = "text", length: int | None = None) -> Tensor | None:
    vocabulary = _vocabulary(request, near) or request.number("num_hash_buckets", default=0)
    if not vocabulary:
        return None
    special = _special_tokens(request)
    plain = torch.tensor([i for i in range(min(vocabulary, 4096)) if i not in special] or [0])
    longest = request.number("max_position_embeddings", "n_positions", default=length or request.length, near=near)
    size = min(length or request.length, longest) if longest > 0 else request.length
    shape = _codebook_shape(request, near, size)
    if near == "text" and "image_embeds_position_mask" in request.parameters:
        shape = (*shape[:-1], shape[-1] + request.number("latent_query_num", default=0))
    ids = plain[request.randint(0, len(plain), *shape)]
    if near == "text" and "pixel_values" in _required(request):
        ids = torch.cat([_placeholders(request), ids], dim=1)
    return ids


def _codebook_shape(request: _Request, near: str, size: int) -> tuple[int, ...]:
    """Audio language models read several codebooks a step, as a last axis or folded into the batch."""
    config = request.config
    if getattr(config, "codebook_vocab_size", None):  # text and codebooks side by side
        return request.batch, size, config.num_codebooks + 1
    if hasattr(config, "delay_pattern") or hasattr(config, "cross_hidden_size"):
        channels = request.find("num_channels", near="decoder")
        if channels and (near == "decoder" or not hasattr(config, "decoder_config")):
            return request.batch, size, int(channels)
    tables = [m for n, m in request.module.named_modules() if n.endswith("embed_tokens")]
    if near == "decoder":
        books = getattr(config, "num_codebooks", None) or getattr(
            getattr(config, "decoder", None), "num_codebooks", None
        )
    else:
        one_each = bool(tables) and isinstance(tables[0], nn.ModuleList)  # an embedding per codebook
        books = getattr(config, "num_codebooks", None) if one_each else None
    return (request.batch * books, size) if books else (request.batch, size)


def _placeholders(request: _Request) -> Tensor:
    """The image tokens that a model which must be given an image replaces by its features."""
    token = request.number("image_token_id", "image_token_index", "video_token_index", default=-1)
    count = request.number("num_query_tokens", default=0) * (
        request.number("num_frames", default=4) if "video" in str(getattr(request.config, "model_type", "")) else 1
    )
    return torch.full((request.batch, count if token >= 0 else 0), token)


def _ones(request: _Request) -> Tensor:
    return torch.ones(request.batch, request.length, dtype=torch.long)


def _bbox(request: _Request) -> Tensor:
    """Boxes with x0 <= x1, y0 <= y1: in the thousandths that layout models embed, or as fractions."""
    width = request.number("dim_bbox", default=4)
    corners = request.randint(0, 500, request.batch, request.length, width)
    corners[..., width // 2 :] += corners[..., : width // 2]
    fractions = width == 8 or getattr(request.config, "is_encoder_decoder", False)
    return corners.float() / 1000 if fractions else corners


def _width(request: _Request, near: str = "text") -> int:
    return request.number(
        "hidden_size",
        "d_model",
        "n_embd",
        "embed_dim",
        "dim",
        "hidden_dim",
        "encoder_hidden_size",
        default=0,
        near=near,
    )


def _hidden(request: _Request) -> Tensor | None:
    width = _width(request)
    return request.randn(request.batch, request.length, width) if width else None


# --- images -------------------------------------------------------------------------------------------------


def _stated_images(request: _Request) -> Tensor | None:
    """Images for a timm model, which has no config but states the size that it was designed for."""
    stated = getattr(request.module, "pretrained_cfg", None) or {}
    size = stated.get("input_size") if isinstance(stated, Mapping) else getattr(stated, "input_size", None)
    if not isinstance(size, tuple) or len(size) != 3:
        return None
    first = request.first(nn.Conv2d)
    sides = getattr(getattr(request.module, "patch_embed", None), "img_size", None) or size[1:]  # as built, if it says
    return request.randn(request.batch, first.in_channels if first is not None else size[0], *sides)


def _sides(request: _Request) -> tuple[int, int]:
    size = request.find("image_size", "img_size", "pretrain_image_size", "resolution", "max_img_size", near="vision")
    if isinstance(size, dict):
        size = (size.get("height", IMAGE_SIZE), size.get("width", IMAGE_SIZE))
    if isinstance(size, list | tuple):
        return (int(size[0]), int(size[-1]))
    ratios = request.find("scaled_images_ratios")
    if isinstance(size, int) and ratios:  # a pyramid whose smallest level must fill one encoder image
        size = round(size / min(ratios))
    return (size, size) if isinstance(size, int) and size > 3 else (IMAGE_SIZE, IMAGE_SIZE)


def _channels(request: _Request) -> int:
    return request.number("num_channels", "in_channels", "in_chans", "num_input_channels", default=3, near="vision")


PACKED = ("grid_thw", "image_grid_thw", "image_grid_hw", "target_sizes", "merge_sizes")


def _is_packed(request: _Request) -> bool:
    return any(n in request.parameters for n in PACKED)


def _merge(request: _Request) -> int:
    return max(1, request.number("spatial_merge_size", "merge_size", "merge_kernel_size", default=2, near="vision"))


def _grid(request: _Request) -> tuple[int, int]:
    """Patches per side of one packed image: whole merge blocks."""
    return GRID * _merge(request), GRID * _merge(request)


def _patch(request: _Request) -> int:
    return request.number("patch_size", "spatial_patch_size", default=14, near="vision")


def _packed_patches(request: _Request) -> Tensor:
    """All patches of all images in one row, in the layout that the model's own patch embedding takes."""
    rows, columns = _grid(request)
    count, channels, patch = request.batch * rows * columns, _channels(request), _patch(request)
    layout = PATCH_LAYOUTS.get(str(getattr(request.config, "model_type", "")), "flat")
    if layout == "flat":
        temporal = request.number("temporal_patch_size", "patch_temporal", default=1, near="vision")
        return request.randn(count, request.entry_width() or channels * temporal * patch * patch)
    shapes = {
        "image": (count, channels, patch, patch),
        "batched": (1, count, channels, patch, patch),
        "row": (1, channels, patch, patch * count),
        "merged": (request.batch * GRID * GRID, patch * _merge(request), patch * _merge(request), channels),
    }
    return request.randn(*shapes[layout])


# How packed patches are laid out where they are not flattened: nothing in signature or config tells.
PATCH_LAYOUTS = {
    "kimi_k25_vision": "image",
    "paddleocr_vl_vision": "batched",
    "minicpm_ocr_vision": "row",
    "minicpmv4_6_vision": "row",
    "minicpmv4_7_vision": "row",
    "inkling2_vision": "merged",
}


def _pixel_values(request: _Request) -> Tensor:
    if _is_packed(request) and "pixel_values" in _wanted(request) and not _is_dual(request, []):
        return _packed_patches(request)
    (height, width), channels = _sides(request), _channels(request)
    if "pixel_position_ids" in request.parameters:  # whole pooling windows
        side = GRID * request.number("pooling_kernel_size", default=1)
        return request.randn(request.batch, side * side, channels * _patch(request) ** 2)
    if "spatial_shapes" in request.parameters and request.find("num_patches"):
        count = request.number("num_patches", default=0, near="vision")
        return request.randn(request.batch, count, channels * _patch(request) ** 2)
    if (
        request.first(nn.Unfold) is None
        and request.entry_width()
        and _patch(request)
        and not hasattr(request.config, "text_config")
    ):
        count = (height // _patch(request)) * (width // _patch(request))  # patches come flattened
        count = request.number("num_position_embeddings", "num_patches", default=count)
        if not isinstance(request.entry, nn.LayerNorm):
            return request.randn(request.batch, count, request.entry_width())
    if "prompt_pixel_values" in request.parameters:  # prompt and image are stacked into the stated size
        return request.randn(request.batch, channels, height // 2, width)
    if "aspect_ratio_ids" in request.parameters:
        tiles = request.number("max_num_tiles", default=1)
        return request.randn(request.batch, 1, tiles, channels, height, width)
    if any(hasattr(request.config, n) for n in ("keypoint_detector_config", "coarse_matching_threshold")):
        return request.randn(request.batch, 2, channels, height, width)
    if "image_attention_mask" in request.parameters:
        return request.randn(request.batch, 1, channels, height, width)
    frames = request.number("num_frames", "frames_per_clip", default=0, near="vision")
    if frames and str(getattr(request.config, "model_type", "")) in FLAT_FRAMES:
        return request.randn(request.batch * frames, channels, height, width)
    if (
        not frames
        and "video" in str(getattr(request.config, "model_type", ""))
        and hasattr(request.config, "qformer_config")
    ):
        frames = 4
    return request.randn(request.batch, *([frames] if frames else []), channels, height, width)


# Video towers that take frames folded into the batch.
FLAT_FRAMES = {"xclip_vision_model"}


def _videos(request: _Request) -> Tensor:
    frames = request.number("num_frames", "frames_per_clip", default=FRAMES, near="vision")
    return request.randn(request.batch, frames, _channels(request), *_sides(request))


def _grid_thw(request: _Request) -> Tensor:
    if PATCH_LAYOUTS.get(str(getattr(request.config, "model_type", ""))) == "merged":
        return torch.tensor([[1, GRID, GRID]] * request.batch)
    return torch.tensor([[1, *_grid(request)]] * request.batch)


def _pixel_mask(request: _Request) -> Tensor:
    """All valid: patches where they come flattened, pixels where images come whole."""
    shape = _pixel_values(request).shape
    return torch.ones(shape[:2] if len(shape) == 3 else (*shape[:-3], *shape[-2:]), dtype=torch.long)


def _position_mask(request: _Request) -> Tensor:
    """Which positions of the text the image's features take: the first ones."""
    count = request.number("latent_query_num", default=0)
    mask = torch.zeros(request.batch, count + request.length, dtype=torch.bool)
    mask[:, :count] = True
    return mask


def _square(request: _Request) -> int:
    return max(1, math.isqrt(_pixel_values(request).shape[1]))


def _position_ids_2d(request: _Request) -> Tensor:
    count, side = _pixel_values(request).shape[1], _square(request)
    index = torch.arange(count)
    return torch.stack([index % side, index // side], dim=-1).expand(request.batch, -1, -1).contiguous()


def _flattened_patches(request: _Request) -> Tensor:
    """Row and column of a patch, from one, in front of its pixels."""
    width = request.first(nn.Linear).in_features
    position = torch.arange(1, request.length + 1).float().expand(request.batch, -1).unsqueeze(-1)
    return torch.cat([position, position, request.randn(request.batch, request.length, width)], dim=-1)


def _any_hidden(request: _Request) -> Tensor | None:
    """`hidden_states` are whatever the first layer takes: patches, pixels, a waveform, or hidden states."""
    if _is_packed(request):
        return _packed_patches(request)
    entry = request.entry
    if isinstance(entry, nn.Conv2d) and "mask" in request.parameters:
        return request.randn(request.batch, 8 * request.length, request.number("input_size", default=80))
    if isinstance(entry, nn.Conv2d):
        return request.randn(request.batch, entry.in_channels, *_sides(request))
    if isinstance(entry, nn.Conv1d):  # one or two channels are a waveform, more are frames
        size = max(request.length, 32) * _stride(request) if entry.in_channels < 3 else request.length
        return request.randn(request.batch, entry.in_channels, size)
    width = request.entry_width() or _width(request)
    return request.randn(request.batch, request.length, width) if width else None


# --- sound --------------------------------------------------------------------------------------------------


def _stride(request: _Request) -> int:
    """Samples per frame."""
    for name in ("conv_stride", "upsampling_ratios", "downsampling_ratios", "strides"):
        value = request.find(name)
        if isinstance(value, list | tuple) and all(isinstance(v, int) for v in value):
            return math.prod(value)
    return request.number("hop_length", default=320)


def _input_values(request: _Request) -> Tensor:
    mels = request.find("num_mel_bins")
    if mels and request.find("max_length"):  # a spectrogram by another name (AST)
        return request.randn(request.batch, request.number("max_length", default=1024), mels)
    if "decoder_input_values" in request.parameters:  # after a prenet that another model adds (SpeechT5)
        return request.randn(request.batch, request.length, request.entry_width() or _width(request))
    samples = max(request.length, 32) * _stride(request)
    if request.find("audio_channels", "channels", "codebook_size", "quantization_dim"):
        return request.randn(request.batch, request.number("audio_channels", "channels", default=1), samples)
    return request.randn(request.batch, samples)


def _mel_bins(request: _Request) -> int:
    stacked = request.number("subsampling_factor", default=1, near="audio")
    return (request.entry_width() if stacked == 1 else 0) or request.number(
        "num_mel_bins", "n_mel_bins", "feature_size", "input_feat_per_channel",
        "feature_projection_input_dim", "input_feat_size", "input_dim", "input_size", "n_mels", "mel_dim",
        "model_in_dim", default=128, near="audio",
    )  # fmt: skip


def _frames(request: _Request) -> int:
    """Spectrogram frames: as many as positions ask for, in whole windows."""
    positions = request.find("max_source_positions", near="audio")
    conv = request.first(nn.Conv1d)
    if positions and conv is not None and conv.in_channels == _mel_bins(request) and not _frames_first(request):
        return 2 * int(positions)
    window = 2 * request.number("n_window", default=4)
    return window * max(1, 8 * request.length // window)


def _frames_first(request: _Request) -> bool:
    """Whether features come as (batch, frames, bins): unless a 1-D convolution takes the bins as channels."""
    conv = request.first(nn.Conv1d)
    by_channel = conv is not None and conv.in_channels == _mel_bins(request)
    by_channel |= request.find("n_window") is not None
    return not by_channel or hasattr(request.config, "input_feat_per_channel")


def _input_features(request: _Request) -> Tensor:
    mels, frames = _mel_bins(request), _frames(request)
    if "is_longer" in request.parameters:  # CLAP folds a spectrogram into a square image
        bins = request.number("num_mel_bins", default=64, near="audio")
        size = request.number("spec_size", default=256, near="audio")
        return request.randn(request.batch, 1, size * size // bins, bins)
    if "feature_lens" in request.parameters:  # all clips in one row
        return request.randn(request.number("num_mel_bins", default=128), request.batch * frames)
    shape = (frames, mels) if _frames_first(request) else (mels, frames)
    return request.randn(request.batch, *shape)


def _features_mask(request: _Request) -> Tensor:
    shape = _input_features(request).shape
    return torch.ones(request.batch, shape[1] if _frames_first(request) else shape[-1], dtype=torch.long)


def _spectrogram(request: _Request) -> Tensor:
    return request.randn(request.batch, 8 * request.length, request.number("model_in_dim", default=80))


# --- series and trajectories --------------------------------------------------------------------------------


def _context(request: _Request) -> int:
    return request.number("context_length", default=request.length) + max(request.find("lags_sequence", default=[0]))


def _past_values(request: _Request) -> Tensor:
    channels = request.number("num_input_channels", default=0)
    width = request.number("input_size", default=1)
    last = [channels] if channels else [width] if width > 1 else []
    return request.randn(request.batch, _context(request), *last)


def _past_time_features(request: _Request) -> Tensor:
    return request.randn(request.batch, _context(request), request.number("num_time_features", default=0))


def _trajectory(*names: str) -> Callable[[_Request], Tensor]:
    """One vector a step, as wide as the config field says (1 where none is named)."""
    return lambda request: request.randn(
        request.batch, request.length, request.number(*names, default=1) if names else 1
    )


# --- which arguments ----------------------------------------------------------------------------------------


def _always(request: _Request, wanted: list[str]) -> bool:
    return True


def _with(*names: str) -> Callable[[_Request, list[str]], bool]:
    return lambda request, wanted: any(n in wanted for n in names)


def _is_encoder_decoder(request: _Request, wanted: list[str]) -> bool:
    return bool(getattr(request.config, "is_encoder_decoder", False))


def _is_dual(request: _Request, wanted: list[str]) -> bool:
    """Text and vision, and no placeholder token by which one feeds the other: both must be given."""
    config = request.config
    text = hasattr(config, "text_config") or hasattr(config, "vocab_size")
    vision = any(getattr(config, n, None) is not None for n in ("vision_config", "backbone_config", "image_size"))
    tokens = ("image_token_id", "image_token_index", "media_token_id", "img_token_id", "image_patch_id")
    fused = any(getattr(config, n, None) is not None for n in tokens)
    return text and vision and not fused and "mm_encoder_outputs" not in request.parameters


def _is_sounding(request: _Request, wanted: list[str]) -> bool:
    """A text and an audio tower without a placeholder token."""
    config = request.config
    towers = hasattr(config, "text_config") and (hasattr(config, "audio_config") or hasattr(config, "speech_config"))
    return (
        towers
        and "past_key_values" not in request.parameters
        and request.find("audio_token_id", "audio_token_index") is None
    )


def _required(request: _Request) -> set[str]:
    return {
        n for n, p in request.parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    } & request.parameters.keys()


# Arguments with a default that the forward nevertheless needs, and when.
COMPANIONS: dict[str, Callable[[_Request, list[str]], bool]] = {
    "decoder_input_ids": _is_encoder_decoder,
    "input_ids": lambda request, wanted: (
        _is_dual(request, wanted) or ("pixel_values" in wanted and request.find("num_query_tokens") is not None)
    ),
    "pixel_values": _is_dual,
    "encoder_hidden_states": lambda request, wanted: (
        "query_embeds" in wanted
        or hasattr(request.config, "cross_hidden_size")
        or str(getattr(request.config, "model_type", "")) in CROSS_ATTENDING
    ),
    "image_embeds_position_mask": _with("pixel_values"),
    "pixel_attention_mask": _with("pixel_values"),
    "spatial_shapes": _with("pixel_values"),
    "input_features": _is_sounding,
    "bbox": _always,
    "lang_ids": _always,
    "visual_feats": _always,
    "visual_pos": _always,
    "image_grid_thw": _with("pixel_values"),
    "image_grid_hw": _with("pixel_values"),
    "target_sizes": _with("pixel_values"),
    "grid_thw": _with("pixel_values", "hidden_states"),
    "image_attention_mask": _with("pixel_values"),
    "input_features_mask": _with("input_features"),
    "feature_lens": _with("input_features"),
    "decoder_input_values": _with("input_values"),
    "past_observed_mask": _with("past_time_features"),
    "actions": _with("states"),
    "rewards": _with("states"),
    "returns_to_go": _with("states"),
    "timesteps": _with("states"),
}

BUILDERS: dict[str, Callable[[_Request], Any]] = {
    "input_ids": _ids,
    "decoder_input_ids": lambda request: _ids(request, near="decoder"),
    "qformer_input_ids": lambda request: _ids(request, near="qformer"),
    "task_inputs": lambda request: _ids(request, length=request.number("task_seq_len", default=request.length)),
    "audio_input_ids": lambda request: request.randint(
        0,
        request.number("mel_vocab_size", default=2),
        request.length,
        request.number("n_mel_bins", default=80),
    ),
    "lang_ids": lambda request: torch.zeros(request.batch, dtype=torch.long),
    "attention_mask": _ones,
    "inputs_embeds": _hidden,
    "inputs": lambda request: (_input_values if isinstance(request.entry, nn.Conv1d) else _hidden)(request),
    "context": _hidden,
    "query_embeds": _hidden,
    "encoder_hidden_states": lambda request: request.randn(
        request.batch,
        request.length,
        request.number("cross_hidden_size", "encoder_hidden_size", "hidden_size", default=1),
    ),
    "noise_embeds": _hidden,
    "latents": lambda request: request.randn(request.batch, _width(request), request.length),
    "context_hidden_states": lambda request: request.randn(
        request.batch, request.length, _width(request) * len(request.find("target_layer_ids", default=[0]))
    ),
    "hidden_states": _any_hidden,
    "num_patches": lambda request: request.length // 2,
    "bbox": _bbox,
    "pixel_values": _pixel_values,
    "image": _pixel_values,
    "x": _stated_images,
    "prompt_pixel_values": _pixel_values,
    "prompt_masks": _pixel_values,
    "pixel_values_videos": _videos,
    "grid_thw": _grid_thw,
    "image_grid_thw": _grid_thw,
    "image_grid_hw": lambda request: _grid_thw(request)[:, 1:],
    "target_sizes": lambda request: _grid_thw(request)[:, 1:],
    "merge_sizes": lambda request: torch.full((request.batch,), _merge(request)),
    "image_embeds_position_mask": _position_mask,
    "pixel_attention_mask": _pixel_mask,
    "pixel_position_ids": _position_ids_2d,
    "spatial_shapes": lambda request: torch.full((request.batch, 2), _square(request)),
    "flattened_patches": _flattened_patches,
    "aspect_ratio_ids": lambda request: torch.ones(request.batch, 1, dtype=torch.long),
    "aspect_ratio_mask": lambda request: torch.ones(
        request.batch, 1, request.number("max_num_tiles", default=1), dtype=torch.long
    ),
    "image_attention_mask": lambda request: torch.ones(request.batch, request.length, 1, dtype=torch.long),
    "visual_feats": lambda request: request.randn(
        request.batch, request.length, request.number("visual_feat_dim", default=2048)
    ),
    "visual_pos": lambda request: torch.rand(request.batch, request.length, 4, generator=request.generator),
    "input_values": _input_values,
    "decoder_input_values": _input_values,
    "input_features": _input_features,
    "input_features_mask": _features_mask,
    "mask": _features_mask,
    "feature_lens": lambda request: torch.full((request.batch,), _frames(request)),
    "audio_mel": _input_features,
    "audio_mel_mask": lambda request: torch.zeros(request.batch, _frames(request), dtype=torch.bool),
    "spectrogram": _spectrogram,
    "mel_spectrogram": lambda request: _spectrogram(request).transpose(1, 2),
    "past_values": _past_values,
    "past_values_padding": lambda request: torch.zeros_like(_past_values(request), dtype=torch.long),
    "freq": lambda request: torch.zeros(request.batch, 1, dtype=torch.long),
    "past_time_features": _past_time_features,
    "past_observed_mask": lambda request: torch.ones_like(_past_values(request)),
    "states": _trajectory("state_dim"),
    "actions": _trajectory("act_dim"),
    "rewards": _trajectory(),
    "returns_to_go": _trajectory(),
    "timesteps": lambda request: torch.arange(request.length).expand(request.batch, -1).contiguous(),
}
