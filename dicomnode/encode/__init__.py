"""From a pipeline's result to DICOM objects that say where they come from, who computed, and what for."""
