"""`nas space`: what is elastic."""

from __future__ import annotations

from cli.config import ConfigOption
from cli.options import LatencyOptions, SupernetArgument
from cli.output import Format, FormatOption, write_rows


def space(
    supernet: SupernetArgument,
    latency: LatencyOptions,
    style: FormatOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Show what is elastic in a supernet, how many networks it holds, and what the smallest and largest cost."""
    from nas.checking import network_costs
    from supernets.checkpoint import load_supernet

    loaded, _, record = load_supernet(supernet)
    if style is Format.TABLE:
        labels = loaded.space.labels
        genes = [
            {
                "choice": c.name,
                "options": " ".join(labels[c.axis][i - 1] if c.axis in labels else str(i) for i in c.options),
            }
            for c in loaded.space.choices
        ]
        write_rows(genes, style)
        print(f"\n{loaded.space.size:,} networks\n".replace(",", " "))
    write_rows(network_costs(loaded, latency.context(record["lengths"])), style)
