"""A Qdrant server: one collection of it, asked again where that may help.

Nothing but the host that is named is connected to.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

from mmrag_batch.errors import ConfigError, DeniedError, MissingError, UnavailableError
from mmrag_batch.extras import requires
from mmrag_batch.masking import mask
from mmrag_batch.retrieval.candidates import Address
from mmrag_batch.retrieval.corpus_manifest import RANGES, Models
from mmrag_batch.specs import parse_spec

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")
KEY = "QDRANT_API_KEY"
OURS = "mmrag-batch"
"""Where the metadata of a collection says what it holds."""
SECONDS = 60
"""That the server has for an answer."""
TRIES, FIRST_WAIT = 5, 1.0
"""Of a request that fails by no fault of its own; the waits in between double."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Filled:
    """What a collection was filled from: the models, and the version of the corpus; none while it
    is being filled."""

    models: Models
    version: str


class Server:
    """A collection, asked again where that may help; its key is `QDRANT_API_KEY`.

    Every method raises UnavailableError where the server cannot be reached, or fails, DeniedError
    where it does not take the key, MissingError where it has no such collection.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.client = _connect(address)

    def ask(self, method: Callable[..., T], *arguments: object, **named: object) -> T:
        """What a method of the client gives, of this collection."""
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        wait = FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            asked = 0.0
            try:
                return method(self.address.collection, *arguments, **named)
            except ResourceExhaustedResponse as error:
                problem, asked = f"it is asked too much: {error}", float(error.retry_after_s)
            except UnexpectedResponse as error:
                problem = f"{error.status_code} {error.reason_phrase}: {_said(error.content)}"
                self._refuse(error.status_code or 0, problem)
            except ResponseHandlingException as error:
                problem = f"{type(error.source).__name__}: {error.source}"
            if attempt < TRIES:
                log.info("%s does not answer (%s); asking again.", self.address, problem)
                sleep(max(wait, min(asked, SECONDS)))
                wait *= 2
        raise UnavailableError(
            mask(f"{self.address} cannot be reached: {problem}. Run the same command once it can.")
        )

    def _refuse(self, status: int, problem: str) -> None:
        """Raise for a status that another try would not mend."""
        if status in (401, 403):
            raise DeniedError(
                mask(f"{self.address} is closed to us: {problem} Set {KEY} to its key.")
            )
        if status == 404:
            raise MissingError(
                mask(
                    f"{self.address}: there is no such collection. Fill one from a corpus: "
                    f"`mmrag-batch index CORPUS {self.address}`."
                )
            )
        if 400 <= status < 500 and status not in (408, 429):
            raise UnavailableError(mask(f"{self.address} does not do what it is asked: {problem}"))

    def read(self) -> Filled:
        """What the collection was filled from. Raises ConfigError where nothing says so."""
        info = self.ask(self.client.get_collection)
        said = (info.config.metadata or {}).get(OURS)
        try:
            if not isinstance(said, dict):
                raise ValueError("it has no metadata of ours")
            vectors: Any = info.config.params.vectors
            filled = Filled(
                parse_spec(Models, said.get("models"), RANGES), str(said.get("version", ""))
            )
            if getattr(vectors, "size", None) != filled.models.size or vectors.distance != "Dot":
                raise ValueError(f"its vectors are not of {filled.models.size} dimensions, by dot")
        except ValueError as error:
            raise ConfigError(
                mask(
                    f"{self.address} was not filled by `mmrag-batch index CORPUS {self.address}`: "
                    f"{error}. Name another collection, and fill that; it takes Qdrant 1.16."
                )
            ) from None
        return filled

    def count(self) -> int:
        """How many points it has."""
        return int(self.ask(self.client.count, exact=True).count)


def _connect(address: Address) -> "QdrantClient":
    """A client, which asks nothing yet."""
    with requires("qdrant"):
        from qdrant_client import QdrantClient
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = QdrantClient(
            url=address.url,
            api_key=os.environ.get(KEY) or None,
            timeout=SECONDS,
            check_compatibility=False,
        )
    for one in caught:  # that a key goes over a connection that others can read
        log.warning("%s: %s", address, one.message)
    return client


def _said(content: bytes) -> str:
    """What the server says is wrong."""
    try:
        status = json.loads(content)["status"]
        return str(status["error"])[:500]
    except (ValueError, LookupError, TypeError):
        return content[:500].decode(errors="replace")
