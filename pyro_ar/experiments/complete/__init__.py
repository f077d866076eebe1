"""`pyro-ar complete`: images completed by every joint, looked at and scored."""
