"""Phone recognition by CTC: which phones are said, in order, is read off an encoder's frames."""
