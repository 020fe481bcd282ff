"""Segmentations and the key image note as last reviewed (see test_encode_golden)."""

from __future__ import annotations

import json
import os

import pytest
from pydicom import Dataset

from dicomnode.encode.keys import encode_key_images
from dicomnode.encode.seg import encode_segmentation
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.unit.test_encode_golden import GOLDEN, readable


def ct():
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    values = {"RequestAttributesSequence": [request]}
    return factories.ct_series(3, rows=16, columns=16, charset="\\ISO 2022 IR 87", values=values)


def enhanced():
    return [factories.enhanced_ct(3, rows=16, columns=16)]


def seg(source, **changes):
    (segmentation,) = phantoms.bleeding(source.images).segmentations
    return encode_segmentation(source, segmentation, phantoms.context(), series_number=9020, **changes)


def keys(source):
    result = phantoms.bleeding(source.images)
    return encode_key_images(source, result, phantoms.context(), series_number=9070, objects=[seg(source)])


OBJECTS = {
    "seg": (ct, seg),
    "seg_labelmap": (ct, lambda source: seg(source, labelmap=True)),
    "seg_of_enhanced_ct": (enhanced, seg),
    "key_images": (ct, keys),
    "key_images_of_enhanced_ct": (enhanced, keys),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object_is_as_reviewed(tmp_path, name):
    series, encode = OBJECTS[name]
    seen = readable(encode(load(factories.write_series(tmp_path, series()))))
    path = GOLDEN / f"{name}.json"
    if os.environ.get("DICOMNODE_UPDATE_GOLDEN"):
        path.write_text(json.dumps(seen, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    assert seen == json.loads(path.read_text(encoding="utf-8"))
