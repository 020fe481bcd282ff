"""What the conformance gate takes from inside highdicom is still there and still means the same."""

from __future__ import annotations

import pytest
from highdicom import _standard_utils as tables

from dicomnode.encode import gate_tables

SEG, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
SR, KO = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.59"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
LEGACY_CT, LEGACY_MR = "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.4.4"
SC = "1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    "sop_class", [SEG, LABELMAP, SR, KO, CT, MR, ENHANCED_CT, ENHANCED_MR, LEGACY_CT, LEGACY_MR, SC]
)
def test_every_class_the_node_writes_has_a_table(sop_class):
    needed = gate_tables.requirements(sop_class)
    assert needed["SOPInstanceUID"].type == "1"
    assert needed["PatientName"].type == "2"
    assert {"ContentQualification", "SeriesDescription"} <= gate_tables.allowed(sop_class)


def test_the_stricter_type_holds_where_modules_differ():
    needed = gate_tables.requirements(SEG)
    assert needed["Manufacturer"].type == "1"  # 2 in General Equipment, 1 in Enhanced General Equipment
    assert needed["InstanceNumber"].type == "1"
    assert needed["SegmentSequence"].items["SegmentLabel"].type == "1"
    assert "PerFrameFunctionalGroupsSequence" not in needed


def test_tables_have_the_form_that_is_read():
    iods, modules, attributes = (
        tables.get_sop_class_iod_map(),
        tables.get_iod_module_map(),
        tables.get_module_attribute_map(),
    )
    assert iods[SEG] == "segmentation"
    assert {"key", "usage", "ie"} <= set(modules["segmentation"][0])
    assert {"keyword", "type", "path"} <= set(attributes["patient"][0])
    tree = tables.construct_module_tree("patient")
    assert tree["attributes"]["PatientName"]["type"].value == "2"


def test_a_class_without_a_table_is_a_fault_and_no_crash():
    assert gate_tables.requirements("1.2.3") is None
    assert gate_tables.allowed("1.2.3") == frozenset()
