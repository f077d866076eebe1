"""What stands around a classifier: correction, temperature, plausibility, abstention, unlabelled rows."""
