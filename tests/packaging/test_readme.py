"""What the README, the runbooks and the hospital's pages tell people to type exists."""

import re
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "deploy").glob("*/*.md")),
    *sorted((ROOT / "contracts").glob("*.md")),
    *sorted((ROOT / "contracts" / "decisions").glob("*.md")),
    *sorted(ROOT.glob("services/*/README.md")),
]


def code(page: Path) -> list[str]:
    """Lines of code blocks, and code in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line.strip() for block in blocks for line in block.splitlines()] + inline


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestAPage:
    def test_its_make_targets_exist(self, page: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
        named = {match[1] for line in code(page) if (match := re.match(r"make ([a-z][a-z-]*)", line))}
        assert named <= targets

    def test_its_commands_exist(self, page: Path) -> None:
        from cohortium_cli.app import app

        root = typer.main.get_command(app)
        for line in code(page):
            words = re.sub(r"^(\$ )?(\.venv/bin/)?", "", line).split()
            if words[:1] != ["cohortium"] or len(words) < 2 or not re.fullmatch(r"[a-z][a-z-]*", words[1]):
                continue
            command = root
            for word in words[1:]:
                children = getattr(command, "commands", {})
                if not children:
                    break
                assert word in children, f"{page.name}: {line}"
                command = children[word]

    def test_its_links_lead_somewhere(self, page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), link
