"""The study file: what is accepted, and what is said of each mistake."""

from pathlib import Path

import pytest

from cohortium_messages.study_file import (
    MAX_STUDY_BYTES,
    StudyFileError,
    canonical_study,
    parse_study,
    same_value,
    study_from_canonical,
)

STUDIES = Path(__file__).resolve().parents[2] / "studies"
EXAMPLE = (STUDIES / "example.yaml").read_text()


def changed(*pairs: tuple[str, str]) -> str:
    text = EXAMPLE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def mistakes(text: str) -> list[tuple[int, str, str, str]]:
    with pytest.raises(StudyFileError) as caught:
        parse_study(text)
    return [(problem.line, problem.field, problem.fact, problem.remedy) for problem in caught.value.problems]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_of_ours_can_be_read(path: Path) -> None:
    study = parse_study(path.read_text(), file=path.name)
    assert study_from_canonical(canonical_study(study)) == study


def test_the_example_means_what_it_says() -> None:
    study = parse_study(EXAMPLE)
    assert [feature.name for feature in study.dataset.features] == ["age", "sex", "trestbps"]
    assert study.federation.rounds == 30
    assert study.federation.deadlines.upload_s == 30


def test_layout_and_comments_do_not_change_the_digest() -> None:
    assert parse_study(EXAMPLE).digest() == parse_study(changed(("rounds: 30", "rounds:   30   # many"))).digest()
    assert parse_study(EXAMPLE).digest() != parse_study(changed(("rounds: 30", "rounds: 31"))).digest()


FIRST_LINES = {
    "unknown key, with the key that was meant": (
        [("range: [18, 110]", "range: [18, 110], missin: impute")],
        (7, "dataset.features[0].missin", "is not a field here", "Did you mean `missing`?"),
    ),
    "unknown key like no other": (
        [("range: [18, 110]", "range: [18, 110], zzz: 1")],
        (7, "dataset.features[0].zzz", "is not a field here", "Fields here are missing, name, range, type, unit."),
    ),
    "missing key": (
        [("type: float,    range: [18, 110]", "type: float")],
        (
            7,
            "dataset.features[0].range",
            "is missing",
            "Add range: [low, high], the least and greatest value that can be true.",
        ),
    ),
    "range the wrong way round": (
        [("[18, 110]", "[110, 18]")],
        (
            7,
            "dataset.features[0].range",
            "range of age must be [low, high] with low < high",
            "Correct it, or leave it out.",
        ),
    ),
    "number for text": (
        [('levels: ["0", "1"]', 'levels: [0, "1"]')],
        (
            8,
            "dataset.features[1].levels[0]",
            "is 0, not text",
            'Write text, in quotes where it looks like a number: "0".',
        ),
    ),
    "text for number": (
        [("rounds: 30", 'rounds: "30"')],
        (18, "federation.rounds", 'is "30"', "Write a whole number."),
    ),
    "too few sites": (
        [("min_sites: 3", "min_sites: 2")],
        (19, "federation.min_sites", "is 2", "It should be greater than or equal to 3."),
    ),
    "unknown kind": (
        [("type: category", "type: kategory")],
        (8, "dataset.features[1].type", 'is "kategory"', "Use one of 'float', 'int', 'category'."),
    ),
    "a rule of another kind": (
        [("missing: impute", "missing: level")],
        (9, "dataset.features[2].missing", 'is "level"', "Use 'refuse', 'impute' or 'native'."),
    ),
    "split by a share that is none": (
        [("{column: split, train: train, test: test}", "{test: 1.5}")],
        (11, "dataset.split.test", "is 1.5", "It should be less than 1."),
    ),
    "split on the same rows": (
        [("test: test}", "test: train}")],
        (
            11,
            "dataset.split.test",
            'is "train", as for train: a model would be tested on what it learnt from',
            "Name another value, or use split: {test: 0.3, seed: 7}.",
        ),
    ),
    "key twice": (
        [("  rounds: 30", "  rounds: 30\n  rounds: 31")],
        (19, "federation.rounds", "stands twice, first in line 18", "Keep one of them."),
    ),
    "window closes before enough sites are in it": (
        [("mode: synchronous", "mode: buffered"), ("min_sites: 3", "min_sites: 5")],
        (
            20,
            "federation.buffer",
            "is 3: a window would close before min_sites (5) are in it",
            "Use 5 or more, or lower min_sites.",
        ),
    ),
    "asks fewer sites than a round needs": (
        [("min_sites: 3", "min_sites: 5\n  participants: 4")],
        (
            20,
            "federation.participants",
            "is 4: a round needs min_sites (5) of those that it asks",
            "Use 5 or more, with a few to spare, or lower min_sites.",
        ),
    ),
    "asks some, and takes the first": (
        [("mode: synchronous", "mode: buffered\n  participants: 4")],
        (
            18,
            "federation.participants",
            "is 4, but with mode: buffered a round takes the first sites that are ready",
            "Write buffer: with their number instead, or mode: synchronous.",
        ),
    ),
    "too many colluders": (
        [("min_sites: 3", "min_sites: 3\n  collusion: 2")],
        (
            20,
            "federation.collusion",
            "is 2: of min_sites (3) at least two must be honest",
            "Use at most 1, or raise min_sites.",
        ),
    ),
    "never evaluated": (
        [("rounds: 30", "rounds: 30\n  evaluate_every: 31")],
        (19, "federation.evaluate_every", "is 31, more than the 30 rounds", "Use at most 30."),
    ),
    "level that is a missing value": (
        [('levels: ["0", "1"]', 'levels: ["0", "1", "NA"]')],
        (
            8,
            "dataset.features[1].levels[2]",
            'is "NA", which is read as a missing value',
            "Leave it out, and write missing: level.",
        ),
    ),
    "levels that are the same number": (
        [('levels: ["0", "1"]', 'levels: ["0", "1", "1.0"]')],
        (
            8,
            "dataset.features[1].levels[2]",
            'is "1.0", the same number as a level before it',
            "Name each level once.",
        ),
    ),
    "metric without scores": (
        [
            ("trainer: torch.mlp ", "trainer: benchmark.noise\n  parameters: 5 #"),
            ("  hidden: [32, 16]\n", ""),
            ("  local: {epochs: 1, batch_size: 16, optimizer: adam, lr: 0.01}\n", ""),
        ],
        (
            24,
            "metrics",
            "cannot be computed: the trainer benchmark.noise reads no rows",
            "Write metrics: [].",
        ),
    ),
    "not a number": (
        [("lr: 0.01", "lr: .nan")],
        (15, "recipe.local.lr", "is NaN", "It should be a finite number."),
    ),
    "tag": (
        [("epochs: 1", "epochs: !!python/name:os.system 1")],
        (
            15,
            "recipe.local.epochs",
            "has the YAML tag tag:yaml.org,2002:python/name:os.system",
            "Write plain text or numbers.",
        ),
    ),
    "anchor": (
        [("rounds: 30", "rounds: &many 30")],
        (
            18,
            "",
            "not valid YAML: anchors and aliases (& and *) are not used here: write it out",
            "Check indentation, colons and quotes near this line.",
        ),
    ),
}


@pytest.mark.parametrize(("pairs", "expected"), FIRST_LINES.values(), ids=FIRST_LINES)
def test_a_mistake_is_named_with_its_line_field_and_remedy(
    pairs: list[tuple[str, str]], expected: tuple[int, str, str, str]
) -> None:
    assert mistakes(changed(*pairs)) == [expected]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    found = mistakes(changed(("rounds: 30", "rounds: 0"), ("[18, 110]", "[18]"), ("auc,", "f1,")))
    assert [line for line, *_ in found] == [7, 18, 25]


def test_the_error_reads_well() -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_study(changed(("rounds: 30", "rounds: 0")), file="heart.yaml")
    assert str(caught.value) == (
        "heart.yaml: 1 mistake\n"
        "  line 18, column 3: federation.rounds: is 0\n"
        "    It should be greater than or equal to 1."
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        "\x00",
        "- " * 5000,
        "[ " * 5000,
        "a: b\n---\nc: d",
        "? [a]\n: b",
        "x: 08",
        "<<: {a: 1}",
        "\ud800",
    ],
)
def test_what_is_no_study_at_all_is_refused_with_a_place(text: str) -> None:
    assert mistakes(text)


def test_a_file_that_is_too_large_is_not_even_parsed() -> None:
    assert "too large" in mistakes("#" * (MAX_STUDY_BYTES + 1))[0][2]


def test_words_that_older_yaml_takes_for_something_else_are_text() -> None:
    text = changed(('levels: ["0", "1"]', "levels: [no, yes, 12:30, 2020-01-01]"), ("lr: 0.01", "lr: 1e-2"))
    study = parse_study(text)
    assert getattr(study.dataset.features[1], "levels", ()) == ("no", "yes", "12:30", "2020-01-01")
    assert study.recipe == parse_study(EXAMPLE).recipe


def test_canonical_bytes_that_were_touched_are_refused() -> None:
    data = canonical_study(parse_study(EXAMPLE))
    for touched in (
        data + b" ",
        data.replace(b'"rounds":30', b'"rounds":30.0'),
        b"{}",
        data.replace(b"{", b'{"x":1,', 1),
    ):
        with pytest.raises(ValueError):
            study_from_canonical(touched)


def test_values_are_the_same_as_text_or_as_numbers() -> None:
    assert same_value("1", "1.0")
    assert same_value("a", "a")
    assert not same_value("a", "A")
    assert not same_value("1", "one")
