"""The public surface changes on purpose only."""

from __future__ import annotations

from tests.typing.describe_api import SNAPSHOT, describe_api


def test_public_surface_is_the_one_that_was_written_down() -> None:
    """A change of a signature, a field or a name shows in ``tests/typing/api.txt`` too.

    ``make api`` writes the file. Then say in CHANGELOG.md what changed; what breaks callers goes
    by the rules of docs/stability.md.
    """
    assert describe_api() == SNAPSHOT.read_text(encoding="utf-8"), "run `make api`, see the diff"


def test_snapshot_shows_what_callers_rely_on() -> None:
    """Defaults of arguments, fields, methods, properties and base classes are in the snapshot."""
    text = describe_api()
    for part in (
        "class phi3ov.ContextLengthError(PromptError)",
        "        max_new_tokens: int = 1024,\n",
        "    async agenerate(message: Question, **options: Unpack[Options]) -> Reply\n",
        "    token_ids: tuple[int, ...]\n",
        "    device: str | Sequence[str] = ('GPU', 'CPU'),\n",
        "    partial_text\n",
    ):
        assert part in text
    assert " at 0x" not in text, "an address would make every run another"
