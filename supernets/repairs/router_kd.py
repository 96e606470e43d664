"""Router-KD (arXiv 2603.02217): only the routers learn, from the next-token distribution of the full model."""

from collections.abc import Mapping

from torch import Tensor, nn

from supernets.calibration import Batch
from supernets.repair import GradientRepair, RepairSettings, divergence, router_parameters


class RouterKd(GradientRepair):
    """Distils into the routers, which are a thousandth of the weights."""

    name = "router-kd"
    defaults = RepairSettings(steps=60, learning_rate=5e-3)

    def parameters(self, student: nn.Module) -> Mapping[str, nn.Parameter]:
        """All routers."""
        return router_parameters(student)

    def loss(self, student: nn.Module, teacher: nn.Module, batch: Batch, settings: RepairSettings) -> Tensor:
        """Divergence from the full model."""
        return divergence(student, teacher, batch, settings.temperature)


REPAIR = RouterKd()
