"""The prompt of published weights, read off a demo, here a stand-in in words of our own."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from models.hamster.prompt import FILE, PromptError, read_prompt
from models.hamster.upstream import DEMO_FILE, read_demo
from roboserve.cli import app

DEMO = """
import nowhere
raise SystemExit("this was run")

def ask(quest, url):
    print(f"asked: {quest}")
    parts = [{"url": f"data:{url}"}, {"text":
        f"\\nDo <quest>{quest}</quest>.\\n"
        "Say {where} it goes.\\n"
        "End."
    }]
"""


def test_the_template_is_taken_from_the_syntax_tree(tmp_path):
    (tmp_path / DEMO_FILE).write_text(DEMO)
    prompt = read_demo(tmp_path)
    assert prompt.template == "\nDo <quest>{quest}</quest>.\nSay {where} it goes.\nEnd."
    assert prompt.text("open the drawer") == "\nDo <quest>open the drawer</quest>.\nSay {where} it goes.\nEnd."
    assert prompt == read_demo(tmp_path / DEMO_FILE)
    assert prompt.image_first
    assert not prompt.initial_open


def test_the_verb_writes_the_folders_prompt(tmp_path):
    demo, weights = tmp_path / DEMO_FILE, tmp_path / "weights"
    demo.write_text(DEMO)
    weights.mkdir()
    found = CliRunner().invoke(app, ["convert", "hamster", str(weights), "--demo", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert read_prompt(weights) == read_demo(demo)
    demo.write_text("x = 1")
    (weights / FILE).unlink()
    refused = CliRunner().invoke(app, ["convert", "hamster", str(weights), "--demo", str(demo)])
    assert refused.exit_code == 1
    assert "holds 0 f-strings" in refused.output.replace("\n", " ")
    assert not (weights / FILE).exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = 1", "holds 0"),
        ('f"<quest>{a}</quest>{b}"', "holds 0"),
        ('f"<quest>{a}</quest>"; f"<quest>{b}</quest>"', "holds 2"),
        ("def (", "not valid Python"),
        ("x = 1\x00", "not valid Python"),
        ("#" * (1 << 20) + "#", "at most"),
    ],
)
def test_another_file_is_refused(tmp_path, text, match):
    (tmp_path / DEMO_FILE).write_text(text)
    with pytest.raises(PromptError, match=match):
        read_demo(tmp_path)


def test_a_demo_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=DEMO_FILE):
        read_demo(tmp_path)
