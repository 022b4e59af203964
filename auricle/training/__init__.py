"""Training: one loop for every method, with exact resume, health alarms and its logs."""
