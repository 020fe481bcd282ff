"""What commands print: text of others as it is."""

from __future__ import annotations

from dicomnode.cli.common import out, table


def test_brackets_in_messages_are_no_markup(capsys):
    text = "cannot read [/data/x]: Head [bold] 5mm [AI denoised, RUO]"
    rows = table("error")
    rows.add_row(text)
    out.print(rows)
    out.print(text)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["error", text, text]
