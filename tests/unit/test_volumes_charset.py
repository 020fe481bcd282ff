"""Text of every character set scanners write, decoded exactly or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from dicomnode.volumes import charset
from dicomnode.volumes.normalise import Normaliser, UndecodableText
from tests import factories


@pytest.mark.parametrize("declared", [name for name in factories.NAMES if name])
def test_name_survives_the_way_from_scanner_bytes_to_unicode(tmp_path, declared):
    (path,) = factories.write_series(tmp_path, factories.ct_series(1, charset=declared))
    header = Normaliser().header(dcmread(path), path.name)
    assert str(header.PatientName) == factories.NAMES[declared]
    assert header.SpecificCharacterSet == "ISO_IR 192"
    (written,) = factories.write_series(tmp_path / "out", [_saved(header)])
    assert str(dcmread(written).PatientName) == factories.NAMES[declared]


def _saved(header):
    return factories._finish(header, "1.2.840.10008.1.2.1")


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("ISO_IR 100", ("ISO_IR 100",)),
        ("ISO-IR 100", ("ISO_IR 100",)),
        ("ISO IR 192", ("ISO_IR 192",)),
        ("iso_ir_144", ("ISO_IR 144",)),
        ("UTF-8", ("ISO_IR 192",)),
        ("ISO_IR 6", ("",)),
        ("\\ISO 2022 IR 87", ("", "ISO 2022 IR 87")),
        ("", ("",)),
        (None, ("",)),
    ],
)
def test_misspelt_terms_are_understood(spelling, canonical):
    assert charset.terms(spelling) == canonical


def test_eight_bit_text_without_a_character_set_is_read_as_the_site_default(tmp_path):
    name = "Łoś^Zażółć".encode("iso8859_2")
    (path,) = factories.write_series(tmp_path, factories.ct_series(1, charset=None, name=name))
    normaliser = Normaliser("ISO_IR 101")
    assert str(normaliser.header(dcmread(path), path.name).PatientName) == "Łoś^Zażółć"
    assert any("8-bit text without a character set" in note for note in normaliser.notes)


def test_undecodable_name_is_refused_by_name_of_the_attribute_and_without_the_identity(tmp_path):
    (path,) = factories.write_series(tmp_path, factories.ct_series(1, charset="ISO_IR 192", name=b"M\xfcller"))
    with pytest.raises(UndecodableText, match=r"PatientName of .*ISO_IR 192") as refused:
        Normaliser().header(dcmread(path), path.name)
    assert "ller" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize("declared", ["\\ISO 2022 IR 87", "X_UNHEARD_OF"])
def test_declared_character_set_is_never_replaced_by_the_site_default(tmp_path, declared):
    (ds,) = factories.ct_series(1, charset=None, name="山田".encode("shift_jis"))
    factories.set_raw(ds, "SpecificCharacterSet", declared.split("\\"))
    (path,) = factories.write_series(tmp_path, [ds])
    with pytest.raises(UndecodableText, match="PatientName"):
        Normaliser("ISO_IR 100").header(dcmread(path), path.name)


@pytest.mark.filterwarnings("ignore:Unknown encoding")
def test_unknown_character_set_does_no_harm_to_ascii_text(tmp_path):
    (ds,) = factories.ct_series(1, charset=None)
    ds.SpecificCharacterSet = "X_UNHEARD_OF"
    ds.PatientName = "Doe^Jane"
    (path,) = factories.write_series(tmp_path, [ds])
    normaliser = Normaliser()
    assert str(normaliser.header(dcmread(path), path.name).PatientName) == "Doe^Jane"
    assert any("X_UNHEARD_OF" in note for note in normaliser.notes)


def test_undecodable_description_is_left_out_with_a_note(tmp_path):
    (ds,) = factories.ct_series(1, charset="ISO_IR 192")
    ds["SeriesDescription"]._value = b"Sch\xe4del"
    (path,) = factories.write_series(tmp_path, [ds])
    normaliser = Normaliser()
    header = normaliser.header(dcmread(path), path.name)
    assert "SeriesDescription" not in header
    assert any("SeriesDescription dropped" in note for note in normaliser.notes)


def test_unknown_escape_sequence_is_an_error():
    with pytest.raises(UnicodeDecodeError):
        charset.decode(b"a\x1b%Gb", charset.terms("\\ISO 2022 IR 87"))


def test_korean_without_a_second_escape_after_a_delimiter_is_still_korean():
    raw = b"Hong=\x1b$)C\xfb\xf3^\xd1\xce\xd4\xd7"
    assert charset.decode(raw, charset.terms("\\ISO 2022 IR 149"), name=True) == "Hong=洪^吉洞"


@given(st.text(st.characters(codec="gb18030", exclude_characters="\\\x1b\0"), max_size=20))
def test_any_gb18030_text_comes_back(text):
    assert charset.decode(text.encode("gb18030"), ("GB18030",)) == text


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_raise_decode_error_alone(raw):
    for declared in factories.NAMES:
        try:
            charset.decode(raw, charset.terms(declared), name=True)
        except UnicodeDecodeError:
            continue
