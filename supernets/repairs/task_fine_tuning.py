"""Task fine-tuning: every weight learns to predict the task's text; the full model is not asked."""

from collections.abc import Mapping

from torch import Tensor, nn

from supernets.calibration import Batch
from supernets.repair import GradientRepair, RepairSettings, next_token_loss


class TaskFineTuning(GradientRepair):
    """Descends the negative log-likelihood of the next token."""

    name = "task-fine-tuning"
    defaults = RepairSettings(steps=200, learning_rate=3e-4)

    def parameters(self, student: nn.Module) -> Mapping[str, nn.Parameter]:
        """Everything."""
        return dict(student.named_parameters())

    def loss(self, student: nn.Module, teacher: nn.Module, batch: Batch, settings: RepairSettings) -> Tensor:
        """Of the text."""
        return next_token_loss(student, batch)


REPAIR = TaskFineTuning()
