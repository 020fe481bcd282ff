"""Presentation states and parametric maps as last reviewed (see test_encode_golden)."""

from __future__ import annotations

import json
import os

import pytest

from dicomnode.domain import ObjectKind
from dicomnode.encode.result import encode_result
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.unit.test_encode_golden import GOLDEN, readable
from tests.unit.test_encode_seg_golden import ct, enhanced

OBJECTS = {
    "presentation": (ct, ObjectKind.PRESENTATION),
    "presentation_of_enhanced_ct": (enhanced, ObjectKind.PRESENTATION),
    "parametric_map": (ct, ObjectKind.PARAMETRIC_MAP),
    "parametric_map_of_enhanced_ct": (enhanced, ObjectKind.PARAMETRIC_MAP),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object_is_as_reviewed(tmp_path, name):
    series, kind = OBJECTS[name]
    source = load(factories.write_series(tmp_path, series()))
    (one,) = encode_result(source, phantoms.mapped(source.images), phantoms.context(), kinds=[kind])
    seen = readable(one.dataset)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("DICOMNODE_UPDATE_GOLDEN"):
        path.write_text(json.dumps(seen, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    assert seen == json.loads(path.read_text(encoding="utf-8"))
