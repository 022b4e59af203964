"""Run folders and results folders as one HTML page to look at and listen to."""
