"""The seam between an operation and its kernel: ``torch.library.custom_op`` with a plain torch function beside it.

On a CPU the torch function runs; on a GPU the Triton kernel, once `kernels.self_check` has compared the two. Gradients
are those of the torch function, which the backward pass runs again. Forward and backward stay one node each for
``torch.compile``, because their shapes are known without running them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.launch_config import LaunchConfig, architecture_name
from kernels.self_check import checked

Arguments = tuple[Any, ...]
Configs = tuple[LaunchConfig, ...]
"""Launch settings of every kernel of an operation, in the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class KernelOp:
    """One operation, ``torch.ops.supernas.<name>``. All its arguments are positional.

    Attributes:
        name: of the kernel.
        reference: the operation in differentiable torch; its annotations are the operation's schema.
        launch: the same by Triton, given the launch settings first.
        configure: launch settings from an architecture's name and the arguments.
        fake: an empty tensor of the result's shape, from tensors without data.
    """

    name: str
    reference: Callable[..., Tensor]
    launch: Callable[..., Tensor]
    configure: Callable[..., Configs]
    fake: Callable[..., Tensor]

    def register(self) -> Callable[..., Tensor]:
        """Make it and its gradient known to torch; returns the operation."""
        name, schema = f"supernas::{self.name}", torch.library.infer_schema(self.reference, mutates_args=())
        backward_schema = (
            f"(Tensor grad, int[] wanted, {schema.removeprefix('(').removesuffix(' -> Tensor')} -> Tensor[]"
        )
        backward = torch.library.custom_op(f"{name}_backward", self._gradients, mutates_args=(), schema=backward_schema)
        backward.register_fake(lambda grad, wanted, *arguments: [torch.empty_like(arguments[one]) for one in wanted])

        def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            wanted = [index for index, needed in enumerate(ctx.needs_input_grad) if needed]
            arguments = _recall(ctx)
            by_index = dict(zip(wanted, backward(grad, wanted, *arguments), strict=True))
            return tuple(by_index.get(index) for index in range(len(arguments)))

        op = torch.library.custom_op(name, self.run, mutates_args=(), schema=schema)
        op.register_fake(self.fake)
        op.register_autograd(differentiate, setup_context=_remember)
        return op

    def run(self, *arguments: Any) -> Tensor:
        """The result, by whatever is right for the device of the first tensor."""
        x: Tensor = arguments[0]
        if x.device.type != "cuda":
            return self.reference(*arguments)
        return self.on_gpu(architecture_name(x.device), arguments)

    def on_gpu(self, arch: str, arguments: Arguments) -> Tensor:
        """By the kernel if there are settings for the architecture and the kernel has proved itself."""
        x: Tensor = arguments[0]
        try:
            configs = self.configure(arch, *arguments)
        except ValueError as problem:
            return checked(self.name, (arch,), _raising(problem), lambda: self.reference(*arguments))
        where = (arch, x.device, x.dtype, configs)
        return checked(self.name, where, lambda: self.launch(configs, *arguments), lambda: self.reference(*arguments))

    def _gradients(self, grad: Tensor, wanted: Sequence[int], *arguments: Any) -> list[Tensor]:
        """Of the torch function, for the wanted arguments. Inside an operation only `torch.func` differentiates."""

        def of_wanted(*values: Tensor) -> Tensor:
            given = dict(zip(wanted, values, strict=True))
            return self.reference(*(given.get(index, argument) for index, argument in enumerate(arguments)))

        pull: Any = torch.func.vjp(of_wanted, *(arguments[index] for index in wanted))[1]
        return list(pull(grad))


def element_type(x: Tensor) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(x.dtype).removeprefix("torch.")


def _remember(ctx: Any, inputs: Arguments, output: Tensor) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]


def _recall(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if is_tensor else value for is_tensor, value in zip(ctx.is_tensor, ctx.others, strict=True)]


def _raising(problem: Exception) -> Callable[[], Tensor]:
    def fail() -> Tensor:
        raise problem

    return fail
