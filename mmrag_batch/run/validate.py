"""What is wrong with a table, here or on an object store, before a model is loaded."""

from collections.abc import Callable
from typing import Any

from mmrag_batch.factory import open_images
from mmrag_batch.masking import mask
from mmrag_batch.remote import find_url
from mmrag_batch.run.copies import looking_at
from mmrag_batch.settings import PredictSettings
from mmrag_batch.table.check import check_table, facts_of
from mmrag_batch.table.formats import describe, read_header
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.truth import Reading


def validate(asked: PredictSettings, labels: Reading | None, say: Callable[[str], None]) -> int:
    """Say line by line what is wrong with the input; how many of its rows would get no answer.
    Raises what reading a table does."""
    names = parse_names(asked.columns)
    shown = find_url(asked.input) or str(asked.input)
    problems, unanswerable = 0, set()
    with looking_at(asked) as settings:
        table = settings.input
        truth, findings = check_table(table, open_images(settings), labels, names=names)
        for line, name, problem, fatal in findings:
            say(mask(f"{shown}:{line}: {name}: {problem.code}: {problem.message}"))
            problems += 1
            if fatal:
                unanswerable.add(line)
        say(mask(f"{shown}: {describe(table, read_header(table, names), names)}"))
    for text in truth.describe():
        say(mask(f"{shown}: {text}"))
    say(mask(f"{shown}: {problems} problems; {len(unanswerable)} rows would get no answer."))
    return len(unanswerable)


def find_facts(asked: PredictSettings, labels: Reading | None) -> dict[str, Any]:
    """The same for programs."""
    names = parse_names(asked.columns)
    with looking_at(asked) as settings:
        images = open_images(settings)
        truth, findings = check_table(settings.input, images, labels, names=names)
        facts = facts_of(settings.input, truth, findings, names)
    return facts | {"table": mask(find_url(asked.input) or str(asked.input))}
