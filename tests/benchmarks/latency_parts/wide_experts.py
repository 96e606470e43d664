"""A supernet of the demonstration's mixture of experts whose networks differ more than in what they remember.

In the demonstration itself only expert counts vary, and a token is computed by two experts whatever their number: its
networks are all nearly as fast. Here depth, key/value heads, top-k and the width of experts vary as well.
"""

from __future__ import annotations

from pathlib import Path

from nas.domain_texts import prepare_domain_texts
from nas.expert_stage import ExpertRequest, expert_supernet
from nas.moe_demo import MoeDemoSettings
from nas.moe_subject import domain_task
from supernets.family import SpaceOptions

CACHE = Path("build/latency/moe")
SPACE = SpaceOptions(
    operators=("reap", "mone"), expert_options=8, top_k_options=2, axes=("depth", "kv_groups", "expert_width")
)


def wide_experts(demo: Path) -> Path:
    """The folder of the supernet, which is made from the demonstration's model and statistics where it is missing."""
    if not (CACHE / "supernet").exists():
        settings = MoeDemoSettings()
        request = ExpertRequest(
            model=str(demo / settings.subject.name),
            task=domain_task(prepare_domain_texts(demo / "data"), settings.domain),
            space=SPACE,
            statistics=str(demo / "statistics"),
        )
        expert_supernet(request, CACHE / "supernet")
    return CACHE
