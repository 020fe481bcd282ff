"""From the files of one series to a pipeline's input: headers made readable, pixels decoded, geometry named."""
