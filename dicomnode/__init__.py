"""A DICOM node between scanners and PACS that runs AI pipelines on complete series."""

__version__ = "0.1.0"
