"""The options that a file sets, as a page."""

import json
from collections.abc import Mapping
from typing import Any

from .blocks import Block, Column, Items, Page, Section, Table


def config_page(told: Mapping[str, Any]) -> Page:
    """What `mfubench config show` tells; ``told`` is its document as JSON."""
    options, file = told["options"], told["file"]
    from_file = sum(option["origin"] == file for option in options)
    rows: Block = Items(["No option has its default from a file."])
    if options:
        rows = Table.of(
            "The defaults of options; what is typed goes before them.",
            [
                (Column("command"), [option["command"] for option in options]),
                (Column("option"), [option["option"] for option in options]),
                (Column("value"), [json.dumps(option["value"], ensure_ascii=False) for option in options]),
                (Column("origin"), [option["origin"] for option in options]),
            ],
        )
    number = {0: "no option", 1: "one option"}.get(from_file, f"{from_file} options")
    where = f"{file} sets {number}" if file else "Neither mfubench.toml nor pyproject.toml here sets any option"
    return Page("Configuration", where, [], [Section("Options", [rows], brief=True)])
