"""What the documents show works: commands are run or parsed, Python compiles, links lead somewhere.

A fenced block says by its tag what is done with it:

    ```bash run        executed in a folder of its own, after the document's earlier run blocks;
                       tests/, configs/ and launch/ of the checkout are there as links
    ```bash run-slow   the same, with the slow tests
    ```bash dry-run    every `unialign` call is read by the real parser and, where it names a
                       config, its keys are looked up; every `make` target must exist

A bash block that calls unialign must have one of the tags.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from unialign_jax import cli, config
from unialign_jax.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
TAGS = ("run", "run-slow", "dry-run")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its language, its tag ("" for none), its text."""

    document: Path
    line: int
    language: str
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks_of(document: Path) -> list[Block]:
    """The fenced blocks of a Markdown file, in order."""
    found, opened, start, info, lines = [], "", 0, "", []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        fence = re.match(r"\s*(```+|~~~+)\s*(.*)$", line)
        if not opened and fence:
            opened, info, start, lines = fence[1], fence[2].split(), number, []
        elif opened and fence and fence[1].startswith(opened) and not fence[2]:
            language, tag = [*info, "", ""][:2]
            found.append(Block(document, start, language, tag, "\n".join(lines)))
            opened = ""
        elif opened:
            lines.append(line)
    assert not opened, f"{document}:{start}: this block never ends"
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def commands_in(text: str) -> list[list[str]]:
    """The simple commands of a shell text: without comments, pipes, redirections, assignments."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set("();<>|&"):
                words.append(token)
                continue
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                words.pop(0)
            if words:
                commands.append(words)
            # What follows a redirection is a file's name, not a command.
            words = ["#redirected"] if set(token) & set("<>") else []
    return [words for words in commands if words[0] != "#redirected"]


def check_call(words: list[str]) -> None:
    """Reads one `unialign` or `make` call as the real thing would, without running it.

    Raises:
        UsageError: the call is wrong.
    """
    if words[:3] == ["python", "-m", "unialign_jax"]:
        words = ["unialign", *words[3:]]
    if words[0] == "unialign":
        if words[1:] in (["--help"], ["--version"]) or words[2:] == ["--help"]:
            assert len(words) == 2 or words[1] in cli.COMMANDS
            return
        name, _, args, extra = cli.parse(words[1:])
        if name in cli.CONFIG_COMMANDS:
            # The demonstration trains with the config that is made for its photographs.
            config.load_config(getattr(args, "config", "photos"), extra)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        for word in words[1:]:
            if "=" not in word and not word.startswith("-") and word not in targets:
                raise UsageError(f"the Makefile has no target {word!r}")


def execute(blocks: list[Block], folder: Path, timeout: float) -> None:
    """Runs blocks one after the other in a folder; a failing command fails the test."""
    for name in ("configs", "launch", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # The checkout comes first, so that the code under test is the code beside the documents.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    # Programs as a reader compiles them, not as tests do.
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
        environment.pop(name, None)
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout}\n{done.stderr}"


def documents_with(*tags: str) -> list[Path]:
    found = {b.document for b in BLOCKS if b.language == "bash" and b.tag in tags}
    return sorted(found)


@pytest.mark.parametrize("document", documents_with("run"), ids=lambda path: path.name)
def test_commands_shown_as_run_succeed(document, tmp_path):
    execute([b for b in blocks_of(document) if b.tag == "run"], tmp_path, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("document", documents_with("run-slow"), ids=lambda path: path.name)
def test_long_commands_shown_as_run_succeed(document, tmp_path):
    execute(
        [b for b in blocks_of(document) if b.tag in ("run", "run-slow")], tmp_path, timeout=1500
    )


def test_every_call_shown_is_one_that_the_command_line_takes():
    for block in BLOCKS:
        if block.language == "bash" and block.tag in TAGS:
            for words in commands_in(block.text):
                try:
                    check_call(words)
                except UsageError as error:
                    pytest.fail(f"{block}: {shlex.join(words)}: {error}")


def test_every_bash_block_that_calls_unialign_has_a_tag():
    for block in BLOCKS:
        if block.language in ("bash", "sh", "shell", "console", "") and not block.tag:
            called = re.search(r"^\s*(\$ )?unialign ", block.text, flags=re.M)
            assert not called, f"{block} calls unialign and has none of the tags {TAGS}"
        assert block.language != "bash" or block.tag in ("", *TAGS), f"{block}: tag {block.tag!r}"


def test_python_shown_compiles():
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, str(block), "exec")


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        text = re.sub(r"(?ms)^```.*?^```", "", document.read_text())
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)|src=\"([^\"]+)\"", text):
            path = target[0] or target[1]
            if "://" not in path and not path.startswith("mailto:"):
                assert (document.parent / path).exists(), f"{document.name} links to {path}"


# ---------------------------------------------------------------------- the checks themselves


def test_blocks_and_tags_are_read_from_markdown(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```bash run\nunialign --version\n```\n````\n```\nx\n````\n```python\nx = 1\n```\n"
    )
    found = [(b.line, b.language, b.tag, b.text) for b in blocks_of(page)]
    assert found == [
        (2, "bash", "run", "unialign --version"),
        (5, "", "", "```\nx"),
        (9, "python", "", "x = 1"),
    ]


def test_simple_commands_are_found_in_shell_text():
    text = (
        "# a comment\nJAX_PLATFORMS=cpu unialign train \\\n  --workdir 'a b' > log.txt\n"
        "unialign doctor --json | python -m json.tool && make test  # the end\n"
    )
    assert commands_in(text) == [
        ["unialign", "train", "--workdir", "a b"],
        ["unialign", "doctor", "--json"],
        ["python", "-m", "json.tool"],
        ["make", "test"],
    ]


@pytest.mark.parametrize(
    "call", ["unialign doctr", "unialign doctor --jsn", "make demonstration", "unialign demo --x"]
)
def test_a_wrong_call_in_a_document_is_noticed(call):
    with pytest.raises(UsageError):
        check_call(shlex.split(call))


def test_a_run_block_that_fails_is_noticed(tmp_path):
    good = Block(ROOT / "README.md", 1, "bash", "run", "unialign --version > version.txt")
    bad = Block(ROOT / "README.md", 2, "bash", "run", "grep no-such-thing version.txt\ntrue")
    execute([good], tmp_path, timeout=60)
    assert (tmp_path / "version.txt").read_text().startswith("unialign_jax ")
    with pytest.raises(AssertionError, match="README.md:2"):
        execute([bad], tmp_path, timeout=60)
