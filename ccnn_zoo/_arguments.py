"""What a checkpoint or repository may say of its network: known arguments, with types and ranges. All else is refused.

Whoever writes such a file chooses every value in it, and timm's and torchvision's factories take addresses, paths and
classes too. So nothing reaches them that is not in :data:`ARGUMENTS`, :data:`DETECTOR` or :data:`PREPROCESSING`. To
let a new argument through, add its line.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ccnn_zoo._base.checks import is_integer
from ccnn_zoo._base.former import FORMER
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import MERGES, MIXINGS


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Args:
        expected: the same in words.
        holds: whether a value is it.
    """

    expected: str
    holds: Callable[[Any], bool]


def one_of(*allowed: object) -> Kind:
    """One of these; True is not 1."""
    return Kind(
        f"one of {', '.join(map(repr, allowed))}",
        lambda value: any(type(value) is type(each) and value == each for each in allowed),
    )


def whole(least: int, most: int) -> Kind:
    """An integer in a range."""
    return Kind(f"an integer in [{least}, {most}]", lambda value: is_integer(value) and least <= value <= most)


def number(least: float, most: float) -> Kind:
    """A finite number in a range."""
    return Kind(f"a number in [{least:g}, {most:g}]", lambda value: _is_number(value) and least <= value <= most)


def each(kind: Kind, most: int = 64) -> Kind:
    """One value, or a list of them, or lists of lists, of at most ``most`` values."""

    def holds(value: Any) -> bool:
        leaves = _leaves(value, most)
        return leaves is not None and all(map(kind.holds, leaves))

    return Kind(f"{kind.expected}, or up to {most} of them", holds)


def several(kind: Kind, most: int) -> Kind:
    """A list of at most ``most`` values."""
    return Kind(
        f"a list of up to {most} values, each {kind.expected}",
        lambda value: isinstance(value, list | tuple) and len(value) <= most and all(map(kind.holds, value)),
    )


def in_all(kind: Kind, most: int) -> Kind:
    """As ``kind``, and the sum of the values is at most ``most``: numbers of layers, which are built one by one."""
    return Kind(
        f"{kind.expected}, {most} in all", lambda value: kind.holds(value) and sum(_leaves(value, 64) or ()) <= most
    )


FLAG = one_of(False, True)
WORD = Kind("a word of up to 64 letters, digits and underscores", lambda v: _is_text(v, 64) and bool(_WORD.match(v)))
PLACE = Kind("the name of a layer, such as 'head.fc'", lambda v: _is_text(v, 256) and bool(_PLACE.match(v)))
TEXT = Kind("a text of at most 100,000 characters", lambda v: _is_text(v, 100_000))
LABEL = Kind("a text of at most 10,000 characters", lambda v: _is_text(v, 10_000))
SHARE = number(0, 1)
CLASSES = whole(0, 1_000_000)
SIZE = several(whole(1, 16_384), 3)
BRANCHES = whole(1, 256)

_WORD = re.compile(r"[A-Za-z0-9_]*\Z")
_PLACE = re.compile(r"[A-Za-z0-9_.]*\Z")


def _table(*groups: tuple[str, Kind]) -> dict[str, Kind]:
    return {name: kind for names, kind in groups for name in names.split()}


ARGUMENTS: dict[str, Kind] = _table(
    # calibration
    ("branches", BRANCHES),
    ("merge", one_of(*MERGES)),
    ("mixing", one_of(*MIXINGS)),
    ("mirrored", several(whole(0, 255), 256)),
    *((name, one_of(*neutral)) for name, neutral in FORMER.items()),
    ("base", WORD),
    ("folded rescale", FLAG),
    ("diversity", SHARE),
    # every network
    ("num_classes", CLASSES),
    ("in_chans", whole(1, 4096)),
    ("global_pool", WORD),
    ("img_size", each(whole(1, 16_384), 3)),
    ("output_stride", one_of(1, 2, 4, 8, 16, 32, 64)),
    ("drop_rate drop_path_rate drop_block_rate proj_drop_rate attn_drop_rate pos_drop_rate patch_drop_rate", SHARE),
    ("act_layer norm_layer aa_layer norm_layer_cl embed_norm_layer weight_init pad_type", WORD),
    # how many layers, and how wide
    ("layers depths depth stages block_config serial_depths num_blocks", in_all(each(whole(0, 1024)), 1024)),
    ("channels dims embed_dim embed_dims num_features head_hidden_size", each(whole(1, 65_536))),
    ("width stem_width base_width stem_size stem_chs", each(whole(1, 4096))),
    ("cardinality block_reduce_first down_kernel_size growth_rate bn_size", each(whole(1, 1024))),
    ("width_factor width_mult depth_mult widen_factor deepen_factor bottle_ratio se_ratio", number(0, 64)),
    ("num_heads head_dim window_size patch_size kernel_size kernel_sizes sr_ratios", each(whole(1, 4096))),
    ("reg_tokens num_reg_tokens", whole(0, 4096)),
    ("mlp_ratio mlp_ratios expand_ratio", each(number(0, 64))),
    ("init_values ls_init_value layer_scale_init_value head_init_scale norm_eps", number(0, 100)),
    # of what form
    ("small_input pad_shortcuts zero_init_last replace_stem_pool avg_down preact basic", FLAG),
    ("stem_type pos_embed", WORD),
    ("conv_bias conv_mlp use_grn head_norm_first head_norm head_bias inference_mode legacy", FLAG),
    ("qkv_bias qk_norm proj_bias class_token no_embed_class pool_include_prefix pre_norm final_norm fc_norm", FLAG),
    ("dynamic_img_size dynamic_img_pad strict_img_size always_partition distilled fix_init", FLAG),
)
"""Arguments of networks, as ``timm.create_model`` takes them; None stands for an argument's default."""

PREPROCESSING: dict[str, Kind] = _table(
    ("input_size test_input_size min_input_size", SIZE),
    ("fixed_input_size", FLAG),
    ("interpolation crop_mode", WORD),
    ("crop_pct test_crop_pct", number(0, 16)),
    ("mean std", several(number(-1e6, 1e6), 4096)),
    ("num_classes", CLASSES),
    ("pool_size test_pool_size", several(whole(1, 16_384), 3)),
    ("first_conv classifier", each(PLACE)),
    ("tag license description origin_url paper_name", TEXT),
    ("paper_ids notes", each(TEXT)),
) | {
    "label_names": Kind("a list of texts, or a table of them", lambda v: _are_labels(v, LABEL)),
    "label_descriptions": Kind("a table of texts", lambda v: isinstance(v, Mapping) and _are_labels(v, TEXT)),
}
"""Fields of timm's ``pretrained_cfg`` that say what a network expects and gives, none that says where weights lie."""

DETECTOR: dict[str, Kind] = {name: ARGUMENTS[name] for name in ("branches", "merge", "mixing", "folded")} | _table(
    ("backbone", WORD),
    ("num_classes", whole(1, 100_000)),
    ("labels", several(LABEL, 100_000)),
    ("fpn frozen_norm", FLAG),
    ("stride", whole(1, 1024)),
    ("min_size max_size", whole(1, 16_384)),
    ("anchor_sizes", several(whole(1, 16_384), 16)),
    ("representation_size", whole(1, 65_536)),
    ("image_mean image_std", several(number(-1e6, 1e6), 3)),
    ("rpn_pre_nms_top_n_train rpn_pre_nms_top_n_test", whole(1, 100_000)),
    ("rpn_post_nms_top_n_train rpn_post_nms_top_n_test", whole(1, 100_000)),
    ("rpn_batch_size_per_image box_batch_size_per_image box_detections_per_img", whole(1, 100_000)),
    ("rpn_nms_thresh rpn_fg_iou_thresh rpn_bg_iou_thresh rpn_positive_fraction rpn_score_thresh", SHARE),
    ("box_score_thresh box_nms_thresh box_fg_iou_thresh box_bg_iou_thresh box_positive_fraction", SHARE),
    ("bbox_reg_weights", several(number(0, 1e6), 4)),
)
"""Arguments of :func:`ccnn_zoo.detection.create_detector`; ``backbone_kwargs`` are checked as :data:`ARGUMENTS`."""


def checked(values: object, table: Mapping[str, Kind], what: str) -> dict[str, Any]:
    """Return ``values`` without those that are None.

    Args:
        values: by name, such as JSON or YAML hold them.
        table: what may be named, and what it must be.
        what: how error messages call them.

    Raises:
        ConfigurationError: a name is not in the table, or a value not what it must be; names it and what was expected.
    """
    given = named(values, what)
    for name, value in given.items():
        if name not in table:
            raise ConfigurationError(
                f"{what} may not hold {reprlib.repr(name)}: it is none of the values that a file may set; leave it out"
            )
        if value is not None and not table[name].holds(value):
            raise ConfigurationError(f"{what}: {name} must be {table[name].expected}, got {reprlib.repr(value)}")
    return {name: value for name, value in given.items() if value is not None}


def check_ranges(arguments: Mapping[str, object]) -> None:
    """Refuse plain values out of range; what is no plain value (a class, a function) only a program can have given.

    Raises:
        ConfigurationError: a value is out of range; names it and what was expected.
    """
    plain = {
        name: value
        for name, value in arguments.items()
        if name in ARGUMENTS and isinstance(value, bool | int | float | str | list | tuple)
    }
    checked(plain, ARGUMENTS, "a network")


def described(values: object) -> dict[str, Any]:
    """Return what a ``pretrained_cfg`` says of images and classes; every other field is left out.

    Raises:
        ConfigurationError: a field is not what it must be.
    """
    given = named(values, "pretrained_cfg")
    return checked({k: v for k, v in given.items() if k in PREPROCESSING}, PREPROCESSING, "pretrained_cfg")


def named(values: object, what: str) -> Mapping[str, Any]:
    """Return ``values`` if they are a mapping.

    Raises:
        ConfigurationError: they are none.
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{what} must map names to values, got {reprlib.repr(values)}")
    return values


def _is_number(value: Any) -> bool:
    # Comparing first: an integer too long for a float cannot be asked whether it is finite.
    return (is_integer(value) or isinstance(value, float)) and abs(value) < 1e30 and math.isfinite(value)


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most


def _are_labels(values: Any, kind: Kind) -> bool:
    if isinstance(values, Mapping):
        values = [*values.keys(), *values.values()]
    most = 2_000_000
    return isinstance(values, list | tuple) and len(values) <= most and all(kind.holds(v) for v in values)


def _leaves(value: Any, most: int) -> list[Any] | None:
    """Return the values of a list of lists, or None where they are more than ``most`` or lie deeper."""

    def walk(value: Any, depth: int) -> Iterator[Any]:
        if depth and isinstance(value, list | tuple):
            for inner in value[: most + 1]:
                yield from walk(inner, depth - 1)
        else:
            yield value

    leaves = []
    for leaf in walk(value, 3):
        leaves.append(leaf)
        if len(leaves) > most:
            return None
    return leaves
