"""Messages go to the terminal, or to a log within `redirect_messages`."""

from __future__ import annotations

import threading

from fractal_model.common.console import redirect_messages, say


def test_messages_of_all_threads_go_to_the_log_within_the_block(capsys):
    lines: list[str] = []
    with redirect_messages(lines.append):
        say("[registered] version 1")
        other = threading.Thread(target=say, args=["of another thread"])
        other.start()
        other.join()
    assert capsys.readouterr().out == ""
    assert lines == ["[registered] version 1", "of another thread"]
    say("in the terminal")
    assert capsys.readouterr().out == "in the terminal\n"
