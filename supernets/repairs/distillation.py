"""Full distillation: every weight learns from the next-token distribution of the full model."""

from collections.abc import Mapping

from torch import Tensor, nn

from supernets.calibration import Batch
from supernets.repair import GradientRepair, RepairSettings, divergence


class Distillation(GradientRepair):
    """Distils into all weights, at MC-SMoE's temperature (arXiv 2310.01334)."""

    name = "distillation"
    defaults = RepairSettings(steps=200, learning_rate=3e-4, temperature=2.0)

    def parameters(self, student: nn.Module) -> Mapping[str, nn.Parameter]:
        """Everything."""
        return dict(student.named_parameters())

    def loss(self, student: nn.Module, teacher: nn.Module, batch: Batch, settings: RepairSettings) -> Tensor:
        """Divergence from the full model."""
        return divergence(student, teacher, batch, settings.temperature)


REPAIR = Distillation()
