"""`Supernet`: one pre-trained model, many sub-networks that share its weights."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from kernels.op_spec import BYTES_PER_ELEMENT, Context, OpSpec
from studies.discovery import VariantFolder
from supernets.elastic import ElasticGroup, Member, Orders, cuts_by_parameter, permute_units, sliced_numel
from supernets.elastic_experts import ElasticExperts, check_counts
from supernets.expert_bank import MoeLayer
from supernets.family import Family, Layout, SpaceOptions
from supernets.routing_statistics import RoutingStatistics
from supernets.space import DEPTH, EXPERTS, TOP_K, Architecture, LayerChoice, SearchSpace
from supernets.weights import ElasticLayers, ElasticLinear, Seam, SlicedWeights, Slot, TrainedSource, WeightSource

FAMILIES = VariantFolder(package="supernets.families", attribute="FAMILY", kind="family")

SOURCE = "weight_source"
"""Name of a `TrainedSource` inside the model it became part of."""


def family_for(model_type: str) -> Family:
    """The family that declares a model type; ValueError naming the supported ones otherwise."""
    for family in _families():
        if model_type in family.model_types:
            return family
    raise ValueError(f"model type {model_type!r} is not supported; supported are {', '.join(known_model_types())}")


def known_model_types() -> list[str]:
    """Of all families, sorted."""
    return sorted(name for family in _families() for name in family.model_types)


def _families() -> list[Family]:
    return [cast("Family", FAMILIES.load(name)) for name in FAMILIES.names()]


class Supernet:
    """A pre-trained model whose layers read their weights through the seam.

    Wrapping copies no weight: the elastic modules hold the same parameters under the same state-dict names.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        *,
        groups: Sequence[ElasticGroup] | None = None,
        source: WeightSource | None = None,
        statistics: RoutingStatistics | None = None,
        protect: bool = False,
    ) -> None:
        """`statistics` of calibration are what expert reductions go by; with `protect`, super experts stay."""
        config: Any = model.config
        self.model = model
        self.config = config
        self.family = family_for(config.model_type)
        self.space = space
        self.groups = self.family.groups(model) if groups is None else tuple(groups)
        self.cuts = cuts_by_parameter(self.groups)
        self.statistics, self.protect = statistics, protect
        layers = self.family.expert_layers(model) if self.groups else ()
        self._check_space(layers)
        self.seam = Seam(source or SlicedWeights())
        self.elastic: dict[str, ElasticLinear] = {}
        self.experts: dict[int, ElasticExperts] = {}
        self._install(layers)

    @classmethod
    def wrap(
        cls,
        model: nn.Module,
        space: SearchSpace | None = None,
        options: SpaceOptions | None = None,
        *,
        statistics: RoutingStatistics | None = None,
        protect: bool = False,
    ) -> Supernet:
        """Make a loaded model elastic, over a given space or its family's default one.

        Raises:
            ValueError: the model type is not supported, or the space asks for more than the model has.
        """
        config: Any = model.config
        family = family_for(config.model_type)
        space = space or family.default_space(config, options or SpaceOptions())
        return cls(model, space, statistics=statistics, protect=protect)

    @classmethod
    def fixed(cls, model: nn.Module) -> Supernet:
        """A network without anything elastic, so that what trains and measures supernets also serves it."""
        config: Any = model.config
        layers = config.num_hidden_layers
        space = SearchSpace(family_for(config.model_type).name, layers, tuple(range(layers)), ())
        return cls(model, space, groups=())

    def _check_space(self, expert_layers: Sequence[MoeLayer]) -> None:
        if self.space.num_layers != self.config.num_hidden_layers:
            raise ValueError(
                f"the space has {self.space.num_layers} layers, but the model has {self.config.num_hidden_layers}"
            )
        units = {(group.axis, group.layer): group.units * group.size for group in self.groups}
        for layer in expert_layers:
            units[TOP_K, layer.index] = layer.top_k
            check_counts(self.space, layer, self.statistics)
        for choice in self.space.choices:
            if choice.axis == DEPTH or choice.axis in self.space.labels:
                continue
            layers = [layer for axis, layer in units if axis == choice.axis and choice.layer in (None, layer)]
            most = min((units[choice.axis, layer] for layer in layers), default=0)
            if choice.options[-1] > most:
                raise ValueError(f"{choice.name} offers {choice.options[-1]}, but the model has {most}")

    def _install(self, expert_layers: Sequence[MoeLayer]) -> None:
        for layer in expert_layers:
            self.experts[layer.index] = ElasticExperts(
                layer, self.config, self.seam, self.cuts, self.statistics, protect=self.protect
            )
            self.model.set_submodule(layer.name, self.experts[layer.index])
        of_experts = tuple(f"{block.layer.name}." for block in self.experts.values())
        linears = [name for name in self.cuts if not name.startswith(of_experts)] if of_experts else self.cuts
        for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in linears):
            linear = self.model.get_submodule(name)
            assert isinstance(linear, nn.Linear), f"{name} is {type(linear).__name__}, not a linear layer"
            slot = Slot(name, self.cuts.get(f"{name}.weight", ()), self.cuts.get(f"{name}.bias", ()))
            self.elastic[name] = ElasticLinear(linear, slot, self.seam)
            self.model.set_submodule(name, self.elastic[name])
        layers_name = self.family.layers_name(self.model)
        layers = cast("nn.ModuleList", self.model.get_submodule(layers_name))
        self.model.set_submodule(layers_name, ElasticLayers.wrap(layers, self.seam))

    def unwrap(self) -> nn.Module:
        """Give the model its plain modules back (same parameters) and return it.

        Raises:
            ValueError: the weights come from a source that has parameters of its own.
        """
        if self.trained_source is not None:
            raise ValueError("a mixture has weights for every architecture and no plain model: extract one of them")
        layers_name = self.family.layers_name(self.model)
        layers = cast("ElasticLayers", self.model.get_submodule(layers_name))
        self.seam.architecture = None
        self.model.set_submodule(layers_name, nn.ModuleList(list(layers)).train(layers.training))
        for name, elastic in self.elastic.items():
            self.model.set_submodule(name, elastic.restored())
        for block in self.experts.values():
            self.model.set_submodule(block.layer.name, block.restored())
        return self.model

    # -- weights from elsewhere ---------------------------------------------------------------------------------

    @property
    def trained_source(self) -> TrainedSource | None:
        """The source with parameters of its own that the weights come from, if there is one."""
        source = self.seam.source
        return source if isinstance(source, TrainedSource) else None

    def adopt(self, source: TrainedSource) -> None:
        """Read weights from a source with parameters of its own, which become part of model, hash and groups.

        Raises:
            ValueError: there is such a source already.
        """
        if self.trained_source is not None:
            raise ValueError("this supernet is a mixture already: mix a supernet once, or load its model anew")
        members: dict[ElasticGroup, list[Member]] = {group: list(group.members) for group in self.groups}
        for group, member in source.members():
            members[group].append(replace(member, parameter=f"{SOURCE}.{member.parameter}"))
        self.groups = tuple(replace(group, members=tuple(own)) for group, own in members.items())
        self.cuts = cuts_by_parameter(self.groups)
        self.model.add_module(SOURCE, source.train(self.model.training))
        layers = range(self.space.num_layers)
        self.seam.largest = Architecture(tuple(LayerChoice(index=layer, units=()) for layer in layers))
        self.seam.source = source
        for module in self.elastic.values():
            module.forget()

    # -- running ------------------------------------------------------------------------------------------------

    @contextmanager
    def active(self, architecture: Architecture | None) -> Iterator[Supernet]:
        """Run as the sub-network `architecture` (None: the largest network) inside the block."""
        previous, self.seam.architecture = self.seam.architecture, architecture
        try:
            yield self
        finally:
            self.seam.architecture = previous

    def __call__(self, **inputs: Tensor) -> Any:
        """Forward pass of the active sub-network, with the original model's inputs and outputs."""
        return self.model(**inputs)

    # -- extraction ---------------------------------------------------------------------------------------------

    def extract(self, architecture: Architecture, layout: Layout = "free") -> nn.Module:
        """A stand-alone network with its own contiguous copy of the sub-network's weights, in evaluation mode.

        Raises:
            ValueError: the layout cannot express the architecture, or a mixture is in training mode, where its router
                may drop units at random.
        """
        if self.trained_source is not None and self.model.training:
            raise ValueError("a mixture is in training mode: call eval() on its model, then extract")
        config = self.configured(architecture, layout)
        network_class = self.family.network_class(type(self.model), layout)
        with torch.device("meta"):
            network = cast("Any", network_class(config))
        state = {name: tensor.detach().clone() for name, tensor in self._state(architecture, layout)}
        network.load_state_dict(state, strict=True, assign=True)
        kept = self.model.state_dict()
        for name, buffer in self.model.named_buffers():
            if name not in kept:
                _set_buffer(network, name, buffer.clone())
        network.tie_weights()
        if getattr(self.model, "generation_config", None) is not None:
            network.generation_config = copy.deepcopy(self.model.generation_config)
        return cast("nn.Module", network.eval())

    def configured(self, architecture: Architecture, layout: Layout) -> Any:
        """A copy of the configuration that describes the sub-network; ValueError where the layout cannot."""
        config = self.family.configure(self.config, architecture, layout)
        if layout == "free":
            for choice, sizes in zip(architecture.layers, config.supernas_layers, strict=True):
                if choice.index in self.experts:
                    sizes |= self.experts[choice.index].sizes(choice)
        return config

    def layer_state(self, architecture: Architecture, index: int, layout: Layout = "free") -> dict[str, Tensor]:
        """State of a kept layer by names within it; elastic parameters come through the seam."""
        path = f"{self.family.layers_name(self.model)}.{index}."
        state: dict[str, Tensor] = dict(self.model.get_submodule(path[:-1]).state_dict())
        for name, module in self.elastic.items():
            if name.startswith(path):
                weight, bias = self.seam.source.weights(module.slot, module.weight, module.bias, architecture)
                tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
                state |= {f"{name.removeprefix(path)}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()}
        if (block := self.experts.get(index)) is not None:
            name = f"{block.layer.name.removeprefix(path)}."
            state = {child: tensor for child, tensor in state.items() if not child.startswith(name)}
            if layout == "padded":
                most = max(other.sizes(choice)["experts"] for choice, other in self._sparse(architecture))
                made = block.padded(architecture, most)
            else:
                made = block.tensors(architecture)
            state |= {f"{name}{child}": tensor.contiguous() for child, tensor in made.items()}
        return state

    def release(self, index: int) -> None:
        """Drop what is kept of a layer's weights, so that they can go."""
        path = f"{self.family.layers_name(self.model)}.{index}."
        for name, module in self.elastic.items():
            if name.startswith(path):
                module.forget()
        if index in self.experts:
            self.experts[index].release()

    def _state(self, architecture: Architecture, layout: Layout) -> Iterator[tuple[str, Tensor]]:
        """State of a sub-network under its own layer numbers."""
        prefix = f"{self.family.layers_name(self.model)}."
        for name, tensor in self.model.state_dict().items():
            if not name.startswith(prefix) and not belongs_to_source(name):
                yield name, tensor
        for position, choice in enumerate(architecture.layers):
            for name, tensor in self.layer_state(architecture, choice.index, layout).items():
                yield f"{prefix}{position}.{name}", tensor

    def _sparse(self, architecture: Architecture) -> list[tuple[LayerChoice, ElasticExperts]]:
        """The kept mixture-of-experts layers."""
        return [(choice, self.experts[choice.index]) for choice in architecture.layers if choice.index in self.experts]

    def side_files(self, architecture: Architecture) -> dict[str, str]:
        """Texts by name that lie beside a checkpoint: ``experts.jsonl``, one line per mixture-of-experts layer."""
        sparse = list(enumerate(architecture.layers))
        lines = [{"layer": i, **self.experts[x.index].record(x)} for i, x in sparse if x.index in self.experts]
        return {"experts.jsonl": "".join(json.dumps(line) + "\n" for line in lines)} if lines else {}

    # -- costs --------------------------------------------------------------------------------------------------

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name of the parameters that are not counted by the experts themselves."""
        of_experts = tuple(f"{block.layer.name}." for block in self.experts.values())
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        return {
            name: shape
            for name, shape in shapes.items()
            if not belongs_to_source(name) and not (of_experts and name.startswith(of_experts))
        }

    def count_parameters(self, architecture: Architecture) -> int:
        """Exact number of parameters of the extracted network (tied ones once)."""
        prefix = self.family.layers_name(self.model) + "."
        total = sum(block.count_parameters(choice) for choice, block in self._sparse(architecture))
        for name, shape in self._shapes.items():
            layer = int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else None
            if layer is None or layer in architecture.by_index:
                cuts = self.cuts.get(name)
                total += sliced_numel(shape, cuts, architecture) if cuts else prod(shape)
        return total

    def ops(self, architecture: Architecture, context: Context) -> tuple[OpSpec, ...]:
        """The operations of one forward pass, once per sequence length of the context.

        Raises:
            ValueError: a sequence is longer than the model has positions for.
        """
        if (most := self.family.input_limit(self.config)) < max(context.sequences):
            raise ValueError(f"this model takes up to {most} tokens, got a sequence of {max(context.sequences)}")
        return self.family.ops(self.config, architecture, context)

    def count_macs(self, architecture: Architecture, context: Context) -> int:
        """Multiply-accumulates of one forward pass, averaged over the context's sequence lengths."""
        flops = sum(spec.flops for spec in self.ops(architecture, context))
        return round(flops / 2 / len(context.sequences))

    def memory_bytes(self, architecture: Architecture, context: Context) -> int:
        """Bytes of all weights plus the largest activations alive at once (a count, not a measurement)."""
        elements = self.count_parameters(architecture)
        elements += self.family.activation_elements(self.config, architecture, context)
        return elements * BYTES_PER_ELEMENT[context.dtype]

    # -- identity and order -------------------------------------------------------------------------------------

    def reorder(self, orders: Orders, companions: Sequence[Mapping[str, Tensor]] = ()) -> None:
        """Permute units in place so that the most important come first; function-preserving up to rounding.

        `companions` are tensors of the parameters' shapes by parameter name, such as optimiser moments, that must
        follow.
        """
        parameters = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        if self.statistics is not None and any(axis == EXPERTS for axis, _ in orders):
            raise ValueError("experts that were calibrated keep their places; put them in order before calibration")
        for (axis, layer), order in orders.items():
            group = next(g for g in self.groups if (g.axis, g.layer) == (axis, layer))
            if sorted(order) != list(range(group.units)):
                raise ValueError(f"the order of {axis} in layer {layer} must be a permutation of {group.units} units")
            for member in group.members:
                cut = next(c for c in self.cuts[member.parameter] if c.member == member)
                for tensors in (parameters, *companions):
                    if member.parameter in tensors:
                        permute_units(tensors[member.parameter], cut, order)
        for block in self.experts.values():
            block.forget()

    @property
    def hash(self) -> str:
        """Identity of the weights and of the space: equal exactly if every genotype computes the same."""
        digest = hashlib.blake2b(self.space.fingerprint.encode(), digest_size=8)
        if self.statistics is not None:
            digest.update(f"{self.statistics.digest}{self.protect}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def belongs_to_source(name: str) -> bool:
    """Whether a parameter of a model is its `TrainedSource`'s, and no part of any sub-network."""
    return name.startswith(f"{SOURCE}.")


def _set_buffer(network: nn.Module, name: str, value: Tensor) -> None:
    """Fill a non-persistent buffer, which a state dict does not carry."""
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, value)
