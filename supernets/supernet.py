"""`Supernet`: one pre-trained model, many sub-networks that share its weights."""

from __future__ import annotations

import hashlib
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
from supernets.family import Family, Layout, SpaceOptions
from supernets.space import DEPTH, Architecture, LayerChoice, SearchSpace
from supernets.weights import ElasticLayers, ElasticLinear, Seam, SlicedWeights, Slot, TrainedSource, WeightSource

FAMILIES = VariantFolder(package="supernets.families", attribute="FAMILY", kind="family")

SOURCE = "weight_source"
"""Name of a `TrainedSource` inside the model it became part of."""


def family_for(model_type: str) -> Family:
    """The family that declares a model type; ValueError naming the supported ones otherwise."""
    families = [cast("Family", FAMILIES.load(name)) for name in FAMILIES.names()]
    for family in families:
        if model_type in family.model_types:
            return family
    known = sorted(name for family in families for name in family.model_types)
    raise ValueError(f"model type {model_type!r} is not supported; supported are {', '.join(known)}")


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
    ) -> None:
        config: Any = model.config
        self.model = model
        self.config = config
        self.family = family_for(config.model_type)
        self.space = space
        self.groups = self.family.groups(model) if groups is None else tuple(groups)
        self.cuts = cuts_by_parameter(self.groups)
        self._check_space()
        self.seam = Seam(source or SlicedWeights())
        self.elastic: dict[str, ElasticLinear] = {}
        self._install()

    @classmethod
    def wrap(cls, model: nn.Module, space: SearchSpace | None = None, options: SpaceOptions | None = None) -> Supernet:
        """Make a loaded model elastic, over a given space or its family's default one.

        Raises:
            ValueError: the model type is not supported, or the space asks for more than the model has.
        """
        config: Any = model.config
        family = family_for(config.model_type)
        return cls(model, space or family.default_space(config, options or SpaceOptions()))

    @classmethod
    def fixed(cls, model: nn.Module) -> Supernet:
        """A network without anything elastic, so that what trains and measures supernets also serves it."""
        config: Any = model.config
        layers = config.num_hidden_layers
        space = SearchSpace(family_for(config.model_type).name, layers, tuple(range(layers)), ())
        return cls(model, space, groups=())

    def _check_space(self) -> None:
        if self.space.num_layers != self.config.num_hidden_layers:
            raise ValueError(
                f"the space has {self.space.num_layers} layers, but the model has {self.config.num_hidden_layers}"
            )
        units = {(group.axis, group.layer): group.units for group in self.groups}
        for choice in self.space.choices:
            layers = range(self.space.num_layers) if choice.layer is None else [choice.layer]
            for layer in layers if choice.axis != DEPTH else ():
                most = units.get((choice.axis, layer), 0)
                if choice.options[-1] > most:
                    raise ValueError(f"{choice.name} offers {choice.options[-1]}, but the model has {most}")

    def _install(self) -> None:
        for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in self.cuts):
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
        config = self.family.configure(self.config, architecture, layout)
        network_class = self.family.network_class(type(self.model), layout)
        with torch.device("meta"):
            network = network_class(config)
        state = {name: tensor.detach().clone() for name, tensor in self._state(architecture)}
        network.load_state_dict(state, strict=True, assign=True)
        for name, buffer in self.model.named_buffers():
            _set_buffer(network, name, buffer.clone())
        cast("Any", network).tie_weights()
        return network.eval()

    def _state(self, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
        """State of a sub-network under its own layer numbers; elastic parameters come through the seam."""
        prefix = self.family.layers_name(self.model) + "."
        position = {layer.index: i for i, layer in enumerate(architecture.layers)}
        sliced: dict[str, Tensor] = {}
        for name, module in self.elastic.items():
            if int(name.removeprefix(prefix).partition(".")[0]) in position:
                weight, bias = self.seam.source.weights(module.slot, module.weight, module.bias, architecture)
                sliced[f"{name}.weight"] = weight.contiguous()
                if bias is not None:
                    sliced[f"{name}.bias"] = bias.contiguous()
        for name, tensor in self.model.state_dict().items():
            if name.startswith(prefix):
                index, _, rest = name.removeprefix(prefix).partition(".")
                if int(index) in position:
                    yield f"{prefix}{position[int(index)]}.{rest}", sliced.get(name, tensor)
            elif not belongs_to_source(name):
                yield name, tensor

    # -- costs --------------------------------------------------------------------------------------------------

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        named = self.model.named_parameters()
        return {name: tuple(parameter.shape) for name, parameter in named if not belongs_to_source(name)}

    def count_parameters(self, architecture: Architecture) -> int:
        """Exact number of parameters of the extracted network (tied ones once)."""
        prefix = self.family.layers_name(self.model) + "."
        total = 0
        for name, shape in self._shapes.items():
            layer = int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else None
            if layer is None or layer in architecture.by_index:
                cuts = self.cuts.get(name)
                total += sliced_numel(shape, cuts, architecture) if cuts else prod(shape)
        return total

    def ops(self, architecture: Architecture, context: Context) -> tuple[OpSpec, ...]:
        """The operations of one forward pass, once per sequence length of the context."""
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
        parameters = dict(self.model.named_parameters())
        for (axis, layer), order in orders.items():
            group = next(g for g in self.groups if (g.axis, g.layer) == (axis, layer))
            if sorted(order) != list(range(group.units)):
                raise ValueError(f"the order of {axis} in layer {layer} must be a permutation of {group.units} units")
            for member in group.members:
                cut = next(c for c in self.cuts[member.parameter] if c.member == member)
                for tensors in (parameters, *companions):
                    if member.parameter in tensors:
                        permute_units(tensors[member.parameter], cut, order)

    @property
    def hash(self) -> str:
        """Identity of the weights and of the space: equal exactly if every genotype computes the same."""
        digest = hashlib.blake2b(self.space.fingerprint.encode(), digest_size=8)
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
