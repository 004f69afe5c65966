"""Tables, settings and files."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aggregator_world import World

from cohortium_aggregator.app import App
from cohortium_aggregator.files import DataDir, Piece, UploadKey, complete_directory, read_at, write_at
from cohortium_aggregator.store.tables import metadata
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.migrate import check_schema


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path)
    yield made
    await made.close()


async def test_migrations_make_the_tables_of_the_code(world: World) -> None:
    assert await check_schema(world.app.ctx.db, metadata) == []


async def test_keys_are_known_again_after_a_restart(world: World) -> None:
    before = dict(world.app.ctx.keyring.keys)
    await world.restart()
    assert world.app.ctx.keyring.keys == before


async def test_another_seal_key_than_the_officers_signed_stops_the_start(world: World) -> None:
    world.settings.seal_key_file.write_text("11" * 32)
    with pytest.raises(ConfigurationError, match="aggregator_seal"):
        await App.build(world.settings)


def test_a_directory_is_complete_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(content: str, *, fail: bool) -> None:
        with complete_directory(target) as folder:
            (folder / "file").write_text(content)
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write("a", fail=True)
    assert list(tmp_path.iterdir()) == []
    write("b", fail=False)
    with pytest.raises(OSError, match="disk full"):
        write("c", fail=True)
    assert (target / "file").read_text() == "b"
    write("d", fail=False)
    assert (target / "file").read_text() == "d"
    assert list(tmp_path.iterdir()) == [target]


def test_pieces_are_found_where_they_were_written(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.prepare()
    key = UploadKey(bytes(16), 0, 7)
    data.write_pieces(key, [Piece(10, b"second"), Piece(0, b"first")])
    data.write_pieces(key, [Piece(10, b"second")])
    assert data.upload_path(key).read_bytes() == b"first" + bytes(5) + b"second"
    assert data.windows_on_disk() == {(bytes(16), 0)}
    data.wipe_window(bytes(16), 0)
    data.wipe_window(bytes(16), 0)
    assert data.windows_on_disk() == set()


def test_a_short_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as file:
        write_at(file.fileno(), 0, b"12345")
        with pytest.raises(EOFError, match="2 bytes too early"):
            read_at(file.fileno(), 3, 4)
