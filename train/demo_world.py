"""A toy world with real evidence: coloured shapes, and facts about them dealt anew for every row.

    mmrag-batch demo world DIR --rows 300 --seed 9001

writes `DIR/questions.csv` and its images; `--free-form` leaves out the column `answer_choices`.
Nothing can be learnt by heart: what a red star costs is drawn again for each row, so only the row's
own documents tell. Row i of a seed is the same whatever the number of rows. The kinds of question:

    knowledge          a picture of a thing; the answer stands in one of its documents
    named              no picture, the thing is named; the answer stands in a document
    visual             the answer is in the question's picture; the documents are noise
    picture_document   the answer is in a document's picture, which is found by its text
"""

import csv
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm

from mmrag_batch.train.demo_pictures import COLOURS, SHAPES, draw

NAMES = (
    "Ada Ben Cleo Dora Emil Finn Gita Hugo Ines Jonas Kira Leo Mona Nils Olga Paul "
    "Quinn Rosa Sven Tara Uma Vera Wanda Yusuf"
).split()
CITIES = (
    "Athens Bergen Cairo Delhi Dublin Geneva Havana Kyoto Lagos Lima Lisbon Madrid "
    "Nairobi Oslo Paris Prague Quito Riga Rome Seoul Sofia Tokyo Tunis Vienna"
).split()
MATERIALS = "wood iron glass paper rubber silver copper marble wool clay cork wax".split()
KINDS = {"knowledge": 30, "named": 25, "visual": 20, "picture_document": 25}
"""Each kind of question, with its share of the rows in percent."""
DAMAGE_RATE = 0.04
"""The share of rows that carry the wear of real files."""


@dataclass(frozen=True)
class Fact:
    """One property of things: its values, how it is asked, how it is stated."""

    values: tuple[str, ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]


FACTS = {
    "price": Fact(
        tuple(f"{n} coins" for n in range(2, 100)),
        ("What does {x} cost?", "How much is {x}?", "What is the price of {x}?"),
        ("{X} costs {v}.", "The price of {x} is {v}.", "You can buy {x} for {v}."),
    ),
    "weight": Fact(
        tuple(f"{n} kilos" for n in range(2, 100)),
        ("What does {x} weigh?", "How heavy is {x}?", "What is the weight of {x}?"),
        ("{X} weighs {v}.", "The weight of {x} is {v}.", "On the scales {x} shows {v}."),
    ),
    "owner": Fact(
        tuple(NAMES),
        ("Who owns {x}?", "To whom does {x} belong?", "Who is the owner of {x}?"),
        ("{X} belongs to {v}.", "{v} owns {x}.", "The owner of {x} is {v}."),
    ),
    "home": Fact(
        tuple(CITIES),
        ("Where is {x} kept?", "In which city is {x}?", "Where can I find {x}?"),
        ("{X} is kept in {v}.", "You will find {x} in {v}.", "The home of {x} is {v}."),
    ),
    "material": Fact(
        tuple(MATERIALS),
        ("What is {x} made of?", "Which material is {x}?", "What did they make {x} from?"),
        ("{X} is made of {v}.", "They made {x} from {v}.", "The material of {x} is {v}."),
    ),
}
SHOWN = ("the thing in the picture", "the thing shown here", "this thing")
PHOTOS = ("A photo taken in {v}.", "This photo is from {v}.", "{v}, seen by a visitor.")
PHOTO_WORDS = ("the photo from {v}", "the picture taken in {v}", "the photo of {v}")
LOOKS = {
    "colour": ("What colour is {x}?", "Which colour has {x}?"),
    "shape": ("What shape is {x}?", "Which shape has {x}?"),
}
ODD = ("שלום, עולם", "Ωmega → ∞ 🎈", "naïve café\u200b", "e\u0301cole, ﬁn", "第一〇一号")


@dataclass(frozen=True)
class Thing:
    """A colour and a shape: all that can be seen of a thing."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"the {self.colour} {self.shape}"


@dataclass
class WorldQuestion:
    """One row while it is made. `documents` pairs each document with whether it is relevant."""

    kind: str
    text: str
    picture: Thing | None
    answer: str
    distractors: Sequence[str]
    documents: list[tuple[dict[str, object], bool]]


THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


def statement(rng: Random, fact: str, name: str, value: str) -> str:
    """A sentence that tells the `value` of a fact about what `name` names."""
    sentence = rng.choice(FACTS[fact].statements)
    return sentence.format(x=name, X=name[0].upper() + name[1:], v=value)


def fact_document(rng: Random, thing: Thing, fact: str, value: str) -> dict[str, object]:
    """A document that tells one fact: it names the thing, or shows it."""
    if rng.random() < 0.65:
        return {"text": statement(rng, fact, thing.name, value)}
    return {"image": thing, "text": statement(rng, fact, rng.choice(SHOWN), value)}


def photo(rng: Random, thing: Thing, city: str) -> dict[str, object]:
    """A document whose picture shows a thing and whose text says only where it was taken."""
    return {"image": thing, "text": rng.choice(PHOTOS).format(v=city)}


def noise(rng: Random, count: int, excluded: Thing | None = None) -> list[dict[str, object]]:
    """Documents about things other than `excluded`: facts, photos and bare pictures."""
    documents: list[dict[str, object]] = []
    for thing in rng.sample([t for t in THINGS if t != excluded], count):
        kind = rng.choice((*FACTS, "photo", "bare"))
        if kind == "bare":
            documents.append({"image": thing})
        elif kind == "photo":
            documents.append(photo(rng, thing, rng.choice(CITIES)))
        else:
            documents.append(fact_document(rng, thing, kind, rng.choice(FACTS[kind].values)))
    return documents


def ask_fact(rng: Random, kind: str) -> WorldQuestion:
    """`knowledge` and `named`: one fact about one thing, among facts that are easily mistaken."""
    fact = rng.choice(tuple(FACTS))
    thing = rng.choice(THINGS)
    same_colour = rng.choice([t for t in THINGS if t.colour == thing.colour and t != thing])
    same_shape = rng.choice([t for t in THINGS if t.shape == thing.shape and t != thing])
    remaining = [t for t in THINGS if t not in (thing, same_colour, same_shape)]
    others = [same_colour, same_shape, *rng.sample(remaining, rng.randint(2, 4))]
    answer, *distractors = rng.sample(FACTS[fact].values, 1 + len(others))

    documents = [(fact_document(rng, thing, fact, answer), True)]
    documents += [
        (fact_document(rng, o, fact, value), False) for o, value in zip(others, distractors)
    ]
    for other_fact in rng.sample([f for f in FACTS if f != fact], rng.randint(1, 3)):
        value = rng.choice(FACTS[other_fact].values)
        documents.append((fact_document(rng, thing, other_fact, value), False))
    documents += [(document, False) for document in noise(rng, rng.randint(0, 2), excluded=thing)]

    has_picture = kind == "knowledge"
    name = rng.choice(SHOWN) if has_picture else thing.name
    text = rng.choice(FACTS[fact].questions).format(x=name)
    return WorldQuestion(kind, text, thing if has_picture else None, answer, distractors, documents)


def ask_look(rng: Random, kind: str) -> WorldQuestion:
    """`visual` and `picture_document`: a colour or shape, seen in the question's own picture or in
    the one photo that was taken in the right city."""
    look = rng.choice(tuple(LOOKS))
    thing, *others = rng.sample(THINGS, rng.randint(4, 6))
    values = COLOURS if look == "colour" else SHAPES
    answer: str = getattr(thing, look)
    distractors = rng.sample([v for v in values if v != answer], 4)
    if kind == "visual":
        name = rng.choice(SHOWN)
        documents = [(document, False) for document in noise(rng, rng.randint(6, 12))]
    else:
        cities = rng.sample(CITIES, 1 + len(others))
        name = "the thing in " + rng.choice(PHOTO_WORDS).format(v=cities[0])
        documents = [(photo(rng, thing, cities[0]), True)]
        documents += [(photo(rng, o, city), False) for o, city in zip(others, cities[1:])]
        documents.append((fact_document(rng, rng.choice(THINGS), "home", cities[0]), False))
        documents += [
            (document, False) for document in noise(rng, rng.randint(1, 4), excluded=thing)
        ]
        documents = [d for d in documents if d[1] or not _is_photo_of(d[0], cities[0])]
    text = rng.choice(LOOKS[look]).format(x=name)
    return WorldQuestion(
        kind, text, thing if kind == "visual" else None, answer, distractors, documents
    )


def _is_photo_of(document: dict[str, object], city: str) -> bool:
    return document.get("text") in {words.format(v=city) for words in PHOTOS}


def make_row(directory: Path, number: int, seed: int) -> dict[str, str]:
    """Row `number` of the world `seed`, as CSV cells; draws its images below `directory`."""
    rng, kind = _begin(number, seed)
    question = (ask_fact if kind in {"knowledge", "named"} else ask_look)(rng, kind)
    rng.shuffle(question.documents)
    choices = [question.answer, *question.distractors[: rng.randint(1, 4)]]
    rng.shuffle(choices)
    picture = ""
    if question.picture is not None:
        picture = _save(rng, question.picture, directory, f"images/{number:05}-q.jpg")
    documents: list[object] = []
    for index, (document, _) in enumerate(question.documents):
        thing = document.get("image")
        if isinstance(thing, Thing):
            path = _save(rng, thing, directory, f"images/{number:05}-d{index}.jpg")
            documents.append({**document, "image": path} if "text" in document else path)
        else:
            documents.append(document["text"])
    relevant = [index for index, (_, is_relevant) in enumerate(question.documents) if is_relevant]
    if rng.random() < DAMAGE_RATE:
        documents = _damage(rng, kind, documents, relevant)
    return {
        "id": f"{seed}-{number}",
        "kind": kind,
        "question_text": question.text,
        "question_image": picture,
        "answer_choices": json.dumps(choices, ensure_ascii=False),
        "documents": json.dumps(documents, ensure_ascii=False),
        "label": question.answer,
        "relevant": json.dumps(relevant),
    }


def _begin(number: int, seed: int) -> tuple[Random, str]:
    """The chance of row `number`, and the kind of its question."""
    rng = Random(f"{seed}/{number}")
    return rng, rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]


def _save(rng: Random, thing: Thing, directory: Path, name: str) -> str:
    draw(rng, thing.colour, thing.shape).save(directory / name, quality=90)
    return name


def _damage(rng: Random, kind: str, documents: list[object], relevant: list[int]) -> list[object]:
    """What happens to files: a picture that is gone, a list that is empty, letters from afar.

    The document that answers the question is spared.
    """
    if kind == "visual" and rng.random() < 0.3:
        return []
    irrelevant = [index for index in range(len(documents)) if index not in relevant]
    damaged_index = rng.choice(irrelevant)
    missing_image: object = {"image": "images/lost.jpg", "text": "This picture was lost."}
    return [
        (missing_image if rng.random() < 0.5 else rng.choice(ODD))
        if index == damaged_index
        else document
        for index, document in enumerate(documents)
    ]


def write_world(
    directory: Path,
    *,
    rows: int,
    seed: int,
    free_form: bool = False,
    kinds: Collection[str] = tuple(KINDS),
) -> Path:
    """Write `rows` questions of the world `seed` below `directory`, or those of them that are of
    some `kinds`; the same ones without their choices if `free_form`. Returns the CSV's path."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    table = directory / "questions.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer: csv.DictWriter[str] | None = None
        for number in tqdm(range(rows), desc="drawing", unit="row", disable=None):
            if _begin(number, seed)[1] not in kinds:
                continue
            row = make_row(directory, number, seed)
            if free_form:
                del row["answer_choices"]
            if writer is None:
                writer = csv.DictWriter(stream, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
    return table
