"""How a run was made, in a report: commands, config, versions."""

from __future__ import annotations

from unialign_jax.config import flatten
from unialign_jax.reporting.markup import Markup, tag
from unialign_jax.reporting.material import Material


def making_section(material: Material) -> Markup:
    """Commands, the resolved config and versions."""
    commands = material.making.commands
    return tag(
        "section",
        tag("h2", "How it was made"),
        tag("pre", tag("code", "\n".join(commands)), tabindex="0") if commands else None,
        _table("Versions", material.versions),
        tag(
            "details",
            tag("summary", "The resolved config"),
            _table("Config", {key: str(v) for key, v in flatten(material.config).items()}),
        ),
        id="making",
    )


def _table(caption: str, values: dict[str, str]) -> Markup:
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", v)) for name, v in values.items()]
    return tag("table", tag("caption", caption), tag("tbody", rows), class_="plain")
