"""How answers appear in an output: as sure as a calibration found them to be, or withheld.

They are kept as they were given, so another temperature or another threshold costs no row: the
output is written anew from its store.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from mmrag_batch.bundle import MANIFEST, read_manifest
from mmrag_batch.errors import ConfigError
from mmrag_batch.records import Answer
from mmrag_batch.report.temperature import COLDEST, HOTTEST, soften
from mmrag_batch.run.keys import OWN, AnswerSettings
from mmrag_batch.table.output import confidence_of


@dataclass(frozen=True, slots=True)
class Presentation:
    """`temperature` divides the logits of choices (1: as they were given); answers with a lower
    confidence than `abstain_below` are withheld, those without any never."""

    temperature: float = 1.0
    abstain_below: float = 0.0


AS_GIVEN = Presentation()


def find_presentation(
    bundle: Path, answers: AnswerSettings, abstain_below: float | None
) -> Presentation:
    """How answers appear that depend on `answers`. A bundle is calibrated with its own generator,
    so those of other models stay as they are. Raises ConfigError for a temperature that cannot be
    one."""
    temperature = read_manifest(bundle).calibration.get("temperature", 1.0)
    if not COLDEST <= temperature <= HOTTEST:
        raise ConfigError(
            f"{bundle / MANIFEST}: the temperature of its calibration is {temperature:g}, not from "
            f"{COLDEST:g} to {HOTTEST:g}. Calibrate it again, or export it again."
        )
    return Presentation(temperature if answers["engine"] == OWN else 1.0, abstain_below or 0.0)


def present(answer: Answer, how: Presentation) -> Answer:
    """The answer as an output shows it; evidence and problems stay."""
    if how.temperature != 1 and answer.probabilities:
        answer = replace(answer, probabilities=soften(answer.probabilities, how.temperature))
    confidence = confidence_of(answer) if how.abstain_below else None
    if confidence is None or confidence >= how.abstain_below:
        return answer
    return replace(answer, status="abstained", prediction=None, index=None)
