"""What commands find out, for programs: with `--json`, one JSON object on stdout and nothing else
there."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mmrag_batch.masking import mask_all

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def print_json(facts: Mapping[str, Any]) -> None:
    """Print facts, secrets masked."""
    typer.echo(json.dumps(mask_all(facts), indent=2, ensure_ascii=False, allow_nan=False))
