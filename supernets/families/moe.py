"""Sparse mixture-of-experts language models: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2, DeepSeek-V3, GPT-OSS.

Experts per layer and experts per token always vary; depth, key/value groups and the experts' inner width where asked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import lcm
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from kernels.op_spec import Context, OpSpec
from supernets import decoder_ops
from supernets.elastic import ElasticGroup, Member
from supernets.expert_bank import MoeLayer, check_router, moe_layers, router_name
from supernets.family import Family, Layout, SpaceOptions, evenly_spaced
from supernets.modeling import moe as moe_modeling
from supernets.moe_layout import MoELayout
from supernets.reduction import reduction
from supernets.space import (
    DEPTH,
    EXPERT_WIDTH,
    EXPERTS,
    KV_GROUPS,
    OPERATOR,
    TOP_K,
    Architecture,
    Choice,
    LayerChoice,
    SearchSpace,
)

_GROUPED_HEADS = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Models whose attention can be cut by head; elsewhere a norm spans the heads, or there are sinks or MLA."""
_BIASED_ROUTERS = ("deepseek_v3", "gpt_oss")


class MoeFamily(Family):
    """Elastic experts per layer, experts per token, depth, key/value groups and expert width."""

    name = "moe"
    model_types = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss")
    modeling: ClassVar[ModuleType] = moe_modeling

    def layers_name(self, model: nn.Module) -> str:
        """The decoder's layers."""
        return f"{model.base_model_prefix}.layers"

    def groups(self, model: nn.Module) -> tuple[ElasticGroup, ...]:
        """Per layer its experts and their inner units, and key/value groups where attention allows it."""
        config: Any = model.config
        groups = [group for layer in self.expert_layers(model) for group in (_expert_group(layer), _width_group(layer))]
        if config.model_type in _GROUPED_HEADS:
            path = self.layers_name(model)
            for index in range(config.num_hidden_layers):
                groups.append(_head_group(model, f"{path}.{index}.self_attn", index))
        return tuple(groups)

    def expert_layers(self, model: nn.Module) -> tuple[MoeLayer, ...]:
        """The mixture-of-experts layers, which become elastic as a whole.

        Raises:
            ValueError: see `supernets.expert_bank.moe_layers`, or a router is not finite.
        """
        layers = moe_layers(model)
        for layer in layers:
            check_router(layer)
        return layers

    def default_space(self, config: Any, options: SpaceOptions) -> SearchSpace:
        """Experts from few to all, experts per token, the operators in question, and what else is asked for."""
        unknown = sorted(set(options.axes) - {DEPTH, KV_GROUPS, EXPERT_WIDTH})
        if unknown or (KV_GROUPS in options.axes and config.model_type not in _GROUPED_HEADS):
            raise ValueError(
                f"{config.model_type} cannot vary {', '.join(unknown or [KV_GROUPS])}; it can {DEPTH} and "
                f"{EXPERT_WIDTH}"
            )
        layout, layers = MoELayout.of_config(config), int(config.num_hidden_layers)
        choices: list[Choice] = []
        if DEPTH in options.axes:
            shallowest = max(1, round(layers * options.min_depth_fraction))
            choices.append(Choice(axis=DEPTH, options=tuple(range(shallowest, layers + 1))))
        if options.uniform:
            choices += _layer_choices(config, options, None, sparse=True)
        else:
            for index in range(layers):
                choices += _layer_choices(config, options, index, sparse=index in layout.indices)
        labels = {OPERATOR: options.operators} if options.operators else {}
        return SearchSpace(self.name, layers, tuple(range(layers)), tuple(choices), labels)

    def ops(self, config: Any, architecture: Architecture, context: Context) -> tuple[OpSpec, ...]:
        """Embedding, per kept layer attention and its experts or dense feed-forward with a norm each, norm and head."""
        layout = {layer.index: layer for layer in MoELayout.of_config(config).of(architecture).layers}
        specs: list[OpSpec] = []
        for sequence in context.sequences:
            at = context.at(sequence)
            specs += decoder_ops.ends(config, at)
            for layer in architecture.layers:
                specs += decoder_ops.attention(config, layer.kept(KV_GROUPS), at)
                if layer.index in layout:
                    rows, constants = _further_rows(config, layer)
                    specs += decoder_ops.experts(config, layout[layer.index], rows, constants, at)
                else:
                    specs += decoder_ops.dense(config, at)
        return tuple(specs)

    def activation_elements(self, config: Any, architecture: Architecture, context: Context) -> int:
        """The larger of the logits and of a layer: residual stream, heads, inner units of the chosen experts."""
        tokens = context.batch * max(context.sequences)
        layers = MoELayout.of_config(config).of(architecture).layers
        inner = max((3 * layer.top_k * layer.width + 3 * layer.shared for layer in layers), default=0)
        heads = 4 * int(config.num_attention_heads) * decoder_ops.head_dim(config)
        widest = 2 * int(config.hidden_size) + max(inner, heads)
        return tokens * max(widest, int(config.vocab_size))

    def input_limit(self, config: Any) -> int:
        """Positions that the rotary embedding was made for."""
        return int(config.max_position_embeddings)

    def configure(self, config: Any, architecture: Architecture, layout: Layout) -> Any:
        """Free: per-layer sizes in ``supernas_layers``. Uniform and padded: the stock fields.

        A free layout's global count is one that no layer and no router has, so that stock classes, which would build
        that many experts without a word, fail on the shapes of the weights. `per_layer_num_experts` is there for other
        loaders.
        """
        kept = [layer.index for layer in architecture.layers]
        configured = _of_layers(config, kept)
        sizes = [_sizes(config, layer) for layer in architecture.layers]
        counts = [size.get("experts", 0) for size in sizes]
        if layout == "free":
            configured.supernas_layers = sizes
            configured.per_layer_num_experts = counts
            rows = [_router_rows(config, layer) for layer in architecture.layers]
            setattr(configured, moe_modeling.count_field(config), max(*counts, *rows) + 1)
            return configured
        mapped = [x.name(OPERATOR) for x in architecture.layers if _router_rows(config, x)]
        if mapped:
            raise ValueError(
                f"layout {layout} cannot say that experts merged by {mapped[0]} answer for several rows of the router; "
                "export with layout free"
            )
        if layout == "padded":
            sizes = [_padded(config, size, max(counts)) for size in sizes]
        return _with_one_size(configured, sizes, layout)


def _expert_group(layer: MoeLayer) -> ElasticGroup:
    """Experts with their rows of the router. A unit is one expert of each of the router's groups."""
    groups, router = layer.router_groups, router_name(layer.block)
    units = layer.count // groups
    names = [f"experts.{name}" for name, _ in layer.experts.named_parameters()]
    names += [f"{router}.{name}" for name, _ in (*layer.router.named_parameters(), *layer.router.named_buffers())]
    members = [
        Member(parameter=f"{layer.name}.{name}", dim=0, offset=group * units)
        for name in names
        for group in range(groups)
    ]
    return ElasticGroup(axis=EXPERTS, layer=layer.index, units=units, members=tuple(members), size=groups)


def _width_group(layer: MoeLayer) -> ElasticGroup:
    """Inner units: gate and up rows, which lie in two halves or side by side, and columns of the way down."""
    experts, width = layer.experts, layer.bank().width
    up_dim, down_dim = (2, 1) if experts.is_transposed else (1, 2)
    path = f"{layer.name}.experts"
    fused = [("gate_up_proj", up_dim)] + ([("gate_up_proj_bias", 1)] if experts.has_bias else [])
    members = []
    for name, dim in fused:
        if experts.is_concatenated:
            members += [Member(parameter=f"{path}.{name}", dim=dim, offset=half) for half in (0, width)]
        else:
            members.append(Member(parameter=f"{path}.{name}", dim=dim, block=2))
    members.append(Member(parameter=f"{path}.down_proj", dim=down_dim))
    return ElasticGroup(axis=EXPERT_WIDTH, layer=layer.index, units=width, members=tuple(members))


def _head_group(model: nn.Module, path: str, index: int) -> ElasticGroup:
    """Key/value groups, each with its query heads."""
    config: Any = model.config
    head_dim, queries = decoder_ops.head_dim(config), config.num_attention_heads // config.num_key_value_heads
    names = dict(model.get_submodule(path).named_parameters())
    members = [
        Member(parameter=f"{path}.{name}.{kind}", dim=0, block=block)
        for name, block in (("q_proj", queries * head_dim), ("k_proj", head_dim), ("v_proj", head_dim))
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in names
    ]
    members.append(Member(parameter=f"{path}.o_proj.weight", dim=1, block=queries * head_dim))
    return ElasticGroup(
        axis=KV_GROUPS,
        layer=index,
        units=config.num_key_value_heads,
        members=tuple(members),
        consumer=f"{path}.o_proj",
    )


def _layer_choices(config: Any, options: SpaceOptions, layer: int | None, *, sparse: bool) -> list[Choice]:
    """The genes of one layer, or those that all layers share."""
    choices = []
    if KV_GROUPS in options.axes:
        kv_groups = evenly_spaced(config.num_key_value_heads, options.head_options, 1)
        choices.append(Choice(axis=KV_GROUPS, options=kv_groups, layer=layer))
    if not sparse:
        return choices
    full = MoELayout.of_config(config).layers[0]
    counts = _legal_counts(config, full.experts, options)
    choices.append(Choice(axis=EXPERTS, options=counts, layer=layer))
    top_k = evenly_spaced(full.top_k, options.top_k_options, 1)
    choices.append(Choice(axis=TOP_K, options=top_k, layer=layer))
    if EXPERT_WIDTH in options.axes:
        widths = evenly_spaced(full.width, options.width_options, 16)
        choices.append(Choice(axis=EXPERT_WIDTH, options=widths, layer=layer))
    if options.operators:
        numbers = tuple(range(1, len(options.operators) + 1))
        choices.append(Choice(axis=OPERATOR, options=numbers, layer=layer, moot=(EXPERTS, full.experts)))
    return choices


def _legal_counts(config: Any, experts: int, options: SpaceOptions) -> tuple[int, ...]:
    """Evenly spaced counts that leave every group of the router equally many, and enough to choose from."""
    limited = config.model_type == "deepseek_v3" or getattr(config, "topk_method", None) == "group_limited_greedy"
    groups = int(getattr(config, "n_group", None) or 1) if limited else 1
    chosen_groups = int(config.topk_group) if groups > 1 else 1
    per_group = max(
        -(-int(config.num_experts_per_tok) // chosen_groups), 2 if config.model_type == "deepseek_v3" else 1
    )
    spaced = evenly_spaced(experts, options.expert_options, lcm(options.expert_multiple, groups))
    return tuple(count for count in spaced if count >= per_group * groups)


def _of_layers(config: Any, kept: Sequence[int]) -> Any:
    """A copy of a configuration with some of the layers, all else about them as it was."""
    configured = copy.deepcopy(config)
    configured.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        configured.layer_types = [config.layer_types[i] for i in kept]
    sparse = MoELayout.of_config(config).indices
    dense = [position for position, index in enumerate(kept) if index not in sparse]
    if hasattr(config, "mlp_only_layers"):
        configured.mlp_only_layers, configured.decoder_sparse_step = dense, 1
    if hasattr(config, "first_k_dense_replace"):
        configured.first_k_dense_replace = len(dense)
    return configured


def _sizes(config: Any, layer: LayerChoice) -> dict[str, int]:
    """What `supernets.modeling.moe` reads for one layer; the width only where it differs from the model's own."""
    sizes = {}
    if (kv_groups := layer.kept(KV_GROUPS)) is not None:
        sizes["kv_groups"] = kv_groups
    full = {one.index: one for one in MoELayout.of_config(config).layers}.get(layer.index)
    if full is not None:
        sizes |= {"experts": layer.kept(EXPERTS) or full.experts, "top_k": layer.kept(TOP_K) or full.top_k}
        if (width := layer.kept(EXPERT_WIDTH)) is not None:
            sizes["width"] = width
    return sizes


def _router_rows(config: Any, layer: LayerChoice) -> int:
    """Rows of a router behind which experts are merged; 0 where it has one row per expert."""
    operator, count = layer.name(OPERATOR), layer.kept(EXPERTS)
    (full, *_) = MoELayout.of_config(config).layers
    return full.experts if operator and count != full.experts and reduction(operator).keeps_router else 0


def _further_rows(config: Any, layer: LayerChoice) -> tuple[int, int]:
    """Rows of the router besides one per expert, and how many lead to constants: those of pruned experts do."""
    further = max(0, _router_rows(config, layer) - (layer.kept(EXPERTS) or 0))
    return further, further if further and reduction(str(layer.name(OPERATOR))).pruning else 0


def _padded(config: Any, sizes: dict[str, int], count: int) -> dict[str, int]:
    if config.model_type not in _BIASED_ROUTERS:
        raise ValueError(
            f"layout padded needs a router with a bias, which {config.model_type} has not; export with layout free"
        )
    return {**sizes, "experts": count} if "experts" in sizes else sizes


def _with_one_size(configured: Any, sizes: Sequence[dict[str, int]], layout: Layout) -> Any:
    """The stock fields for sizes that all layers share; ValueError naming the first that they do not."""
    for name in ("experts", "top_k", "width", "kv_groups"):
        found = sorted({size[name] for size in sizes if name in size})
        if len(found) > 1:
            raise ValueError(
                f"layout {layout} needs one value of {name} for all layers, got {found}; export with layout free"
            )
    common = {name: value for size in sizes for name, value in size.items()}
    narrow = common.get("width") not in (None, getattr(configured, moe_modeling.width_field(configured)))
    if narrow and getattr(configured, "n_shared_experts", None):
        raise ValueError(
            f"layout {layout} cannot narrow experts beside shared ones, whose width hangs on theirs; "
            "export with layout free"
        )
    return moe_modeling.layer_config(configured, common)


FAMILY = MoeFamily()
