"""How commands are run for tests."""

from pathlib import Path
from types import SimpleNamespace

import running


def test_a_command_that_never_opens_its_standard_input_is_waited_for(monkeypatch):
    """One that is killed at once, say. A pipe, or more than it holds, would wait for a reader for ever."""
    text, given = "ka lumo \u2581\n" * 20_000, []

    def start(command, arguments, output, folder, stdin):
        assert Path(stdin).is_file(), "not a regular file"
        given.append(Path(stdin).read_text(encoding="utf-8"))
        Path(output).write_text("Killed", encoding="utf-8")
        return SimpleNamespace(wait=lambda timeout: -9)

    monkeypatch.setattr(running, "start", start)
    result = running.run("fairseq-train", stdin=text, check=False)
    assert (result.returncode, result.stdout) == (-9, "Killed") and given == [text]
